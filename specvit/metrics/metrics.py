"""The registry of metrics: what each is called, how it is computed, its unit, and which direction is better.

The same function of statistics (`metrics.statistics`) serves a set of rows and its bootstrap resamples. Formulas:
docs/scores.md. How to add a metric: CONTRIBUTING.md.

Metric names are flat and the same everywhere, with `train_`, `val_` or `test_` before them. With several labels the
plain name is the first label's, and each label has its own as `r2_T_eff`. The configuration reads this module, so it
does not import NumPy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from specvit.metrics.distributions import BY_LOSS

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """One score of a split."""

    name: str
    function: Callable[[Any], Any]
    """Takes the statistics of a set of rows, and returns a float, or those of R resamples, and returns (R,)."""
    title: str
    better: Better | None = None
    """None if neither direction is better (bias, slope): the metric is not monitored, and does not rank runs."""
    unit: Literal["", "label"] = ""
    needs: Literal["", "std", "intervals"] = ""
    """What of an `Uncertainty` (`metrics.distributions`) predictions must have: a std, or calibrated intervals."""

    @property
    def formats(self) -> tuple[str, str]:
        """Format of the value and of the ends of its interval. A label unit may be K or dex: 4 significant digits."""
        return (".4g", ".3g") if self.unit else (".3f", ".3f")


REGRESSION = {
    metric.name: metric
    for metric in (
        Metric("r2", lambda s: 1.0 - s.ratio(s.sse, s.sst), "R²", "higher"),
        Metric("mae", lambda s: s.mae, "MAE", "lower", "label"),
        Metric("rmse", lambda s: s.sqrt(s.mse), "RMSE", "lower", "label"),
        Metric("bias", lambda s: s.median_error(), "bias", unit="label"),
        Metric("p90", lambda s: s.absolute_error_quantile(0.9), "p90", "lower", "label"),
        Metric("slope", lambda s: s.ratio(s.sxy, s.sst), "slope"),
        Metric("mae_norm", lambda s: s.mae / s.errors.scale, "MAE / scale", "lower"),
        Metric("nll", lambda s: s.mean(s.errors.minus_log_density_N), "NLL", "lower", needs="std"),
        Metric("crps", lambda s: s.mean(s.errors.crps_N), "CRPS", "lower", "label", needs="std"),
        Metric("coverage_68", lambda s: s.mean(s.errors.inside_68_N), "coverage of 68 %", needs="intervals"),
        Metric("coverage_95", lambda s: s.mean(s.errors.inside_95_N), "coverage of 95 %", needs="intervals"),
        Metric("width", lambda s: s.mean(s.errors.width_N), "width", unit="label", needs="intervals"),
    )
}
CLASSIFICATION = {
    metric.name: metric
    for metric in (
        Metric("accuracy", lambda s: s.accuracy, "accuracy", "higher"),
        Metric("balanced_accuracy", lambda s: s.mean_recall, "balanced accuracy", "higher"),
    )
}
METRICS = {"reg": REGRESSION, "cls": CLASSIFICATION}
"""By `model.task_type`. Epochs and summaries also have the `loss`, which the training task computes."""
_BY_LENGTH = sorted((REGRESSION | CLASSIFICATION).values(), key=lambda metric: -len(metric.name))


def validation_metrics(task_type: str, loss: str) -> list[str]:
    """Return the names of the metrics that a run with a loss has at each validation, beside the loss."""
    has = ("", "std") if loss in BY_LOSS else ("",)
    return [name for name, metric in METRICS[task_type].items() if metric.needs in has]


def metric_of(name: str) -> Metric | None:
    """Return the metric of a flat name without its split (`mae_norm`, `r2_T_eff`); None for any other name."""
    return next((metric for metric in _BY_LENGTH if f"{name}_".startswith(f"{metric.name}_")), None)


def better_direction(name: str) -> Better | None:
    """Return which direction of a flat name without its split is better; None where neither is, or none is known."""
    if name == "loss":
        return "lower"
    metric = metric_of(name)
    return metric.better if metric else None


def title_of(name: str) -> str:
    """Return how people write a metric: `r2` -> R²; a name that is not a metric as it is."""
    metric = (REGRESSION | CLASSIFICATION).get(name)
    return metric.title if metric else name
