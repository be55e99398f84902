"""From a resolved plain dict to the frozen configuration of a run, or one error with all keys at fault.

`config.fields` checks single keys, `config.validate` the rules that span several.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from specvit.config.fields import Builder
from specvit.config.foreign_keys import refuse_other_purpose
from specvit.config.model_kinds import MODEL_KINDS, name_of_kind, refuse_foreign
from specvit.config.schema import Config, ModelConfig
from specvit.config.suggestions import suggest
from specvit.config.validate import check_together
from specvit.utils.errors import ConfigError, Faults


def build_config(plain: dict[str, Any]) -> Config:
    """Return the frozen config of a resolved plain dict; raises `ConfigError` naming the keys at fault."""
    config = _RunBuilder().build(Config, plain)
    check_together(config)
    return config


def to_plain(config: Any) -> dict[str, Any]:
    """Return a config dataclass as a plain dict (lists for tuples), ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


class _RunBuilder(Builder):
    """The section `model` is built as the class of its kind; unknown keys and values may be those of other files."""

    def build(self, cls: type, plain: Any, prefix: str = "", **given: Any) -> Any:
        """Return a section, see `Builder.build`."""
        if cls is ModelConfig and isinstance(plain, Mapping):
            plain = {**plain, "kind": name_of_kind(plain, f"{prefix}kind")}
            cls = MODEL_KINDS[plain["kind"]].config
        return super().build(cls, plain, prefix, **given)

    def value(self, raw: Any, kind: Any, rules: Mapping[str, Any], where: str) -> Any:
        """Return a value, see `Builder.value`; one of another file may have its own answer."""
        try:
            return super().value(raw, kind, rules, where)
        except ConfigError:
            refuse_other_purpose(where, raw, rules.get("choices", ()), where)
            raise

    def refuse(self, plain: dict[str, Any], name: str, prefix: str, keys: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for an unknown key, or for each key of an unknown section."""
        faults = Faults()
        for unknown in flatten({name: plain[name]}, prefix):
            with faults:
                refuse_foreign(unknown, plain.get("kind", "vit"))
                raise ConfigError("unknown key", where=unknown, remedy=suggest(unknown))
        faults.report()


def flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested section as one dict with dotted keys."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        values |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values
