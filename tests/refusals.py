"""How tests of many refusals find the wrong ones."""

from collections.abc import Callable, Iterable
from typing import Any

from specvit.utils.errors import ConfigError


def refusal_of(ask: Callable[..., object], *arguments: Any) -> ConfigError:
    """Return the error by which `ask(*arguments)` is refused."""
    try:
        answer = ask(*arguments)
    except ConfigError as refusal:
        return refusal
    raise AssertionError(f"{arguments} is taken: {answer}")


def unlike(cases: Iterable[tuple[Any, str]], ask: Callable[[Any], object]) -> list[tuple[Any, str]]:
    """Return the `(argument, words)` for which `ask(argument)` is not refused in one line with these words."""
    refusals = [(argument, words, str(refusal_of(ask, argument))) for argument, words in cases]
    return [(argument, text) for argument, words, text in refusals if words not in text or "\n" in text]
