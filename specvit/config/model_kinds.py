"""Which keys belong to which kind of model.

`model=ridge` may stand beside an experiment that chooses a size of the ViT: what files set for another kind is left
out. What the user types for another kind is refused.
"""

from collections.abc import Iterable
from typing import Any

from specvit.config.schema import MODELS
from specvit.utils.errors import ConfigError

VIT_GROUPS = ("model/size", "model/tokenizer")


def kinds_with(dotted: str) -> list[str]:
    """Return the kinds of model that have a key, such as `model.patch_size`; none for keys of other sections."""
    section, _, name = dotted.partition(".")
    return [kind for kind, cls in MODELS.items() if section == "model" and name in cls.__dataclass_fields__]


def refuse_foreign(dotted: str, kind: str | None) -> None:
    """Raise `ConfigError` for a key or group that other kinds of model have than `kind`; None: than was chosen."""
    kinds = ["vit"] if dotted in VIT_GROUPS else kinds_with(dotted)
    if not kinds or kind in kinds:
        return
    owners = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    what = f"belongs to model={owners}, not to " + (f"model={kind}" if kind else "the model that was chosen")
    raise ConfigError(what, where=dotted, remedy=f"leave it out, or use model={kinds[0]}")


def settle(resolved: dict[str, Any], overrides: Iterable[str]) -> None:
    """Leave only the keys of its own kind in `resolved["model"]`; raises `ConfigError` for `overrides` of others."""
    model = resolved.get("model")
    kind = model.get("kind") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in MODELS:
        return  # the builder says what is wrong
    for text in overrides:
        refuse_foreign(text.lstrip("+").partition("=")[0], kind)
    for name in list(model):
        if (owners := kinds_with(f"model.{name}")) and kind not in owners:
            del model[name]
