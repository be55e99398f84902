"""Training batches of `data=synth`: simulated on the device in each step, from stars drawn beforehand.

A module of its own, since the forward model imports scipy, for which other runs need not wait.

Legend: N stars of an epoch, B rows of a step, P pixels, S columns of the star table.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specvit.config.schema import DataConfig, NoiseConfig
from specvit.data.labels import TargetCoder
from specvit.data.noise import FluxNorm, with_training_noise
from specvit.data.synthetic import SyntheticSpectra
from specvit.data.views import epoch_order
from specvit.physics.simulator import Simulator, host_simulator
from specvit.utils.quantities import Batch

CHUNK_ROWS = 256
"""Spectra made at once, so that what the forward model holds meanwhile does not grow with the rows of a step."""


@dataclass
class SyntheticTrainData:
    """The training view: `batch(step)` is a pure function of the configuration and the step.

    With `data.endless` epoch e has the stars of the split's rows e N to (e + 1) N - 1, in an order of their own;
    otherwise every epoch has the same N.
    """

    spectra: SyntheticSpectra
    coder: TargetCoder
    data: DataConfig
    flux_norm: FluxNorm
    noise: NoiseConfig
    seed: int
    step_rows: int
    device: torch.device

    def __post_init__(self) -> None:
        """Build the forward model on the device; the stars come with the first step."""
        redshifted = self.spectra.max_redshift > 0
        on_cpu = self.device.type == "cpu"
        self._simulator = host_simulator(redshifted) if on_cpu else Simulator(redshifted).to(self.device)
        self._epoch, self._first_row = -1, -1
        self._order_N, self._stars_NS, self._targets = (torch.empty(0) for _ in range(3))

    @property
    def location(self) -> str:
        """Where the spectra come from, for the banner."""
        return f"made on {self.device} as they are needed" + (", new ones each epoch" if self.data.endless else "")

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps an epoch; the last stars of an epoch's order that fill no step are left out."""
        return len(self.spectra) // self.step_rows

    def batch(self, step: int) -> Batch:
        """Return the batch of `step` (counted from 0 over all epochs): made, noised, normalised, on the device."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._start_epoch(epoch)
        index_B = self._order_N[within * self.step_rows : (within + 1) * self.step_rows]
        flux_BP, error_BP = self._simulate(self._stars_NS[index_B])
        flux_BP = with_training_noise(flux_BP, error_BP, self.noise, seed=self.seed, step=step)
        return Batch(self.flux_norm(flux_BP), self._targets[index_B])

    def close(self) -> None:
        """Do nothing: nothing is prefetched."""

    def io_notes(self, step: int) -> list[str]:
        """Return nothing: no file is read."""
        return []

    def _simulate(self, stars_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return clipped flux and error (B, P), float32, without waiting for the device."""
        with torch.no_grad():
            flux, error = zip(*map(self._simulator, stars_BS.split(CHUNK_ROWS)), strict=True)
        return torch.cat(flux).clamp_(min=0.0), torch.cat(error)

    def _start_epoch(self, epoch: int) -> None:
        """Copy an epoch's order to the device, and its stars and targets if they differ from the last epoch's."""
        rows = len(self.spectra)
        first_row = epoch * rows if self.data.endless else 0
        if first_row != self._first_row:
            view = self.spectra.offset_by(first_row) if first_row else self.spectra
            targets = np.ascontiguousarray(self.coder.encode(view.label_values(self.data.param)))
            self._stars_NS = torch.from_numpy(view.stars_NS.astype(np.float32)).to(self.device)
            self._targets = torch.from_numpy(targets).to(self.device)
            self._first_row = first_row
        order_N = epoch_order(rows, seed=self.seed, epoch=epoch, order=self.data.order)
        self._order_N, self._epoch = torch.from_numpy(order_N).to(self.device), epoch
