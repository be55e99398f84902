"""`python -m specvit.evaluate RUN [--data FILE]`: score a finished run again, with the statistics of its training."""

import argparse
import sys
from pathlib import Path

import yaml

from specvit.config.build import build_config
from specvit.config.schema import Config
from specvit.entry import user_facing
from specvit.errors import FolderError

RESULT_COLUMNS = ("rows", "r2", "mae")


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Score the best checkpoint of a run folder on its own test set or on any file, row by row."""
    parser = argparse.ArgumentParser(prog="specvit evaluate", description=main.__doc__)
    parser.add_argument("run", type=Path, help="a run folder, outputs/<name>-<hash8>")
    parser.add_argument("--data", metavar="FILE", help="an HDF5 file to score instead of the run's test set")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    config = read_config(options.run)
    if not (options.run / "best.ckpt").exists():
        remedy = "train it first: the same command goes on"
        raise FolderError("has no trained model yet", where=str(options.run), remedy=remedy)
    _evaluate(config, options.run, options.data, options.device)
    return 0


def read_config(folder: Path) -> Config:
    """Return the configuration of a run folder; raises `FolderError`."""
    try:
        return build_config(yaml.safe_load((folder / "config.yaml").read_text()))
    except OSError as problem:
        remedy = "name a folder in outputs/"
        raise FolderError("is no run folder (no config.yaml)", where=str(folder), remedy=remedy) from problem


def _evaluate(config: Config, folder: Path, file: str | None, device_name: str) -> None:
    """Score, print the table, and write predictions, summary and figure beside the run's own."""
    import dataclasses

    from specvit.data.splits import open_split
    from specvit.data.views import open_spectra
    from specvit.pipeline import load_trained, resolve_device
    from specvit.score import Scored, score, write_scored
    from specvit.tracking.console import Screen

    screen = Screen("lines")
    device = resolve_device(dataclasses.replace(config.train, device=device_name))
    spectra = open_spectra([Path(file)], -1, where="--data") if file else open_split(config.data, "test", screen.making)
    trained = load_trained(folder / "best.ckpt", config, device)
    if spectra.num_pixels != len(trained.flux_norm.mean_P):
        from specvit.errors import DataError

        what = f"has {spectra.num_pixels} pixels a spectrum, the run was trained on {len(trained.flux_norm.mean_P)}"
        raise DataError(what, where=file or "test set", remedy="resample it to the training set's pixels")
    split = "test" if file is None else Path(file).stem
    scored: Scored = score(trained, spectra, split, device)
    out = folder / f"evaluate-{split}"
    out.mkdir(exist_ok=True)
    facts = {"run": folder.name, "data": file or "test set of the run", "noise_level": config.noise.noise_level}
    write_scored(
        scored, out, split="test", summary={**facts, "test_rows": len(spectra)}, title=f"{folder.name} on {split}"
    )
    if len(spectra) <= 50:
        screen.say(scored.predictions.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    screen.say("  ".join(f"{name} {value:.4f}" for name, value in scored.scores.items()))
    screen.say(f"written: {out}")


if __name__ == "__main__":
    sys.exit(main())
