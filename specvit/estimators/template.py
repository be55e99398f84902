"""Clean spectra as templates: the posterior mean of the labels, or the best fit. B spectra, T templates, P pixels.

If templates and spectra come from the same population, the mean of the templates' labels weighted by likelihood is the
Bayes estimate, up to the finite number of templates. It uses the errors of each spectrum, which networks do not see.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from specvit.config.schema import TemplateConfig
from specvit.data.batches import SpectraStore, encoded
from specvit.data.labels import TargetCoder, by_known_rows
from specvit.data.splits import Splits, open_split, split_manifest
from specvit.data.views import SpectraView
from specvit.estimators.estimator import Estimator, FitContext, Fitted
from specvit.training.checkpoint import Parts
from specvit.training.loop import predict
from specvit.utils.errors import DataError

CHUNK = 2048
"""Templates compared at a time."""


class Templates(nn.Module):
    """Noisy flux and its sigma (B, 2, P) -> normalised labels (B, K).

    chi^2 = sum over pixels of (flux - template)^2 / sigma^2, as matrix products. A mean spectrum is subtracted first,
    so that the terms are small enough for float32.
    """

    def __init__(self, store: SpectraStore, targets_TK: Tensor, *, best: bool) -> None:
        """`store` holds the templates; `best` takes the labels of the lowest chi^2 instead of the mean."""
        super().__init__()
        self.store, self.targets_TK, self.best = store, targets_TK, best
        self.known = list(by_known_rows(targets_TK.isnan().logical_not_().cpu().numpy()))
        first_TP = store.gather(np.arange(min(CHUNK, len(targets_TK))))[0]
        self.mean_P = first_TP.mean(0) if store.spectra.masked_N is None else first_TP.nanmean(0)

    def forward(self, flux_and_sigma: Tensor) -> Tensor:
        """Return the labels: one pass over all templates, of which each label takes those that have it."""
        flux_BP, weight_BP = flux_and_sigma[:, 0] - self.mean_P, flux_and_sigma[:, 1].square().reciprocal()
        masked_BP = flux_BP.isnan()
        flux_BP, weight_BP = (torch.where(masked_BP, 0.0, part) for part in (flux_BP, weight_BP))
        weighted_BP = flux_BP * weight_BP
        estimates = [Estimate(flux_BP, len(labels), best=self.best) for _, labels in self.known]
        for start in range(0, len(self.targets_TK), CHUNK):
            target_TK = self.targets_TK[start : start + CHUNK]
            template_TP = self.store.gather(np.arange(start, start + len(target_TK)))[0] - self.mean_P
            template_TP = torch.where(template_TP.isnan(), 0.0, template_TP)  # a masked pixel is that of the mean
            # log likelihood, without the term that all templates share
            log_BT = weighted_BP @ template_TP.T - 0.5 * (weight_BP @ template_TP.square().T)
            for estimate, (known_T, labels) in zip(estimates, self.known, strict=True):
                if len(self.known) == 1:  # every template has every label
                    estimate.add(log_BT, target_TK)
                elif len(rows := known_T[start : start + len(target_TK)].nonzero()[0]):
                    estimate.add(log_BT[:, rows], target_TK[rows][:, labels])
        label_BK = flux_BP.new_empty(len(flux_BP), self.targets_TK.shape[1])
        for estimate, (_, labels) in zip(estimates, self.known, strict=True):
            label_BK[:, labels] = estimate.labels()
        return label_BK


class Estimate:
    """The labels of B spectra from the templates so far."""

    def __init__(self, flux_BP: Tensor, num_labels: int, *, best: bool) -> None:
        """Start without templates."""
        self.best = best
        self.highest_B1 = flux_BP.new_full((len(flux_BP), 1), -torch.inf)
        self.total_B1 = torch.zeros_like(self.highest_B1)
        self.sum_BK = flux_BP.new_zeros(len(flux_BP), num_labels)

    def add(self, log_BT: Tensor, target_TK: Tensor) -> None:
        """Add templates by their log likelihoods."""
        new_B1, index_B1 = log_BT.max(dim=1, keepdim=True)
        if self.best:
            self.sum_BK = torch.where(new_B1 > self.highest_B1, target_TK[index_B1[:, 0]], self.sum_BK)
            self.highest_B1 = torch.maximum(self.highest_B1, new_B1)
            return
        new_B1 = torch.maximum(self.highest_B1, new_B1)
        shrink_B1, share_BT = torch.exp(self.highest_B1 - new_B1), torch.exp(log_BT - new_B1)
        self.total_B1 = self.total_B1 * shrink_B1 + share_BT.sum(dim=1, keepdim=True)
        self.sum_BK, self.highest_B1 = self.sum_BK * shrink_B1 + share_BT @ target_TK, new_B1

    def labels(self) -> Tensor:
        """Return the labels (B, K)."""
        return self.sum_BK if self.best else self.sum_BK / self.total_B1


class Template(Estimator[TemplateConfig]):
    """Training spectra without noise as templates; the checkpoint names them, the data files hold them."""

    parts: ClassVar[Parts] = {"manifest": dict}

    def describe(self, splits: Splits) -> str:
        """Return the kind of estimate, templates and pixels."""
        what = "posterior mean over" if self.settings.estimate == "mean" else "best fit among"
        size = f"{len(splits.train):,} clean templates of {splits.train.num_pixels:,} pixels"
        return f"{what} {size}; it knows the errors of each spectrum"

    def fit(self, context: FitContext) -> Fitted:
        """Compare the validation spectra with the templates; there is nothing to fit."""
        train = context.splits.train
        model = self.open_templates(train, context.splits.coder, context.device)
        context.say("comparing validation spectra with the templates", now=True)
        scores = context.task.scores(*predict(model, context.val))
        context.record(1, {}, scores)
        context.say(f"val loss {scores['loss']:.4f}  val r2 {scores['r2']:.4f}", now=True)
        return Fitted({"manifest": split_manifest(self.config.data, "train", train)})

    def load(self, parts: dict[str, Any], coder: TargetCoder, device: torch.device, where: str) -> nn.Module:
        """Open the templates again; raises `DataError` if they have changed."""
        spectra = open_split(self.config.data, "train", lambda *_: None)
        if parts["manifest"] != split_manifest(self.config.data, "train", spectra):
            remedy = "restore the spectra that it was made from, or train again"
            raise DataError("does not hold the run's templates", where="data.file_path", remedy=remedy)
        return self.open_templates(spectra, coder, device)

    def open_templates(self, spectra: SpectraView, coder: TargetCoder, device: torch.device) -> Templates:
        """Return the model of these templates."""
        targets_TK = encoded(spectra, coder, self.config, device)
        return Templates(
            SpectraStore(spectra, self.config.data, device), targets_TK, best=self.settings.estimate == "best"
        )
