"""Every rule of `specvit doctor` before a run, and how a measured value is judged. The table in docs/doctor.md is this.

Severity: a `fault` keeps a run from learning what it should, a `warning` usually does, a `note` differs from the
tuning checklist, whose tables successful runs contradict.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

FAULT, WARNING, NOTE = "fault", "warning", "note"
CHECKLIST, BY_DEFINITION, PRACTICE = "tuning checklist", "by definition", "common practice"


@dataclass(frozen=True)
class Rule:
    """One rule: a value from `low` to `high` is sound; None: unbounded. A value that is not finite never is sound."""

    id: str
    severity: str
    measures: str
    low: float | None
    high: float | None
    source: str
    remedy: str
    """Overrides to try, or what else to do."""

    @property
    def range(self) -> str:
        """The sound values, such as "0.1 to 10" or "at most 0"."""
        if self.low is None or self.high is None:
            return f"at most {self.high:g}" if self.low is None else f"at least {self.low:g}"
        return f"{self.low:g} to {self.high:g}"

    def is_kept_by(self, value: float) -> bool:
        """Return whether a value is sound."""
        above, below = self.low is None or value >= self.low, self.high is None or value <= self.high
        return math.isfinite(value) and above and below


@dataclass(frozen=True)
class Measure:
    """A measured value and the rule that it is held against."""

    rule: str
    value: float
    where: str = ""
    """The label, part, set or parameters that it is of; "" for the whole."""
    found_remedy: str = ""
    """What the measurement itself says to do; "" for the rule's remedy."""

    @property
    def remedy(self) -> str:
        """Overrides to try, or what else to do."""
        return self.found_remedy or RULES[self.rule].remedy

    @property
    def kept(self) -> bool:
        """Whether it keeps its rule."""
        return RULES[self.rule].is_kept_by(self.value)

    @property
    def name(self) -> str:
        """What was measured, and of what."""
        return RULES[self.rule].measures + (f" ({self.where})" if self.where else "")

    def facts(self) -> dict[str, Any]:
        """Return it as the document of `--json` has it."""
        rule = RULES[self.rule]
        place = {"rule": rule.id, "severity": rule.severity, "quantity": rule.measures, "where": self.where}
        return {
            **place,
            "value": self.value,
            "low": rule.low,
            "high": rule.high,
            "kept": self.kept,
            "remedy": self.remedy,
        }


def findings(measures: Iterable[Measure]) -> list[Measure]:
    """Return what breaks its rule, faults first."""
    order = (FAULT, WARNING, NOTE)
    return sorted((one for one in measures if not one.kept), key=lambda one: order.index(RULES[one.rule].severity))


STANDARD = "model.init=specvit data.flux_norm=standard"
FIRST_STEPS, SW_STUDY = "first steps of specvit runs", "why_sw_failed_small"

_NETWORK = (
    Rule(
        "finite",
        FAULT,
        "stages, losses and gradients that are not finite",
        None,
        0,
        BY_DEFINITION,
        "train.precision=32",
    ),
    Rule("no_gradient", FAULT, "parameters whose gradient is 0", None, 0, BY_DEFINITION, "let the loss depend on them"),
    Rule("gradient_norm", WARNING, "norm of the first gradient", 0.1, 30, FIRST_STEPS, "opt.warmup_epochs=1"),
    Rule("gradient_share", WARNING, "least gradient norm of a part, of the whole", 1e-4, None, FIRST_STEPS, STANDARD),
    Rule("token_scale", FAULT, "std of tokens over spectra / RMS of positions", 0.05, None, SW_STUDY, STANDARD),
    Rule("activation", WARNING, "greatest RMS of a stage", None, 100, FIRST_STEPS, "model.init=specvit"),
    Rule("prediction", WARNING, "std of predictions over spectra, normalised", 1e-4, None, SW_STUDY, STANDARD),
    Rule("first_loss", WARNING, "first loss above a constant's", -0.5, 1, PRACTICE, "data.label_norm=standard"),
    Rule("clip", WARNING, "first gradient / train.gradient_clip", None, 100, PRACTICE, "train.gradient_clip=0.5"),
    Rule("memory", FAULT, "memory of a step / free memory", None, 0.9, BY_DEFINITION, "train.checkpoint_blocks=true"),
    Rule(
        "unread", NOTE, "pixels that no token reads", None, 0, BY_DEFINITION, "model.patch_size that divides the pixels"
    ),
)
_DATA = (
    Rule("duplicates", FAULT, "spectra in two splits", None, 0, BY_DEFINITION, "give each spectrum to one split"),
    Rule(
        "label_spread", FAULT, "std of a label / its training std", 1e-3, None, BY_DEFINITION, "choose rows that vary"
    ),
    Rule("label_bounds", FAULT, "labels outside physical limits", None, 0, "docs/data.md", "correct these rows"),
    Rule("label_outlier", WARNING, "distance from the median / quartile range", None, 20, PRACTICE, "check these rows"),
    Rule(
        "label_range", WARNING, "share of labels outside the training range", None, 0.01, PRACTICE, "data.subset=random"
    ),
    Rule(
        "label_rounding",
        NOTE,
        "error by rounding / std of a label",
        None,
        0.05,
        "step / √12",
        "expect no smaller error",
    ),
    Rule("label_scale", WARNING, "RMS of the normalised label", 0.1, 3, PRACTICE, "data.label_norm=standard"),
    Rule("class_share", WARNING, "share of the rarest class", 0.01, None, PRACTICE, "other data.class_edges"),
    Rule("input_scale", WARNING, "std of the input over spectra", 0.3, 3, PRACTICE, "data.flux_norm=standard"),
    Rule("input_mean", WARNING, "RMS of the mean input / its std", None, 0.5, SW_STUDY, "data.flux_norm=standard"),
    Rule("masked", NOTE, "share of masked pixels", None, 0.05, BY_DEFINITION, "data.max_masked=0.05"),
    Rule("leak_snr", FAULT, "R² of a label from S/N alone", None, 0.3, PRACTICE, "make noise independent of the label"),
    Rule(
        "leak_error",
        NOTE,
        "R² of a label from errors alone",
        None,
        0.5,
        "docs/doctor.md",
        "never give errors to a model",
    ),
    Rule("linear_signal", WARNING, "R² of a label from flux by ridge", 0.02, None, PRACTICE, "check the rows' order"),
    Rule("drift", WARNING, "AUC, split against training rows", None, 0.6, "two-sample test", "data.subset=random"),
)
_TABLES = (
    Rule("lr_few_rows", NOTE, "opt.lr below 10,000 rows", 1e-4, 5e-4, CHECKLIST, "opt.lr=3e-4"),
    Rule("lr_many_rows", NOTE, "opt.lr above 100,000 rows", 1e-3, 5e-3, CHECKLIST, "opt.lr=1e-3"),
    Rule("decay_few_rows", NOTE, "opt.weight_decay below 10,000 rows", 1e-3, 5e-3, CHECKLIST, "opt.weight_decay=1e-3"),
    Rule(
        "decay_many_rows", NOTE, "opt.weight_decay above 100,000 rows", 1e-5, 1e-4, CHECKLIST, "opt.weight_decay=1e-4"
    ),
    Rule("dropout_few_rows", NOTE, "model.dropout below 10,000 rows", 0.3, 0.5, CHECKLIST, "model.dropout=0.3"),
    Rule("dropout_many_rows", NOTE, "model.dropout above 100,000 rows", 0, 0.1, CHECKLIST, "model.dropout=0.1"),
)
_TRAINING = (
    Rule("overfit", FAULT, "least R² of 32 rows after 300 steps", 0.99, None, CHECKLIST, STANDARD),
    Rule("overfit_classes", FAULT, "accuracy of 32 rows after 300 steps", 1, None, CHECKLIST, STANDARD),
    Rule(
        "lr_test",
        WARNING,
        "share of the best rate's fall of the loss that is missed",
        None,
        0.5,
        CHECKLIST,
        "the best rate",
    ),
)
RULES: dict[str, Rule] = {rule.id: rule for rule in (*_NETWORK, *_DATA, *_TABLES, *_TRAINING)}
"""By their ids."""
