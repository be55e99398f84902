"""`python -m specvit.evaluate RUN [--data FILE]`: score a finished run again, with the statistics of its training."""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import yaml

from specvit import pipeline, score
from specvit.config.build import build_config
from specvit.config.schema import Config, effective_level
from specvit.data.shards import same_wavelengths
from specvit.data.splits import open_split
from specvit.data.views import Spectra, open_spectra
from specvit.entry import user_facing
from specvit.errors import DataError, FolderError
from specvit.tracking.console import Screen

ROWS_PRINTED = 50
"""Smaller sets are printed row by row."""


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
    except yaml.YAMLError as problem:
        raise FolderError("has a damaged config.yaml", where=str(folder), remedy="train it again") from problem


def _evaluate(config: Config, folder: Path, file: str | None, device_name: str) -> None:
    """Score, print the table, and write predictions, summary and figure into a folder of their own in the run's.

    The noise of a row is that of the run's test rows, keyed by the row's number.
    """
    screen = Screen("lines")
    device = pipeline.resolve_device(dataclasses.replace(config.train, device=device_name))
    pipeline.set_up_torch(config.train, None, screen)
    spectra = open_spectra([Path(file)], -1, where="--data") if file else open_split(config.data, "test", screen.making)
    trained = pipeline.load_trained(folder / "best.ckpt", config, device)
    _check_pixels(spectra, trained.wave_P)
    scored = score.score(trained, spectra, "test", device)
    out = folder / (
        "evaluate-test" if file is None else f"evaluate-{Path(file).resolve().parent.name}-{Path(file).stem}"
    )
    out.mkdir(exist_ok=True)
    facts = {"run": folder.name, "data": file or "test set of the run", "noise_level": effective_level(config.noise)}
    score.write_scored(scored, out, split="test", summary={**facts, "test_rows": len(spectra)})
    score.draw_scored(scored, out / "figures" / "predictions.png")
    _print(scored, screen)
    screen.say(f"written: {out}")


def _check_pixels(spectra: Spectra, wave_P: np.ndarray) -> None:
    """Raise `DataError` unless the spectra lie on the pixels that the run was trained on."""
    if same_wavelengths(spectra.wave_P, wave_P):
        return
    what = f"has {spectra.num_pixels} pixels a spectrum, the run was trained on {len(wave_P)}"
    if spectra.num_pixels == len(wave_P):
        what = f"starts at {spectra.wave_P[0]:.2f} Å, the run's spectra at {wave_P[0]:.2f} Å, or is spaced otherwise"
    raise DataError(what, where=str(spectra.shards[0].path), remedy="resample it to the training set's pixels")


def _print(scored: score.Scored, screen: Screen) -> None:
    if len(scored.predictions) <= ROWS_PRINTED:
        screen.say(scored.predictions.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    for row in scored.by_snr:
        screen.say(
            f"S/N {row['snr_low']:g}-{row['snr_high']:g}: {row['rows']} rows, R² {row['r2']:.3f}, MAE {row['mae']:.3f}"
        )
    screen.say("  ".join(f"{name} {value:.4f}" for name, value in scored.scores.items()))


if __name__ == "__main__":
    sys.exit(main())
