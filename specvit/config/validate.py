"""Rules that span several keys, checked before anything is opened or written. Single keys: `config.fields`."""

import itertools
import re

from specvit.config.durations import check_rhythm
from specvit.config.model_kinds import check_fits, kind_of
from specvit.config.schema import Config, DataConfig, effective_level
from specvit.config.tracking_uri import check_uri
from specvit.metrics.distributions import BY_LOSS
from specvit.metrics.metrics import METRICS, REGRESSION, better_direction, validation_metrics
from specvit.utils.errors import ConfigError
from specvit.utils.quantities import LABELS, NUM_PIXELS
from specvit.utils.text import nearest

MOST_NAME_BYTES = 80
"""Longest name of a label: a run folder's name holds two of them, which has 255 bytes at most."""


def check_together(config: Config) -> None:
    """Raise `ConfigError` for a combination that no run could use."""
    if config.data.makes:
        check_fits(config.model, NUM_PIXELS)
    kind_of(config.model).check(config.model, config)
    _check_data(config.data)
    _check_folds(config.data)
    _check_task(config)
    _check_drawn(config.data)
    _check_made(config)
    if kind_of(config.model).is_network:
        _check_training(config)
        _check_monitor(config)
    else:
        _check_estimator(config)
    check_uri(config.tracking.uri)
    name = config.tracking.name
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", name):
        what = f"{name!r} cannot be the start of a folder's name"
        raise ConfigError(what, where="tracking.name", remedy="use letters, digits and . _ = + -")


def smaller_step(rows: int, accumulate: int) -> str:
    """Return the remedy of a step that takes more than `rows` spectra."""
    return f"set train.batch_size={rows // accumulate} or less" if rows >= accumulate else "lower train.accumulate"


def _check_data(data: DataConfig) -> None:
    if len(set(data.param)) != len(data.param):
        raise ConfigError(f"names a label twice: {', '.join(data.param)}", where="data.param", remedy="name each once")
    for name in data.param:  # it becomes part of the run folder's name and of metrics, in MLflow, too
        if len(name.encode()) > MOST_NAME_BYTES or not re.fullmatch(r"\w([\w. -]*[\w-])?", name):
            shown = repr(name[:MOST_NAME_BYTES])
            what = f"{shown} cannot be part of folder and metric names: letters, digits, _ - . can"
            remedy = f"rename the column, as `specvit data convert FILE NEW --columns NAME={shown}` does"
            raise ConfigError(what, where="data.param", remedy=remedy)
    _check_score_names(data.param)
    for name in ("num_samples", "val_samples", "test_samples"):
        if getattr(data, name) == 0:
            raise ConfigError("is 0", where=f"data.{name}", remedy="give a number of rows, or -1 for all of them")
    if data.kind == "hdf5":
        for name in ("file_path",) if data.folds else ("file_path", "val_path", "test_path"):
            if getattr(data, name) is None:
                what = "is not set, and data=hdf5 reads it"
                remedy = f"set data.{name}=FILE, or use data=builtin for spectra made by specvit"
                raise ConfigError(what, where=f"data.{name}", remedy=remedy)
    edges = data.class_edges or ()
    if any(right <= left for left, right in itertools.pairwise(edges)):
        raise ConfigError(f"must rise, not {list(edges)}", where="data.class_edges", remedy="sort them, each once")


def _check_folds(data: DataConfig) -> None:
    """Refuse a fold without folds, too few folds, and other places for the stars that folds take from one set."""
    if not data.folds:
        if data.fold:
            what = f"is {data.fold}, but data.folds=0 means no cross-validation"
            raise ConfigError(what, where="data.fold", remedy="set data.folds=5, or leave it out")
        return
    if data.makes:
        what = f"is set, but data={data.kind} makes other stars for each split"
        raise ConfigError(what, where="data.folds", remedy="use data=hdf5 for your own files, or set it to 0")
    if data.folds < 3:
        what = f"is {data.folds}, but training, validation and test take a fold each"
        raise ConfigError(what, where="data.folds", remedy="set 3 or more, or 0 for no cross-validation")
    if data.fold >= data.folds:
        what = f"is {data.fold}, but data.folds={data.folds} are numbered from 0 to {data.folds - 1}"
        raise ConfigError(what, where="data.fold", remedy="choose one of them")
    for name in ("val_path", "test_path"):
        if getattr(data, name) is not None:
            what = f"is set, but data.folds={data.folds} takes all stars from data.file_path"
            raise ConfigError(what, where=f"data.{name}", remedy="leave it out, or set data.folds=0")


def _check_drawn(data: DataConfig) -> None:
    """Refuse how stars are drawn where they come from files."""
    drawn = (("max_redshift", "redshifts", 0), ("label_prior", "labels", "uniform"))
    for name, quantity, neutral in () if data.makes else drawn:
        if getattr(data, name) != neutral:
            what = f"is set, but spectra from files have the {quantity} that they have"
            remedy = f"use data=builtin or data=synth, or set it to {neutral}"
            raise ConfigError(what, where=f"data.{name}", remedy=remedy)


def _check_made(config: Config) -> None:
    """Refuse what does not go with spectra that specvit makes, and their keys where it makes none."""
    data = config.data
    if data.kind != "synth" and data.endless:
        what = f"is set, but data.kind={data.kind} has as many spectra as there are"
        moved = f" data.max_redshift={data.max_redshift:g}" if data.max_redshift else ""
        remedy = f"use data=synth{moved}, or set data.endless=false"
        raise ConfigError(what, where="data.endless", remedy=remedy)
    if not data.makes:
        return
    for name in ("num_samples", "val_samples", "test_samples"):
        if getattr(data, name) < 0:
            what = "is -1 (all rows), but built-in spectra are made on demand without end"
            endless = data.kind == "synth" and name == "num_samples"
            remedy = "give a number of rows" + (" an epoch, and data.endless=true for ever new ones" if endless else "")
            raise ConfigError(what, where=f"data.{name}", remedy=remedy)
    if data.observed is not None and data.val_path is None and data.test_path is None:
        what = "is set, but every spectrum is made by specvit, and none is observed"
        raise ConfigError(what, where="data.observed", remedy="leave it out: it is for spectra from files")
    if data.file_path is not None:
        what = f"is set, but data={data.kind} makes its own training spectra"
        raise ConfigError(what, where="data.file_path", remedy="use data=hdf5 for your own files")
    if data.subset == "random":
        what = "is random, but every built-in row is a random star already"
        raise ConfigError(what, where="data.subset", remedy="set data.subset=first")
    labels = [name for name in LABELS if name != "snr" or data.kind != "synth"]
    if unknown := [name for name in data.param if name not in LABELS]:
        what = f"names {unknown[0]!r}, but stars that specvit makes have {', '.join(labels)}"
        raise ConfigError(what, where="data.param", remedy=f"{nearest(unknown[0], labels)}choose one of them")
    if "redshift" in data.param and not data.max_redshift:
        what = "names redshift, which is 0 for every star"
        raise ConfigError(what, where="data.param", remedy="set data.max_redshift=0.001")
    if config.model.task_type == "cls" and not data.class_edges:
        what = "is not set, and no label of a star that specvit makes is a class number"
        raise ConfigError(what, where="data.class_edges", remedy="set data.class_edges=[...] to cut it into classes")
    if data.kind == "synth":
        _check_synth(config)


def _check_synth(config: Config) -> None:
    """Refuse what needs the training spectra before they are made, or stored."""
    data = config.data
    if data.storage != "float32":
        what = f"is {data.storage}, but data=synth stores no training spectra"
        raise ConfigError(what, where="data.storage", remedy="set data.storage=float32")
    if data.order != "global":
        what = f"is {data.order}, but data=synth reads no files, for which that order is"
        raise ConfigError(what, where="data.order", remedy="set data.order=global")
    if data.endless and config.train.epochs == 1:
        what = "is set, but the one epoch has no later one with other stars"
        raise ConfigError(what, where="data.endless", remedy="set data.endless=false, or more train.epochs")
    if "snr" in data.param:
        what = "names snr, which is measured on a spectrum, and data=synth makes none before it is needed"
        raise ConfigError(what, where="data.param", remedy="use data=builtin, or other labels")


def _check_score_names(labels: tuple[str, ...]) -> None:
    """Refuse labels two of whose scores would have one name: with labels x and x_low, r2_x_low means two things."""
    names = [f"{metric}{label}" for metric in REGRESSION for label in ("", *(f"_{name}" for name in labels))]
    names = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice and len(labels) > 1:
        what = f"{', '.join(labels)} would give two scores the name {twice}"
        raise ConfigError(what, where="data.param", remedy="rename a column, or learn these labels in two runs")


def _check_task(config: Config) -> None:
    classifies = config.model.task_type == "cls"
    if classifies != (config.loss.name == "ce"):
        what = f"{config.loss.name} does not go with model.task_type={config.model.task_type}"
        remedy = "use loss=ce" if classifies else "use loss=mse, l1, huber, gaussian or laplace"
        raise ConfigError(what, where="loss.name", remedy=remedy)
    if classifies and len(config.data.param) != 1:
        raise ConfigError("classification takes one label", where="data.param", remedy="name one")
    if config.data.class_edges and not classifies:
        remedy = "set model.task_type=cls loss=ce, or data.class_edges=null"
        raise ConfigError("is set, but the task is regression", where="data.class_edges", remedy=remedy)


def _check_training(config: Config) -> None:
    train, opt = config.train, config.opt
    step_rows = train.batch_size * train.accumulate
    if 0 < config.data.num_samples < step_rows:
        what = f"one step takes {step_rows} spectra but data.num_samples={config.data.num_samples}"
        raise ConfigError(
            what, where="train.batch_size", remedy=smaller_step(config.data.num_samples, train.accumulate)
        )
    check_rhythm(train.epochs, train.eval_every, train.log_every)
    if opt.warmup_epochs >= train.epochs:
        what = f"is {opt.warmup_epochs:g}, not less than train.epochs={train.epochs}"
        raise ConfigError(what, where="opt.warmup_epochs", remedy="set opt.warmup_epochs=0, or more train.epochs")
    if opt.lr_sch in ("cosine", "onecycle") and opt.eta_min > opt.lr:
        what = f"is {opt.eta_min:g}, above opt.lr={opt.lr:g}"
        raise ConfigError(what, where="opt.eta_min", remedy=f"set opt.eta_min={opt.lr / 100:g} or less")
    if train.compile and train.checkpoint_blocks:
        raise ConfigError("cannot be combined with train.checkpoint_blocks", where="train.compile", remedy="drop one")


def _check_estimator(config: Config) -> None:
    """Refuse settings without meaning for a model that is fitted in one go."""
    name, kind = config.model.kind, kind_of(config.model)
    if "loss" not in kind.identity_sections and config.loss.name != "mse":
        what = f"is {config.loss.name}, but model={name} minimises squared errors"
        raise ConfigError(what, where="loss.name", remedy="use loss=mse")
    if config.loss.name in BY_LOSS:
        what = f"is {config.loss.name}, but model={name} predicts one number a label, without a scale"
        raise ConfigError(what, where="loss.name", remedy="use loss=mse, l1 or huber, or model=vit or cnn")
    if kind.needs_sigma and effective_level(config.noise) == 0:
        what = f"is 0, and model={name} weights pixels by their noise"
        raise ConfigError(what, where="noise.noise_level", remedy="set it above 0, and noise.noise_type to a noise")
    if config.data.endless:
        what = f"is set, but model={name} does not train in epochs"
        raise ConfigError(what, where="data.endless", remedy="set data.endless=false")
    if config.train.init_from:
        what = f"is set, but model={name} has no weights to start from"
        raise ConfigError(what, where="train.init_from", remedy="leave it out")


def _check_monitor(config: Config) -> None:
    stopping = config.train.early_stopping
    where, task_type, loss = "train.early_stopping.monitor", config.model.task_type, config.loss.name
    allowed = ["val_loss", *(f"val_{name}" for name in validation_metrics(task_type, loss) if better_direction(name))]
    metric = METRICS[task_type].get(stopping.monitor.removeprefix("val_"))
    if metric and metric.needs == "std" and loss not in BY_LOSS:
        what = f"{stopping.monitor} is a score of predicted standard deviations, and loss={loss} has none"
        raise ConfigError(what, where=where, remedy=f"use loss={' or '.join(BY_LOSS)}, or monitor val_loss")
    if stopping.monitor not in allowed:
        what = f"{stopping.monitor!r} is not one of {', '.join(allowed)}"
        remedy = nearest(stopping.monitor, allowed).strip()
        if "val_accuracy" in allowed:
            remedy = f"set {where}=val_accuracy train.early_stopping.mode=max"
        raise ConfigError(what, where=where, remedy=remedy)
    right = "min" if better_direction(stopping.monitor.removeprefix("val_")) == "lower" else "max"
    if stopping.mode != right:
        what = f"is {stopping.mode}, but a better {stopping.monitor} is a {'lower' if right == 'min' else 'higher'} one"
        raise ConfigError(what, where="train.early_stopping.mode", remedy=f"set train.early_stopping.mode={right}")
