"""A sweep file of Weights & Biases as a study: grids, or a search by Optuna."""

import itertools
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from specvit.config.build import flatten
from specvit.config.compose import Composer
from specvit.config.fields import mapping
from specvit.config.schema import Config
from specvit.importing.experiment import (
    GROUPS,
    NO_FILE,
    as_yaml,
    checked_config,
    choose_groups,
    command_at,
    groups_of,
    header,
    not_stated,
    say_answers,
    write_new,
)
from specvit.importing.read_file import flat, resolved, shown
from specvit.importing.translate import find_entry, suggestion, translate
from specvit.importing.translation import ASKED, CHANGES, DROPPED, TAKEN, UNKNOWN, VERDICTS, Translation
from specvit.importing.values import is_number, metric_name, problem_with, rules_of, validation_metric
from specvit.metrics.metrics import better_direction
from specvit.study.grid import Point, points_of
from specvit.study.schema import SEED, Definition, definition_of
from specvit.study.yaml_schema import valued
from specvit.utils.errors import ConfigError

SPEC = {"value", "values", "min", "max", "distribution", "mu", "sigma", "q", "probabilities"}
"""Keys of a W&B parameter."""
SAMPLERS = {"random": "random", "bayes": "gp"}
"""By W&B's method; its `bayes` models the metric by a Gaussian process, as gp does."""
SWEEPS = "sweeps"
RANGES = ("", "uniform", "int_uniform", "q_uniform", "log_uniform", "q_log_uniform", "log_uniform_values")
RANGES += ("q_log_uniform_values", "inv_log_uniform_values")
"""Distributions between two numbers; log(1/x) is uniform where log(x) is."""
TRIALS = 20
MOST_POINTS = 2000
"""Of a grid, that are checked one by one."""


def is_sweep(plain: dict[str, Any]) -> bool:
    """Return True for a W&B sweep file."""
    parameters = plain.get("parameters")
    specs = parameters.values() if isinstance(parameters, dict) else ()
    return {"method", "parameters"} <= set(plain) or any(isinstance(one, dict) and SPEC & set(one) for one in specs)


def import_sweep(plain: dict[str, Any], source: str, out: Path, say: Callable[[str], None]) -> Translation:
    """Write a sweep as the study `out`, and `say` what became of its names and how to run it; raises `ConfigError`."""
    specs = _specs(mapping(plain["parameters"], "parameters"))
    constants = {name: spec["value"] for name, spec in specs.items() if "value" in spec}
    about = {name: plain[name] for name in ("project", "description") if name in plain}
    found = translate(resolved(constants | _arguments(plain.get("command")) | about))
    space = _space(found, {name: spec for name, spec in specs.items() if "value" not in spec})
    if not space:
        say_answers(found, source, say)
        raise ConfigError("has no parameter that varies here", where="parameters", remedy="import the file of one run")
    study = _study(found, plain, space)
    missing = dict.fromkeys(choose_groups(found), NO_FILE)
    say_answers(found, source, say)
    constant = {key: value for key, value in found.settings.items() if "." in key and key not in GROUPS}
    study = {"overrides": groups_of(found.settings) | constant, **study}
    definition = definition_of(yaml.safe_load(as_yaml(study)), out.stem, where=source)
    points = points_of(definition) if definition.grids else [Point(_example(definition), {})]
    points = [replace(point, settings={**point.settings, **missing}) for point in points]
    if rules := _impossible(points[:MOST_POINTS]):
        study["grids"][0]["forbid"] = rules
        say(f"points that cannot be runs, forbidden: {'; '.join(map(str, rules))}")
    if text := not_stated(checked_config(points[-1].settings), {**found.settings, **points[-1].settings}):
        say(text)
    write_new(out, header(found, source) + as_yaml(study), say)
    words = [f"sweeps={out.stem}", *(f"{key}={NO_FILE}" for key in missing), "sweep.dry_run=true"]
    say(f"look at it:  {command_at(out, SWEEPS, words)}")
    return found


def _specs(parameters: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Return W&B's parameters by dotted names; nested ones have their own `parameters`, constants a bare value."""
    found: dict[str, dict[str, Any]] = {}
    for name, spec in parameters.items():
        dotted = f"{prefix}{str(name).lstrip('+')}"
        if isinstance(spec, dict) and isinstance(spec.get("parameters"), dict):
            found |= _specs(spec["parameters"], f"{dotted}.")
        elif isinstance(spec, dict) and SPEC & set(spec):
            one = spec.get("values")
            found[dotted] = {"value": one[0]} if isinstance(one, list) and len(one) == 1 else spec
        else:
            found |= {inner: {"value": value} for inner, value in flat(spec, dotted).items()}
    return found


def _arguments(command: Any) -> dict[str, Any]:
    """Return the constants that a sweep's command line sets: `--epochs=5`, `--epochs 5`, `train.epochs=5`."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    pairs = [word.partition("=")[::2] for word in words if "=" in word]
    pairs += [(a, b) for a, b in itertools.pairwise(words) if a[:2] == "--" and "=" not in a and b[:1] not in "-$"]
    return {name.lstrip("-+"): valued(yaml.safe_load(value)) for name, value in pairs if value}


def _space(found: Translation, varied: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what varies by our keys; a key that is set twice is a fault."""
    keys = {entry.key for name in varied if (entry := find_entry(name))}
    space: dict[str, Any] = {}
    by_key: dict[str, str] = dict(found.said)
    for name, spec in varied.items():
        for dimension, values in _dimension(found, name, spec, keys).items():
            for key in dimension.split(", "):
                if key in by_key:
                    what = f"sets {key}, which {by_key[key]} sets, too"
                    found.faults.append(ConfigError(what, where=name, remedy="remove it from one of the two"))
                by_key[key] = name
            space[dimension] = values
    return space


def _dimension(found: Translation, name: str, spec: dict[str, Any], varied: set[str]) -> dict[str, Any]:
    """Return a parameter that varies as an axis, or a range of a search, by our key; {} with a line if it cannot be."""
    if isinstance(spec.get("values"), list):
        if spec.get("probabilities"):
            found.note(CHANGES, f"{name}.probabilities", spec["probabilities"], "all values are equally likely here")
        return _axis(found, name, spec["values"], varied)
    entry, kind = find_entry(name), str(spec.get("distribution", ""))
    key = entry.key if entry else ""
    if not key or not {int, float} & {rules_of(key)[0], *typing.get_args(rules_of(key)[0])}:
        text = f"{key} is not a number" if key else suggestion(name)
        found.note(UNKNOWN, name, spec, text)
        return {}
    if not all(is_number(spec.get(end)) for end in ("min", "max")) or kind not in RANGES:
        found.note(UNKNOWN, name, kind or spec, f"is not a range here; write {key}: {{low: A, high: B, log: true}}")
        return {}
    return {key: _range(found, name, key, spec)}


def _range(found: Translation, name: str, key: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the range of a search between two numbers."""
    low, high, kind = spec["min"], spec["max"], str(spec.get("distribution", ""))
    log, step = "log_uniform" in kind, spec.get("q")
    if log and not kind.endswith("values"):
        low, high = (float(f"{math.exp(power) if power < 700 else math.inf:.6g}") for power in sorted((low, high)))
    whole = rules_of(key)[0] is int and math.isfinite(high)
    dimension = {"low": round(low), "high": round(high)} if whole else {"low": low, "high": high}
    if log and step is not None:
        found.note(CHANGES, f"{name}.q", step, "a logarithmic range has no steps here")
    dimension |= {"log": True} if log else {} if step is None else {"step": step}
    dimension |= {"whole": True} if whole else {}
    for problem in filter(None, (problem_with(key, dimension[end]) for end in ("low", "high"))):
        found.faults.append(ConfigError(f"has too wide a range: {key} {problem}", where=name, remedy="narrow it"))
    found.lines[TAKEN].append((name, f"{key} from {low:g} to {high:g}{', logarithmic' * log}"))
    return dimension


def _axis(found: Translation, name: str, values: list[Any], varied: set[str]) -> dict[str, Any]:
    """Return the values of a parameter by our key, or by several that it sets together."""
    each = [translate(resolved({name: value})) for value in values]
    if not each or any(not one.said or one.lines[UNKNOWN] for one in each):
        lines = [(verdict, text) for one in each for verdict in reversed(VERDICTS) for _, text in one.lines[verdict]]
        verdict, text = max(lines, key=lambda line: VERDICTS.index(line[0]), default=(UNKNOWN, "has no value"))
        found.note(verdict, name, values, text)
        return {}
    rows = [
        {k: v for k, v in one.settings.items() if k in one.said or k not in varied | set(found.settings)}
        for one in each
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    usual = flatten(asdict(Config()))
    if missing := [key for row in rows for key in keys if key not in row and key not in usual]:
        found.note(UNKNOWN, name, values, f"only some of its values set {missing[0]}")
        return {}
    rows = [{key: row.get(key, usual.get(key)) for key in keys} for row in rows]
    found.lines[TAKEN].append((f"{name}={shown(name, values)}", ", ".join(keys)))
    own = ", ".join(GROUPS.get(key, key) for key in keys)
    return {own: [list(row.values()) if len(keys) > 1 else row[keys[0]] for row in rows]}


def _study(found: Translation, plain: dict[str, Any], space: dict[str, Any]) -> dict[str, Any]:
    """Return grids or a search over a space, and note what becomes of the other keys of the file."""
    method = plain.get("method", "grid")
    for name in plain:
        if name not in ("method", "metric", "parameters", "early_terminate", "run_cap", "project", "description"):
            found.note(DROPPED, name, plain[name], "`specvit train sweeps=NAME` runs a study, named by its file")
    if method != "grid":
        if method not in SAMPLERS:
            raise ConfigError(f"{method!r} is not one of grid, random, bayes", where="method", remedy="correct it")
        return {"search": _search(found, plain, space, SAMPLERS[method])}
    if ranges := [key for key, values in space.items() if isinstance(values, dict)]:
        raise ConfigError("has a range, from which a grid takes no values", where=ranges[0], remedy="list values")
    for name in [name for name in ("metric", "early_terminate", "run_cap") if name in plain]:
        text = "a grid runs every point to its end; `specvit sweep table` ranks them"
        found.note(DROPPED if name == "metric" else CHANGES, name, plain[name], text)
    axes = {key: values for key, values in space.items() if key != SEED}
    return {"grids": [{"axes": axes}], **({"seeds": space[SEED]} if SEED in space else {})}


def _search(found: Translation, plain: dict[str, Any], space: dict[str, Any], sampler: str) -> dict[str, Any]:
    given = plain.get("metric")
    metric: dict[str, Any] = given if isinstance(given, dict) else {"name": given}
    name = validation_metric(str(metric.get("name")))
    own = name or "val_r2"
    if not name:
        found.note(ASKED, "metric.name", metric.get("name"), f"is not a metric here; {own} is written")
    elif own != metric_name(str(metric["name"])):
        found.note(CHANGES, "metric.name", metric.get("name"), f"settings are chosen by validation: {own}")
    better = "minimize" if better_direction(own.removeprefix("val_")) == "lower" else "maximize"
    goal = metric.get("goal", better) if name else better
    if goal != better:
        found.note(ASKED, "metric.goal", goal, f"a better {own} is the other way; it is written as it is in the file")
    for key in metric:
        if key not in ("name", "goal"):
            found.note(CHANGES, f"metric.{key}", metric[key], "a search runs all its trials")
    trials = plain.get("run_cap") or TRIALS
    if not plain.get("run_cap"):
        text = f"how many trials? {TRIALS} are written (`wandb agent --count` has the number)"
        found.lines[ASKED].append(("(not stated)", text))
    search = {"space": space, "metrics": {own: goal}, "trials": trials, "sampler": sampler}
    return search | _pruner(found, plain.get("early_terminate"))


def _pruner(found: Translation, rule: Any) -> dict[str, Any]:
    if rule is None:
        return {}
    given: dict[str, Any] = rule if isinstance(rule, dict) else {}
    eta, least = given.get("eta", 3), given.get("min_iter")
    if least is None and is_number(given.get("max_iter")) and is_number(eta):
        least = max(1, int(given["max_iter"] // eta ** given.get("s", 2)))
    if given.get("type") != "hyperband" or not (isinstance(least, int) and is_number(eta)):
        found.note(UNKNOWN, "early_terminate", rule, "write search.pruner (docs/sweeps.md)")
        return {}
    found.note(TAKEN, "early_terminate", rule, "search.pruner hyperband, which counts epochs, not logged values")
    return {"pruner": {"name": "hyperband", "min_resource": least, "reduction_factor": int(eta)}}


def _example(definition: Definition) -> dict[str, Any]:
    """Return the settings of a search's trial, from the first choices and the lower ends."""
    settings = dict(definition.overrides)
    for dimension in definition.search.space if definition.search else ():
        settings |= dimension.settings(dimension.examples()[0])
    return settings


def _impossible(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return rules that forbid the points of a grid that cannot be runs, such as heads that do not divide the width."""
    rules: list[dict[str, Any]] = []
    composer = Composer()
    for point in points:
        try:
            checked_config(point.settings, composer)
        except ConfigError as fault:
            rule = {key: value for key, value in point.factors.items() if key in str(fault) and key != SEED}
            if not rule:
                raise
            rules += [rule] if rule not in rules else []
    return rules
