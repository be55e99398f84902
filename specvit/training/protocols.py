"""What the training loop requires of data, task, tracker and pruner, so that it imports none of them."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from specvit.utils.quantities import Batch


class TrainView(Protocol):
    """Training data: a pure function of the step."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps an epoch."""
        ...

    def batch(self, step: int) -> Batch:
        """Return the rows of one step, on the device."""
        ...


class EvalView(Protocol):
    """Validation or test data in row order."""

    def __len__(self) -> int:
        """Number of spectra."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Yield all rows once."""
        ...


class Task(Protocol):
    """Regression or classification: turns outputs into a loss and into scores."""

    def count(self, target: Any, /) -> Any:
        """Return how many labels of a step's rows are known, or None if all are."""
        ...

    def loss(self, output: Any, target: Any, count: Any = None, /) -> Any:
        """Return the mean loss of a batch, in float32; with a `count` the sum over known labels, over that count."""
        ...

    def sums(self, output: Any, target: Any, /) -> Any:
        """Return a float64 vector of sums over the batch's rows; sums of batches add up."""
        ...

    def running_scores(self, sums: Any, /) -> dict[str, float]:
        """Return training scores from the added-up sums."""
        ...

    def scores(self, output: Any, target: Any, /) -> dict[str, float]:
        """Return the scores of a whole split from its outputs and targets, as NumPy arrays."""
        ...


class Tracker(Protocol):
    """Receives metrics, such as the run folder's files and the console."""

    def metrics(self, row: dict[str, float]) -> None:
        """Receive a validation's row; `step` and `epoch` are in it."""
        ...

    def timing(self, row: dict[str, float]) -> None:
        """Receive the wall-clock times of a validation and of the steps before it."""
        ...

    def log(self, row: dict[str, float]) -> None:
        """Receive learning rate, running loss and gradient norms between two validations."""
        ...

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """Receive the step count after each step; `loss()` is the mean since the last validation and costs a sync."""
        ...


class Stop(Protocol):
    """Tells the loop to stop."""

    def requested(self) -> bool:
        """Return True from the first signal on."""
        ...


class Pruner(Protocol):
    """Compares a run with others of its study while it trains."""

    def prunes(self, row: dict[str, Any]) -> str:
        """Return why the run is to end after the validation of this row, or ""."""
        ...


class NoPruner:
    """Prunes nothing."""

    def prunes(self, row: dict[str, Any]) -> str:
        """Return ""."""
        return ""
