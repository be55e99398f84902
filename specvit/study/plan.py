"""A study's trials before they run: every point composed, checked and named, so that a typo costs no GPU-hour."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from specvit.config.build import build_config, to_plain
from specvit.config.compose import compose as compose_config
from specvit.config.conf_files import hydra_loader
from specvit.config.folders import conf_dir, conf_folders
from specvit.config.model_kinds import kind_of
from specvit.config.overrides import check_override, parse
from specvit.config.schema import Config
from specvit.metrics.metrics import validation_metrics
from specvit.run.context import locate
from specvit.run_folder.folder import RunFolder
from specvit.study.grid import Point, as_overrides, as_text, points_of, refuse_varied
from specvit.study.schema import Definition
from specvit.study.search_space import FORBIDDEN, Search
from specvit.study.store import StudyFolder, Trial
from specvit.study.yaml_schema import Settings, matches
from specvit.utils import provenance
from specvit.utils.errors import ConfigError, DataError, SpecvitError
from specvit.utils.files import copy_folders
from specvit.utils.text import counted, nearest, short_value

SHOWN_FAULTS = 5
EPOCHS, WARMUP = "train.epochs", "opt.warmup_epochs"
TRIED_POINTS = 50
"""Points of a search that are tried before its space counts as empty."""
Composer = Callable[[Sequence[str]], dict[str, Any]]


def plan_grid(
    definition: Definition,
    typed: Settings,
    study: StudyFolder,
    compose: Composer = compose_config,
    notes: list[str] | None = None,
) -> list[Trial]:
    """Return the trials of a study's grids, in order; points that are the same run become one trial.

    A sentence on each warm-up that was shortened is added to `notes`.
    Raises `ConfigError` that names every kind of fault among them, before anything is written.
    """
    _check_rules(definition)
    trials: dict[str, Trial] = {}
    faults: list[tuple[Point, SpecvitError]] = []
    known: dict[str, Any] = {}
    for point in points_of(definition, typed):
        try:
            fitting = with_shorter_warmup(point, typed, compose, notes)
            trial = make_trial(fitting, len(trials), study, compose, known)
            trials.setdefault(trial.run_id, trial)
        except SpecvitError as fault:
            faults.append((point, fault))
    if faults:
        raise _all_faults(faults, len(trials) + len(faults))
    return list(trials.values())


def _check_rules(definition: Definition) -> None:
    """Raise `ConfigError` for a condition on a key or choice that is unknown: it would never hold."""
    search = definition.search
    rules = [rule for grid in definition.grids for rule in (*grid.forbid, *(axis.when for axis in grid.axes))]
    rules += [*search.forbid, *(dimension.when for dimension in search.space)] if search else []
    values = {
        (key, as_text(v)) for rule in rules for key, vs in rule.items() for v in (vs if isinstance(vs, list) else [vs])
    }
    with hydra_loader() as loader:
        for key, text in sorted(values):
            check_override(parse(f"{key}={text}"), loader)


def try_space(
    definition: Definition,
    typed: Settings,
    study: StudyFolder,
    compose: Composer,
    notes: list[str] | None = None,
) -> Trial:
    """Return one point of a search as an unrecorded trial, after composing every choice; `notes` as in `plan_grid`.

    Raises `ConfigError` for a key or choice that is unknown, or where no point at all can be a run.
    """
    search = definition.search
    assert search is not None
    _check_rules(definition)
    base = {**definition.overrides, **typed}
    refuse_varied(typed, {key for dimension in search.space for key in dimension.keys})
    for dimension in search.space:
        for value in dimension.examples():
            compose(as_overrides({**base, **dimension.settings(value)}))
    fault: SpecvitError | None = None
    for number in range(TRIED_POINTS):
        start = search.start[number] if number < len(search.start) else {}
        settings: Settings = {}
        for position, dimension in enumerate(search.space):
            if matches(settings, dimension.when):
                examples = dimension.examples()
                value = examples[(number * (position + 1) + number // 7) % len(examples)]
                settings |= dimension.settings(start.get(dimension.key, value))
        try:
            if any(matches({**base, **settings}, rule) for rule in search.forbid):
                raise ConfigError(FORBIDDEN, where=", ".join(settings))
            point = with_shorter_warmup(Point({**base, **settings}, settings), typed, compose, notes)
            trial = make_trial(point, 0, study, compose)
        except SpecvitError as problem:
            fault = fault or problem
        else:
            _check_metrics(search, trial.config)
            return trial
    assert fault is not None
    raise fault


def _check_metrics(search: Search, config: dict[str, Any]) -> None:
    """Raise `ConfigError` for a metric of the test set, that no trial would have, or by which none could be pruned."""
    names = ("loss", *validation_metrics(config["model"]["task_type"], config["loss"]["name"]))
    labels = ("", *(f"_{label}" for label in config["data"]["param"]))
    of_epochs = ["train_loss", *(f"val_{name}{label}" for name in names for label in labels)]
    of_runs = ["train_seconds", "epochs", "best_epoch"]
    known = of_epochs if search.pruner != "none" else [*of_epochs, *of_runs]
    for metric in search.metrics:
        if metric.startswith("test_"):
            what = "would choose settings by the test rows, which then tell nothing of unseen spectra"
            remedy = f"search by {metric.replace('test_', 'val_', 1)}"
            raise ConfigError(what, where=f"search.metrics.{metric}", remedy=remedy)
        if metric not in known:
            what = "is a metric that no epoch has, to prune by" if metric in of_runs else "is a metric that no run has"
            remedy = f"{nearest(metric, known)}docs/scores.md lists them"
            raise ConfigError(what, where=f"search.metrics.{metric}", remedy=remedy)


def with_shorter_warmup(point: Point, typed: Settings, compose: Composer, notes: list[str] | None = None) -> Point:
    """Return a point whose warm-up keeps its share of the epochs, where the typed `train.epochs` leave no room for it.

    Also where they replace epochs that an axis varies. A warm-up that is typed, or varied by itself, stays as it is.
    """
    if EPOCHS not in typed or WARMUP in typed or (WARMUP in point.factors and EPOCHS not in point.replaced):
        return point
    planned = {key: value for key, value in point.settings.items() if key != EPOCHS}
    planned |= {key: value for key, value in point.replaced.items() if key == EPOCHS}
    short, long = (compose(as_overrides(settings)) for settings in (point.settings, planned))
    numbers = short["opt"]["warmup_epochs"], short["train"]["epochs"], long["train"]["epochs"]
    if not (kind_of(short["model"]).is_network and all(isinstance(number, int | float) for number in numbers)):
        return point
    warmup, epochs, of_epochs = numbers
    if (warmup < epochs and EPOCHS not in point.replaced) or not 0 < warmup < of_epochs:
        return point
    shorter = float(f"{warmup * epochs / of_epochs:.4g}")
    if notes is not None:
        notes.append(
            f"train.epochs={epochs} shortens opt.warmup_epochs={warmup:g} of {of_epochs} epochs to {shorter:g}"
        )
    factors = point.factors | ({WARMUP: shorter} if WARMUP in point.factors else {})
    return replace(point, settings={**point.settings, WARMUP: shorter}, factors=factors)


def make_trial(
    point: Point, number: int, study: StudyFolder, compose: Composer, known: dict[str, Any] | None = None
) -> Trial:
    """Return the trial of a point, with its configuration frozen; `known` keeps what runs on the same data share."""
    config = build_config(compose(as_overrides(point.settings)))
    setting = label_of(point.factors, point.cell)
    shown = {"study": study.name, "cell": point.cell, "setting": setting}
    tags = config.tracking.tags | {name: text for name, text in shown.items() if text}
    config = replace(config, tracking=replace(config.tracking, tags=tags))
    folder = _locate(config, known if known is not None else {})
    return Trial(
        number=number,
        name=folder.path.name,
        factors=point.factors,
        cell=point.cell,
        config=to_plain(config),
        run_id=folder.run_id,
        folder=str(folder.path.absolute()),
    )


def label_of(factors: Settings, cell: str = "") -> str:
    """Return the cell and factors of a trial in short: `old, tokenizer=sw, lr=0.00606, seed=43`."""
    texts = {key: short_value(value) if isinstance(value, float) else as_text(value) for key, value in factors.items()}
    parts = [f"{key.rpartition('.')[2].rpartition('/')[2]}={text}" for key, text in texts.items()]
    return ", ".join([cell] * bool(cell) + parts)


def take_snapshot(study: StudyFolder) -> None:
    """Copy the configuration files into the study, so that later edits change none of its trials."""
    copy_folders({folder: "" for folder in reversed(conf_folders())}, study.file("conf"))


def code_folder(study: StudyFolder) -> Path:
    """Return the path in a study for a copy of the present code."""
    return study.file("code") / provenance.made_by()["code"]


def take_code(study: StudyFolder) -> None:
    """Copy specvit's code and commit into the study, so that jobs that wait for days run the present version."""
    target, source = code_folder(study), provenance.SOURCE
    if (target / provenance.COMMIT_FILE).exists():
        return
    bundled = conf_dir().parent
    copy_folders(
        {source: source.name, **{bundled / name: f"{source.name}/{name}" for name in ("conf", "sweeps")}}, target
    )
    (target / provenance.COMMIT_FILE).write_text(f"{provenance.commit() or ''}\n")


def _locate(config: Config, known: dict[str, Any]) -> RunFolder:
    """Return the folder of a run. Opening its data takes most of the time, and does not depend on the network."""
    parts = to_plain(config)
    train = {name: parts["train"][name] for name in ("batch_size", "accumulate", "early_stopping")}
    key = json.dumps([parts["data"], train, parts["model"]["task_type"]], sort_keys=True)
    located = locate(config, lambda split, done, total: None, splits=known.get(key))
    known[key] = located.splits
    return located.folder


def _all_faults(faults: list[tuple[Point, SpecvitError]], total: int) -> SpecvitError:
    """Return one error for all faulty points; equal sentences appear once."""
    if len({str(fault) for _, fault in faults}) == 1 and len(faults) == total:
        return faults[0][1]
    sentences: dict[str, list[str]] = {}
    for point, fault in faults:
        sentences.setdefault(str(fault).rstrip("."), []).append(label_of(point.factors, point.cell))
    shown = [
        f"{sentence} ({labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''})"
        for sentence, labels in list(sentences.items())[:SHOWN_FAULTS]
    ]
    more = f"; {counted(len(sentences) - SHOWN_FAULTS, 'more fault')}" if len(sentences) > SHOWN_FAULTS else ""
    kind = DataError if isinstance(faults[0][1], DataError) else ConfigError
    return kind(f"{len(faults)} of {total} runs cannot be made: {'; '.join(shown)}{more}", remedy="nothing was started")


def relative(path: Path) -> str:
    """Return a path as a user would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
