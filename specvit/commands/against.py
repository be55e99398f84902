"""`specvit doctor CONFIG --against CONFIG`: the first steps of two runs side by side."""

import contextlib
import math
import shlex
import sys
from functools import partial
from typing import Any

from specvit.commands.answer import Answer, add_json, refuse_beside
from specvit.commands.entry import Parser
from specvit.commands.evaluate import read_config
from specvit.config.model_kinds import kind_of
from specvit.config.schema import Config
from specvit.study.find import find_run
from specvit.tracking.console import Console
from specvit.utils.errors import ConfigError
from specvit.utils.text import csv_lines, markdown_table, text_table

MARKED = 2.0
"""A ratio of at least this, or at most one over it, is marked."""
STYLES = ("text", "csv", "markdown")


def compare(words: list[str]) -> int | Answer:
    """Print or return gradients, losses and activation scales of two runs' first steps, for the same rows and noise."""
    own = Parser(prog="specvit doctor", add_help=False)
    own.add_argument("left", nargs="*")
    own.add_argument("--against", required=True)
    own.add_argument("--style", choices=STYLES)
    add_json(own)
    options = own.parse_intermixed_args(words)
    if options.json:
        refuse_beside(["--style"] if options.style else [])
    right = _split(options.against)
    if _is_run(options.left) and not _is_run(right):
        what = f"has overrides beside the run {options.left[0]}"
        raise ConfigError(what, where="--against", remedy="name two runs, or give overrides for both")
    configs = _config(options.left, []), _config(right, options.left)
    for config in configs:
        if not kind_of(config.model).is_network:
            what = f"model.kind={config.model.kind} is fitted in one go: it has no first step"
            raise ConfigError(what, where="--against", remedy="compare networks: model=vit or model=cnn")
    from specvit.run.first_step import first_steps  # torch, which a refusal does without

    exact, rows = options.style == "csv", [["quantity", "A", "B", "B / A"]]
    report = Console("none" if exact else "lines").show_generation
    ours, theirs = first_steps(*configs, report, partial(print, file=sys.stderr))
    train, typed = configs[0].train, " ".join(options.left)
    rows_of_step = train.batch_size * train.accumulate
    if options.json:
        quantities = [_quantity(name, ours.get(name), theirs.get(name)) for name in {**ours, **theirs}]
        facts = {"a": typed, "b": options.against, "rows": rows_of_step, "seed": train.seed, "quantities": quantities}
        return Answer("doctor.against", facts)
    rows += [[name, *_cells(ours.get(name), theirs.get(name), exact=exact)] for name in {**ours, **theirs}]
    if exact:
        print(csv_lines(rows), end="")
        return 0
    print(f"A: {typed or 'the default configuration'}")
    print(f"B: {options.against}" + ("" if _is_run(right) or _is_run(options.left) else ", added to A"))
    print(f"the first step on the same {rows_of_step} rows and noise, train.seed={train.seed}\n")
    table = markdown_table if options.style == "markdown" else text_table
    for line in table(rows):
        print(line)
    print("\n* twice as much or more, half or less")
    return 0


def _split(text: str) -> list[str]:
    """Return the words of `--against`; raises `ConfigError`."""
    words: list[str] = []
    with contextlib.suppress(ValueError):  # an open quotation mark
        words = shlex.split(text)
    if not words:
        remedy = "write overrides as one word, such as --against 'model/tokenizer=sw opt.lr=1e-4', or a run"
        raise ConfigError(f"{text!r} is neither a run nor overrides", where="--against", remedy=remedy)
    return words


def _is_run(words: list[str]) -> bool:
    return len(words) == 1 and "=" not in words[0]


def _config(words: list[str], before: list[str]) -> Config:
    """Return the configuration of a run, or of overrides that follow those of the other side."""
    if _is_run(words):
        return read_config(find_run(words[0])[0].path)
    from specvit.config.build import build_config
    from specvit.config.compose import compose
    from specvit.config.overrides import bracket_lists

    typed = {_key(word) for word in words}
    return build_config(compose(bracket_lists([*(word for word in before if _key(word) not in typed), *words])))


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _quantity(name: str, ours: float | None, theirs: float | None) -> dict[str, Any]:
    return {"quantity": name, "a": ours, "b": theirs, "ratio": _ratio(ours, theirs)}


def _cells(ours: float | None, theirs: float | None, *, exact: bool) -> list[str]:
    """Return both values and their ratio, as texts; what one lacks is -."""
    shown = [("-" if value is None else repr(value) if exact else f"{value:.4g}") for value in (ours, theirs)]
    if (ratio := _ratio(ours, theirs)) is None:
        return [*shown, "-"]
    mark = "" if exact or 1 / MARKED < ratio < MARKED else " *"
    return [*shown, (repr(ratio) if exact else f"{ratio:.2f}") + mark]


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    if ours is None or theirs is None or not ours or not math.isfinite(ours + theirs):
        return None
    return theirs / ours
