"""Options of a conversion, from the command line or made in Python, and what is checked of them alone."""

from dataclasses import asdict, dataclass
from typing import Any

from specvit.config.fields import build, key
from specvit.config.schema import DataConfig
from specvit.utils.errors import ConfigError

INSTRUMENT, KEEP = "instrument", "keep"
SPLITS = ("train", "val", "test")
SPECTRA = "spectra"
"""In place of names of planes: each row of an image is a spectrum."""
ERROR_KINDS = ("sigma", "variance", "ivar")
"""Standard deviation, variance, inverse variance."""


def _resolution(value: Any, where: str) -> float | None:
    if value is None or value > 0:
        return value
    raise ConfigError(f"expects a number above 0, not {value:g}", where=where, remedy="give a positive number")


@dataclass(frozen=True)
class Options:
    """How to read the sources and what to write. None: as the source says, or the default in the docstring."""

    names: str | None = None
    """`bosz2017`, `bosz2024`, or a pattern such as {T_eff}_{log_g}_{M_H} for the names of files."""
    labels: str | None = None
    """A CSV file of labels: a column `file`, the others labels."""
    columns: dict[str, str] = key(dict)
    """Label -> what it is called in the source."""
    fill: dict[str, float] = key(dict)
    """Label -> the value that it has in every spectrum."""
    wave_name: str | None = None
    flux_name: str | None = None
    error_name: str | None = None
    """`none`: the source's errors are not used."""
    planes: str | None = None
    """What the rows of an image are: names of one star's planes between commas, or `SPECTRA`."""
    error_kind: str | None = key(None, choices=ERROR_KINDS)
    """One of `ERROR_KINDS`; default: what name and unit of the errors say."""
    source_wave: str | None = None
    """A file with the wavelengths of all spectra."""
    source_error: str | None = None
    """A file with the errors of a source, point by point; {name} stands for the source's name."""
    source_mask: str | None = None
    """A file with a mask, 0 where a point is good, likewise."""
    unit: str | None = key(None, choices=("A", "nm", "um"))
    """A, nm or um."""
    log10: bool = False
    medium: str | None = key(None, choices=("air", "vacuum"))
    """`air` or `vacuum`."""
    resolution: float | None = key(None, read=_resolution)
    """Of the source, infinite for a model at its own sampling; smoothed to `to_resolution` if given."""
    to_resolution: float | None = key(None, above=0)
    wave: str | None = None
    """`instrument` (default), `keep` (default for files in the layout), or a file of vacuum Angstrom."""
    snr: float | None = key(None, above=0)
    magnitudes: tuple[float, float] | None = None
    seed: int = 0
    normalise: bool | None = None
    """Median of the pixels to 0.5; default: yes, but not for files in the layout."""
    split: tuple[float, float, float] | None = None
    """Shares of training, validation and test; None: one set."""
    shard: int = key(5000, low=1)
    """Most spectra a file."""
    max_masked: float = key(DataConfig.max_masked, low=0.0, high=0.99)
    """Share of a spectrum's pixels that may be masked."""
    skip_bad: bool = False

    def check(self) -> None:
        """Raise `ConfigError` for impossible values and for options that exclude each other."""
        build(Options, vars(self), "--")
        if "snr" in self.fill:
            raise ConfigError("gives snr, which is measured", where="--fill", remedy="leave it out; see --snr")
        if self.snr is not None and self.magnitudes is not None:
            raise ConfigError("exclude each other", where="--snr and --magnitudes", remedy="leave one out")
        if self.names is not None and self.labels is not None:
            raise ConfigError("both say what the labels are", where="--names and --labels", remedy="leave one out")
        if self.magnitudes is not None and not -30 <= self.magnitudes[0] <= self.magnitudes[1] <= 40:
            what = f"{self.magnitudes[0]:g} to {self.magnitudes[1]:g} is not a range of magnitudes"
            raise ConfigError(what, where="--magnitudes", remedy="give LOW HIGH, such as 20.5 22.5")
        if self.split is not None and not (min(self.split) > 0 and abs(sum(self.split) - 1) <= 1e-6):
            what = "are not three shares that add up to 1"
            raise ConfigError(what, where="--split", remedy="give training, validation and test, such as 0.8,0.1,0.1")
        names = list(self.columns.values())
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"makes two labels of {twice}", where="--columns", remedy="name each once")
        both = sorted(set(self.columns) & set(self.fill))
        if both:
            raise ConfigError(f"both give {both[0]}", where="--columns and --fill", remedy="leave one out")

    def as_dict(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as JSON types."""
        plain, usual = asdict(self), asdict(Options())
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
        return {key: value for key, value in listed.items() if plain[key] != usual[key]}


def as_typed(options: dict[str, Any], key: str) -> str:
    """Return an option of `Options.as_dict` as a user types it."""
    flag = "--air or --vacuum" if key == "medium" else "--" + key.replace("_", "-")
    if key not in options:
        return f"no {flag}"
    value = options[key]
    if key == "medium":
        return f"--{value}"
    if isinstance(value, bool):
        return flag if value else f"--no-{key}"
    if isinstance(value, dict):
        value = ",".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, list):
        value = (" " if key == "magnitudes" else ",").join(f"{item:g}" for item in value)
    return f"{flag} {value}"
