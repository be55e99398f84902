"""Gradient-boosted trees on pixels, by LightGBM. Legend: B rows, P pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specvit.config.schema import LightGBMConfig, LossConfig
from specvit.data.batches import EvalData

BIN_ROWS = 10_000
"""Rows from which LightGBM takes the limits of its bins; it holds them in float64."""
READ_ROWS = 1024
LOOK_TREES = 10
LEAST_GAIN = 1e-4
"""Part of the validation loss by which it must fall to count as better."""
OBJECTIVES = {"mse": "regression", "l1": "regression_l1", "huber": "huber"}


class Trees(nn.Module):
    """Normalised flux (B, P) -> one normalised label (B, 1)."""

    def __init__(self, text: str) -> None:
        """`text` is LightGBM's own form of a model."""
        super().__init__()
        import lightgbm

        self.booster = lightgbm.Booster(model_str=text)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the label."""
        found_B: Any = self.booster.predict(flux_BP.cpu().numpy(), num_threads=torch.get_num_threads())
        return torch.from_numpy(found_B.astype(np.float32))[:, None].to(flux_BP.device)


def _rows(view: EvalData) -> Any:
    """Return normalised flux by row in the form in which LightGBM asks for it, some rows at a time."""
    import lightgbm

    class Rows(lightgbm.Sequence):
        """Rows in float64, the only type that LightGBM takes from a sequence."""

        batch_size = READ_ROWS

        def __len__(self) -> int:
            return len(view)

        def __getitem__(self, wanted: Any) -> np.ndarray:
            one = not isinstance(wanted, slice)
            rows = np.array([wanted]) if one else np.arange(*wanted.indices(len(view)))
            flux_BP = view.rows(rows).flux_BP.double().cpu().numpy()
            return flux_BP[0] if one else flux_BP

    return Rows()


@dataclass(frozen=True)
class Fitted:
    """The trees, as text; their number, and whether more were allowed."""

    text: str
    num_trees: int
    early: bool


def fit_trees(
    train: EvalData,
    val: EvalData,
    config: LightGBMConfig,
    loss: LossConfig,
    *,
    seed: int,
    look: Callable[[int, np.ndarray, np.ndarray], float],
) -> Fitted:
    """Return the trees up to the last look at which the validation loss had fallen by `LEAST_GAIN` or more.

    `look` is told the number of trees, every `LOOK_TREES`, with their training and validation outputs (N,), and returns
    the validation loss. The training rows are read twice, some at a time; a byte a pixel and row stays in memory.
    """
    import lightgbm

    params = parameters(config, loss, seed)
    sets = []
    for view in (train, val):
        targets_N = view.targets[:, 0].cpu().numpy().astype(np.float64)
        reference = sets[0] if sets else None
        sets.append(lightgbm.Dataset(_rows(view), label=targets_N, reference=reference, params=params))
    booster = lightgbm.Booster(params, sets[0])
    booster.add_valid(sets[1], "val")
    number = looked = best_trees = 0
    least, grows = np.inf, True
    while grows and number < config.num_trees:
        grows = not booster.update()  # else no leaf can be split any more
        number += grows
        if number > looked and (number % LOOK_TREES == 0 or number == config.num_trees or not grows):
            looked, value = number, look(number, _outputs(booster.eval_train), _outputs(booster.eval_valid))
            if value < least * (1 - LEAST_GAIN):
                best_trees, least = number, value
            elif config.patience is not None and number - best_trees >= config.patience:
                break
    return Fitted(booster.model_to_string(num_iteration=best_trees), best_trees, early=number < config.num_trees)


def parameters(config: LightGBMConfig, loss: LossConfig, seed: int) -> dict[str, Any]:
    """Return LightGBM's own settings."""
    return {
        "objective": OBJECTIVES[loss.name],
        "alpha": loss.huber_delta,
        "metric": "none",
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_leaf_rows,
        "feature_fraction": config.pixel_fraction,
        "max_bin": config.max_bins,
        "bin_construct_sample_cnt": BIN_ROWS,
        "feature_pre_filter": False,  # it would go by LightGBM's own 20 rows a leaf
        "deterministic": True,  # the same trees whatever the number of threads
        "force_col_wise": True,
        "seed": seed % 2**31,
        "num_threads": torch.get_num_threads(),
        "verbosity": -1,
    }


def _outputs(evaluate: Any) -> np.ndarray:
    """Return the outputs that LightGBM keeps of its training or validation rows, shape (N,)."""
    found = []

    def keep(output_N: np.ndarray, _: Any) -> tuple[str, float, bool]:
        found.append(output_N.copy())
        return "kept", 0.0, False

    evaluate(keep)
    return found[0]
