"""`python -m specvit.evaluate RUN [--data FILE] [--noise LEVELS] [--split val]`: score a finished run.

Statistics of labels and flux are those of the training set, from the checkpoint; nothing is fitted here.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specvit.commands.answer import Answer, add_json
from specvit.commands.entry import Parser, user_facing
from specvit.config.model_kinds import kind_of
from specvit.config.schema import Config, NoiseConfig, effective_level
from specvit.metrics.format import bin_lines, rest_line, row_line
from specvit.run_folder.folder import DONE, RunFolder
from specvit.run_folder.identity import read_config
from specvit.study.find import find_run
from specvit.tracking.console import Console
from specvit.utils.errors import ConfigError, DataError, FolderError
from specvit.utils.files import finite, write_text
from specvit.utils.text import csv_text

if TYPE_CHECKING:
    from specvit.data.views import SpectraView
    from specvit.run.evaluation import Row, Scored

ROWS_PRINTED = 50
"""Largest set of which every row is printed."""


@user_facing
def main(arguments: list[str] | None = None) -> int | Answer:
    """Score the best checkpoint of a run folder on its own test set or on any file, row by row."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    levels = read_levels(options.noise) if options.noise is not None else []
    run = find_run(options.run)[0]
    config = read_config(run.path)
    if kind_of(config.model).needs_sigma and 0 in levels:
        what = f"0 is among them, and model={config.model.kind} weights pixels by their noise"
        raise ConfigError(what, where="--noise", remedy="leave 0 out")
    if not run.file("best.ckpt").exists():
        remedy = "run its training command again to finish it"
        raise FolderError("has no trained model yet", where=str(run.path), remedy=remedy)
    if options.split == "val":
        _check_val(run, options)
    facts = _evaluate(config, run, options.data, levels, options.device, options.split)
    return Answer("evaluate", facts) if options.json else 0


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="specvit evaluate", description=main.__doc__)
    parser.add_argument("run", help="a run's folder, name or hash")
    parser.add_argument("--data", metavar="FILE", help="an HDF5 file to score instead of the run's test set")
    what = "score its validation set, and keep the predictions that calibrate the error bars of `specvit predict`"
    parser.add_argument("--split", choices=("test", "val"), default="test", help=f"val: {what} (default: test)")
    parser.add_argument("--noise", metavar="LEVELS", help="noise levels, such as 0,0.5,1,2 (default: the run's own)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_json(parser)
    return parser


def read_levels(text: str) -> list[float]:
    """Return noise levels from "0,0.5,1", each once; raises `ConfigError`."""
    levels = []
    for part in text.split(","):
        try:
            level = float(part)
        except ValueError:
            level = -1.0
        if not 0 <= level < float("inf"):
            what = f"{part.strip()!r} is not a noise level"
            raise ConfigError(what, where="--noise", remedy="give numbers of 0 or more between commas, such as 0,0.5,1")
        levels.append(abs(level))  # -0 is 0
    return list(dict.fromkeys(levels))


def _check_val(run: RunFolder, options: Any) -> None:
    """Raise `SpecvitError` unless the run is finished and its own validation rows are asked for."""
    for name in ("data", "noise"):
        if getattr(options, name) is not None:
            what = "does not go with --split val, the run's own validation rows with their noise"
            raise ConfigError(what, where=f"--{name}", remedy="leave one of them out")
    if (state := run.state()) not in DONE:
        what = f"has not finished ({state or 'unknown state'}), and its weights may change"
        raise FolderError(what, where=str(run.path), remedy="run its training command again to finish it")


def _check_same_rows(run: RunFolder, config: Config, spectra: "SpectraView") -> None:
    """Raise `DataError` if the validation rows are not those that the run had."""
    from specvit.data.splits import split_manifest

    if split_manifest(config.data, "val", spectra) != run.about()["identity"]["data"]["val"]:
        remedy = "put the spectra back that the run was validated on"
        raise DataError("is not what it was", where="data.val_path", remedy=remedy)


def _evaluate(
    config: Config, run: RunFolder, file: str | None, levels: list[float], device_name: str, split: str
) -> dict[str, Any]:
    """Score at each level (none named: at the run's own) into a folder of its own; several also make one table.

    Returns what was scored, and where it is written.

    A row's unit noise is that of the run's test rows, keyed by the row's number: the same at every level.
    """
    from specvit.data.labels import LabelScaler
    from specvit.data.noise import added_noise
    from specvit.data.splits import check_masked, open_split
    from specvit.data.views import open_spectra
    from specvit.run import calibration, evaluation
    from specvit.run.predictor import load_predictor
    from specvit.training.device import resolve_device, set_up_torch

    console, folder = Console("lines"), run.path
    device = resolve_device(device_name, "--device")
    set_up_torch(config.train, None, console.say, device)
    spectra = (
        open_spectra([Path(file)], -1, where="--data", observed=config.data.observed)
        if file
        else open_split(config.data, split, console.show_generation)
    )
    trained = load_predictor(folder / "best.ckpt", config, device, run.run_id)
    trained.check_pixels(spectra)
    if split == "val":
        _check_same_rows(run, config, spectra)
        calibration.write_val_predictions(trained, spectra, folder, device)
    check_masked(spectra, config.data.max_masked)
    _say_notes(config, spectra, file, levels, console.say)
    name = f"evaluate-{split}" if file is None else f"evaluate-{Path(file).resolve().parent.name}-{Path(file).stem}"
    residuals = () if split == "val" else calibration.read_residuals(trained, run)
    if split == "test" and not residuals and isinstance(trained.coder, LabelScaler):
        console.say(f"note: no coverage of error bars: {calibration.no_predictions(run, 'val')}")
    table, documents = [], []
    for level in levels or [None]:
        noise = config.noise if level is None else at_level(config.noise, level)
        noisy = dataclasses.replace(trained, config=dataclasses.replace(config, noise=noise))
        scored = evaluation.score(noisy, spectra, split, device, residuals)
        out = folder / (name if level is None else f"{name}-noise{_short(level)}")
        out.mkdir(exist_ok=True)
        added = effective_level(added_noise(spectra, noise))
        facts: dict[str, Any] = {"run": folder.name, "data": file or f"{split} set of the run", "noise_level": added}
        facts[f"{split}_rows"] = len(spectra)
        summary = evaluation.write_scored(scored, out, split=split, summary=facts)
        documents.append({"folder": str(out), "summary": summary})
        evaluation.draw_scored(scored, out / "figures", console.say)
        _print(scored, added, console, whole=len(levels) < 2)
        console.say(f"written: {out}")
        table += [{"noise_level": added, **row} for row in scored.rows]
    by_noise = folder / f"{name}-by_noise" / "by_noise.csv" if len(levels) > 1 else None
    if by_noise:
        _write_table(table, by_noise, console)
    return {"run": folder.name, "run_id": run.run_id, "levels": documents, "table": by_noise and str(by_noise)}


def _say_notes(
    config: Config, spectra: "SpectraView", file: str | None, levels: list[float], say: Callable[[str], None]
) -> None:
    """Say what a reader of the scores should know of the spectra; raises `ConfigError` for noise without effect."""
    from specvit.data.folds import of_known_stars
    from specvit.data.splits import masked_words, missing_labels
    from specvit.data.views import Spectra

    if masked := masked_words(spectra):
        say(f"note: masked pixels, in which the model sees the mean spectrum: {masked} rows")
    if file and isinstance(spectra, Spectra) and (known := of_known_stars(spectra, config.data)):
        what = f"{known:,} of {len(spectra):,} spectra are of stars that this fold trained or validated on"
        say(f"note: {what}; without --data its own test stars are scored")
    if spectra.observed and config.noise.on_observed == "none":
        if levels:
            what = "has no effect: the flux is marked as observed and gets no further noise"
            raise ConfigError(what, where="--noise", remedy="leave it out")
        say("note: the flux is observed: it is not clipped at 0, and no noise is added")
    if missing := missing_labels(spectra, config.data.param):
        say(f"note: missing labels (NaN) are left out of the scores: {missing} rows")


def at_level(noise: NoiseConfig, level: float) -> NoiseConfig:
    """Return the noise at another level; for a run without noise, heteroscedastic noise of the pixels' errors."""
    kind = "heteroscedastic" if noise.noise_type == "none" else noise.noise_type
    return dataclasses.replace(noise, noise_level=level, noise_type=kind)


def _short(level: float) -> str:
    """Return a level as in a folder's name, such as 0.5, 1 or 2e-05, distinct for each level."""
    return repr(level).removesuffix(".0")


def _write_table(rows: "list[Row]", path: Path, console: Console) -> None:
    """Write one line a level and label."""
    path.parent.mkdir(exist_ok=True)
    write_text(path, csv_text(finite(rows)))
    console.say(f"all levels: {path}")


def _print(scored: "Scored", level: float, console: Console, *, whole: bool) -> None:
    """Print the scores of one noise level; `whole` adds the rows of a small set and the bins."""
    if whole and len(scored.predictions) <= ROWS_PRINTED:
        console.say(scored.predictions.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for row in scored.rows:
        console.say(f"noise {_short(level)}: {row_line(row)}")
        console.say(f"  {rest_line(row)}")
    for rows, quantity in ((scored.by_snr, "S/N"), (scored.by_mag, "mag")) if whole else ():
        for line in bin_lines(rows, quantity):
            console.say(line)
