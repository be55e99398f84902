"""YAML as studies have it: no key twice, numbers as Hydra reads them, settings that match a rule."""

import re
from typing import Any

import yaml

from specvit.config.suggestions import choices_by_name
from specvit.utils.files import check_aliases

Settings = dict[str, Any]
"""Overrides by key or group: `{"model/tokenizer": "sw", "opt.lr": 1e-4}`."""
EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
"""Numbers for Hydra, which YAML reads as text unless they have both a point and a sign."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys in a mapping, of which YAML itself takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Check the keys first."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def parsed(text: str) -> Any:
    """Return the content of YAML text; raises `yaml.YAMLError`, also for duplicate keys."""
    try:
        check_aliases(text)
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as problem:  # a number of thousands of digits, brackets in brackets in brackets
        raise yaml.YAMLError(str(problem)) from problem


def valued(plain: Any) -> Any:
    """Return a YAML value in which 1e-4 is a number, as Hydra reads it."""
    if isinstance(plain, str) and EXPONENT.fullmatch(plain):
        return float(plain)
    if isinstance(plain, list):
        return [valued(value) for value in plain]
    return {key: valued(value) for key, value in plain.items()} if isinstance(plain, dict) else plain


class Typed(str):
    """A value as typed on the command line, which Hydra parses unchanged."""


def matches(settings: Settings, rule: Settings) -> bool:
    """Return True if `settings` have each key of `rule` at its value, or at one of its list of values.

    Other spellings of a choice (`opt.type: sgd` for SGD) are the same value.
    """
    return all(
        key in settings
        and _choice(key, meaning(settings[key]))
        in [_choice(key, one) for one in (value if isinstance(value, list) else [value])]
        for key, value in rule.items()
    )


def _choice(key: str, value: Any) -> Any:
    """Return a value of a key, in the schema's spelling where it is one of the key's choices."""
    return choices_by_name(key).get(str(value).lower(), value)


def meaning(value: Any) -> Any:
    """Return a setting as a study's file would contain it."""
    if not isinstance(value, Typed):
        return value
    try:
        return valued(yaml.safe_load(value))
    except yaml.YAMLError:
        return str(value)
