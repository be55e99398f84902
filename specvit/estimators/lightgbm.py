"""Gradient-boosted trees on pixels, by LightGBM. Legend: B rows, P pixels."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from specvit.config.schema import LightGBMConfig, LossConfig
from specvit.data.batches import EvalData
from specvit.data.labels import TargetCoder
from specvit.data.splits import Splits
from specvit.estimators.estimator import Estimator, FitContext, Fitted
from specvit.training.checkpoint import Parts
from specvit.utils.errors import CheckpointError, ConfigError, Diverged

BIN_ROWS = 10_000
"""Rows from which LightGBM computes the edges of its bins; it holds them in float64."""
READ_ROWS = 1024
EVAL_TREES = 10
"""Trees between two evaluations."""
MIN_GAIN = 1e-4
"""Relative fall of the validation loss that counts as an improvement."""
OBJECTIVES = {"mse": "regression", "l1": "regression_l1", "huber": "huber"}


class Trees(nn.Module):
    """Normalised flux (B, P) -> one normalised label (B, 1)."""

    def __init__(self, text: str) -> None:
        """`text` is a model in LightGBM's text format."""
        super().__init__()
        import lightgbm

        self.booster = lightgbm.Booster(model_str=text)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the label."""
        label_B: Any = self.booster.predict(flux_BP.cpu().numpy(), num_threads=torch.get_num_threads())
        return torch.from_numpy(label_B.astype(np.float32))[:, None].to(flux_BP.device)


def _rows(view: EvalData) -> Any:
    """Return normalised flux as a sequence that LightGBM reads some rows at a time."""
    import lightgbm

    class Rows(lightgbm.Sequence):
        """Rows in float64, the only type that LightGBM takes from a sequence."""

        batch_size = READ_ROWS

        def __len__(self) -> int:
            return len(view)

        def __getitem__(self, index: Any) -> np.ndarray:
            one = not isinstance(index, slice)
            rows = np.array([index]) if one else np.arange(*index.indices(len(view)))
            flux_BP = view.rows(rows).flux_BP.double().cpu().numpy()
            return flux_BP[0] if one else flux_BP

    return Rows()


def fit_trees(
    train: EvalData,
    val: EvalData,
    config: LightGBMConfig,
    loss: LossConfig,
    *,
    seed: int,
    evaluate: Callable[[int, np.ndarray, np.ndarray], float],
) -> Fitted:
    """Return the trees up to the last evaluation at which the validation loss fell by `MIN_GAIN` or more.

    `evaluate` gets the number of trees, every `EVAL_TREES`, with their training and validation outputs (N,), and
    returns the validation loss. The training rows are read twice, some at a time; memory takes a byte a pixel and row.
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
    trees = evaluated_trees = best_trees = 0
    best_loss, grows = np.inf, True
    while grows and trees < config.num_trees:
        grows = not booster.update()  # False once no leaf can be split any more
        trees += grows
        if trees > evaluated_trees and (trees % EVAL_TREES == 0 or trees == config.num_trees or not grows):
            evaluated_trees = trees
            loss_now = evaluate(trees, _outputs(booster.eval_train), _outputs(booster.eval_valid))
            if loss_now < best_loss * (1 - MIN_GAIN):
                best_trees, best_loss = trees, loss_now
            elif config.patience is not None and trees - best_trees >= config.patience:
                break
    parts = {"text": booster.model_to_string(num_iteration=best_trees)}
    return Fitted(parts, best_trees, stopped_early=trees < config.num_trees)


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
        "feature_pre_filter": False,  # it would assume LightGBM's default of 20 rows a leaf
        "deterministic": True,  # the same trees whatever the number of threads
        "force_col_wise": True,
        "seed": seed % 2**31,
        "num_threads": torch.get_num_threads(),
        "verbosity": -1,
    }


def _outputs(evaluate: Any) -> np.ndarray:
    """Return the outputs (N,) that LightGBM holds for its training or validation rows."""
    outputs = []

    def copy(output_N: np.ndarray, _: Any) -> tuple[str, float, bool]:
        outputs.append(output_N.copy())
        return "outputs", 0.0, False

    evaluate(copy)
    return outputs[0]


class LightGBM(Estimator[LightGBMConfig]):
    """Gradient-boosted trees, up to the number with the lowest validation loss."""

    parts: ClassVar[Parts] = {"text": str}
    on_host = True

    @property
    def num_steps(self) -> int:
        """The number of trees allowed."""
        return self.settings.num_trees

    def describe(self, splits: Splits) -> str:
        """Return trees, leaves, pixels and patience."""
        settings, rows = self.settings, len(splits.train)
        if rows < 2 * settings.min_leaf_rows:
            what = f"is {settings.min_leaf_rows}, but a tree splits the {rows:,} training spectra in two"
            remedy = f"set model.min_leaf_rows={max(1, rows // 20)}, or take more spectra"
            raise ConfigError(what, where="model.min_leaf_rows", remedy=remedy)
        until = f"until {settings.patience} bring nothing" if settings.patience else "all of them"
        size = f"{settings.num_trees} trees of {settings.num_leaves} leaves"
        return f"at most {size} on {splits.train.num_pixels:,} pixels, {until}"

    def fit(self, context: FitContext) -> Fitted:
        """Grow trees and record scores every `EVAL_TREES`."""
        targets = [view.targets.cpu().numpy() for view in (context.train, context.val)]

        def evaluate(trees: int, train_N: np.ndarray, val_N: np.ndarray) -> float:
            outputs = (output_N[:, None].astype(np.float32) for output_N in (train_N, val_N))
            train, val = (context.task.scores(*pair) for pair in zip(outputs, targets, strict=True))
            context.record(trees, {name: train[name] for name in ("loss", "r2", "mae")}, val)
            scores = f"loss {train['loss']:.4f}  val loss {val['loss']:.4f}  val r2 {val['r2']:.4f}"
            context.say(f"{trees} trees  {scores}")
            return val["loss"]

        context.say("sorting pixels into bins", now=True)
        config, seed = self.config, self.config.train.seed
        fitted = fit_trees(context.train, context.val, self.settings, config.loss, seed=seed, evaluate=evaluate)
        if not fitted.best_step:
            raise Diverged("no tree lowered the validation loss" if context.rows else "no tree could be grown")
        best = context.row(fitted.best_step)
        scores = f"val loss {best['val_loss']:.4f}  val r2 {best['val_r2']:.4f}"
        context.say(f"{fitted.best_step} trees  {scores}", now=True)
        return fitted

    def load(self, parts: dict[str, Any], coder: TargetCoder, device: torch.device, where: str) -> nn.Module:
        """Return the trees; raises `CheckpointError` for a text that LightGBM cannot read."""
        from lightgbm.basic import LightGBMError

        try:
            return Trees(parts["text"])
        except LightGBMError as problem:
            what = f"has model.text that LightGBM cannot read ({str(problem).splitlines()[0]})"
            raise CheckpointError(what, where=where, remedy="train again with train.rerun=true") from problem
