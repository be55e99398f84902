"""Built-in spectra that lie in no file: the stars are drawn at once, their spectra made as they are asked for.

A row is that of `data.builtin`, bit for bit, since it is made in the same pieces: a function of (seed, split, row,
max_redshift) alone. Imports torch only to make spectra.
Legend: N rows of the view, B rows gathered, P pixels, K labels, S columns of the star table.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from specvit.data.builtin import PIECE_ROWS, make_piece
from specvit.data.shards import Shard

KEPT_BYTES = 512 * 2**20
"""A view that is read again and again (validation, test) keeps its spectra in memory up to this size."""


class SyntheticSpectra:
    """Rows of a built-in split, made by the forward model on the host when they are gathered."""

    def __init__(self, rows_N: np.ndarray, *, seed: int, split: str, max_redshift: float, keep: bool = False) -> None:
        """`rows_N` are int64 row numbers of the split; `keep` its spectra, once made, if they are not too many."""
        self.rows_N, self.seed, self.split, self.max_redshift = rows_N, seed, split, max_redshift
        self.keep = keep and self.num_bytes <= KEPT_BYTES
        self._latest: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    def __len__(self) -> int:
        """Number of spectra."""
        return len(self.rows_N)

    @property
    def shards(self) -> Sequence[Shard]:
        """No files."""
        return ()

    @property
    def num_pixels(self) -> int:
        """Pixels a spectrum."""
        return len(self.wave_P)

    @property
    def wave_P(self) -> np.ndarray:
        """Wavelengths (P,), vacuum Angstrom."""
        from specvit.physics.instrument import wavelength

        return wavelength()

    @property
    def num_bytes(self) -> int:
        """Bytes of flux and error of these rows, were they kept."""
        return 8 * len(self) * self.num_pixels

    @property
    def contiguous(self) -> bool:
        """Whether the spectra lie in memory once they were made."""
        return self.keep

    @cached_property
    def stars_NS(self) -> np.ndarray:
        """The stars (N, S) in float64, columns as in `STAR_COLUMNS`."""
        from specvit.physics.population import draw_stars

        return draw_stars(self.seed, self.split, self.rows_N, max_redshift=self.max_redshift)

    @property
    def _columns(self) -> tuple[str, ...]:
        """Names of the columns of `stars_NS` that are labels."""
        from specvit.physics.population import STAR_COLUMNS

        return tuple(name for name in STAR_COLUMNS if name != "throughput")

    def labels(self) -> Any:
        """Return the label table as a DataFrame (N rows), without `snr`: that would need every spectrum."""
        import pandas as pd

        return pd.DataFrame(self.label_values(self._columns), columns=list(self._columns))

    def label_values(self, names: Sequence[str]) -> np.ndarray:
        """Return labels (N, K) in float64; the configuration's rules have refused names that no star has."""
        from specvit.physics.population import STAR_COLUMNS

        return self.stars_NS[:, [STAR_COLUMNS.index(name) for name in names]]

    def gather(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and error (B, P), float32, of view rows `index_B` in that order."""
        if self.keep:
            flux_NP, error_NP = self._kept
            return flux_NP[index_B], error_NP[index_B]
        return self._make(self.rows_N[index_B])

    @cached_property
    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        return self._make(self.rows_N)

    def _make(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and error (B, P), float32, of rows of the split, in its pieces."""
        flux_BP = np.empty((len(rows_B), self.num_pixels), dtype=np.float32)
        error_BP = np.empty_like(flux_BP)
        piece_B = rows_B // PIECE_ROWS
        with _one_thread():
            for number in np.unique(piece_B).tolist():
                here_b = np.flatnonzero(piece_B == number)
                flux_bP, error_bP = self._piece(number)
                flux_BP[here_b], error_BP[here_b] = (
                    x[rows_B[here_b] - number * PIECE_ROWS] for x in (flux_bP, error_bP)
                )
        return flux_BP, error_BP

    def _piece(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a whole piece; the latest one stays, since readers in row order come back for its rest."""
        if self._latest is None or self._latest[0] != number:
            flux_bP, error_bP, _ = make_piece(self.seed, self.split, number, self.max_redshift)
            self._latest = number, (flux_bP, error_bP)
        return self._latest[1]

    def moved(self, rows: int) -> "SyntheticSpectra":
        """Return the view of as many stars that begins `rows` rows later."""
        star = {"seed": self.seed, "split": self.split, "max_redshift": self.max_redshift}
        return SyntheticSpectra(self.rows_N + rows, **star)

    def describe_row(self, index: int) -> str:
        """Return which star a view row is, for messages."""
        return f"{self._origin} row {self.rows_N[index]}"

    def origins(self) -> tuple[list[str], np.ndarray]:
        """Return what stands for each row's file, and its row number in the split."""
        return [self._origin] * len(self), self.rows_N

    @property
    def _origin(self) -> str:
        return f"synth/{self.split}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread, on whose number the bits depend, as where built-in files are made."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
