"""Clean spectra as templates: the posterior mean of the labels, or the best fit. B spectra, T templates, P pixels.

With templates drawn from the population that the spectra come from, the mean of their labels weighted by likelihood is
the Bayes estimate, up to the number of templates. It knows the errors of each spectrum, which networks do not.
"""

import numpy as np
import torch
from torch import Tensor, nn

from specvit.data.batches import Store

CHUNK = 2048
"""Templates looked at a time."""


class Templates(nn.Module):
    """Noisy flux and its sigma (B, 2, P) -> normalised labels (B, K).

    chi^2 = sum (flux - template)^2 / sigma^2 over pixels, by matrix products of flux less a mean spectrum, whose
    numbers are small enough for float32.
    """

    def __init__(self, store: Store, targets_TK: Tensor, *, best: bool) -> None:
        """`store` holds the templates; `best` takes the labels of the least chi^2 instead of the mean."""
        super().__init__()
        self.store, self.targets_TK, self.best = store, targets_TK, best
        self.mean_P = store.gather(np.arange(min(CHUNK, len(targets_TK))))[0].mean(0)

    def forward(self, flux_and_sigma: Tensor) -> Tensor:
        """Return the labels: one pass over all templates."""
        flux_BP, weight_BP = flux_and_sigma[:, 0] - self.mean_P, flux_and_sigma[:, 1].square().reciprocal()
        weighted_BP = flux_BP * weight_BP
        highest_B1 = flux_BP.new_full((len(flux_BP), 1), -torch.inf)
        total_B1, sum_BK = torch.zeros_like(highest_B1), flux_BP.new_zeros(len(flux_BP), self.targets_TK.shape[1])
        for start in range(0, len(self.targets_TK), CHUNK):
            target_TK = self.targets_TK[start : start + CHUNK]
            template_TP = self.store.gather(np.arange(start, start + len(target_TK)))[0] - self.mean_P
            # log likelihood, up to what all templates share
            log_BT = weighted_BP @ template_TP.T - 0.5 * (weight_BP @ template_TP.square().T)
            new_B1, index_B1 = log_BT.max(dim=1, keepdim=True)
            if self.best:
                sum_BK = torch.where(new_B1 > highest_B1, target_TK[index_B1[:, 0]], sum_BK)
                highest_B1 = torch.maximum(highest_B1, new_B1)
                continue
            new_B1 = torch.maximum(highest_B1, new_B1)
            shrink_B1, share_BT = torch.exp(highest_B1 - new_B1), torch.exp(log_BT - new_B1)
            total_B1 = total_B1 * shrink_B1 + share_BT.sum(dim=1, keepdim=True)
            sum_BK, highest_B1 = sum_BK * shrink_B1 + share_BT @ target_TK, new_B1
        return sum_BK if self.best else sum_BK / total_B1
