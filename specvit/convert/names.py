"""Labels from the names of files: the libraries that are known by name, and patterns of a user's own."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from specvit.convert.contents import suffixes
from specvit.utils.errors import ConfigError, DataError
from specvit.utils.text import nearest

NUMBER = r"(?>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
"""As long as it can be: no digit of it is left for what follows."""
RESOLUTION = "resolution"
"""A field of that name is the resolution of the spectrum, and no label."""
BOSZ_STEP = 0.25
"""Step of all abundances of BOSZ, dex; names of 2017 have them in tenths, rounded: m03 is -0.25, p08 is 0.75."""


@dataclass(frozen=True)
class Naming:
    """How names of files are read, and what else is known of files that are called so."""

    name: str
    shape: re.Pattern[str]
    example: str
    read: Callable[[Mapping[str, str]], dict[str, float]]
    """Groups of the pattern -> labels, and `RESOLUTION` if it is known."""
    unit: str | None = None
    medium: str | None = None
    columns: tuple[str, str] | None = None
    """Wavelength and flux in a text without names; "" where wavelengths lie in `wave_file`."""
    wave_file: str = ""
    """Name of the file with the wavelengths, with {resolution} in it."""
    fill: Mapping[str, float] = field(default_factory=dict)

    def labels_of(self, path: Path) -> dict[str, float] | None:
        """Return the labels of a file, None for a name that does not fit."""
        suffix, packing = suffixes(path)
        stem = path.name[: len(path.name) - len(packing) - len(suffix)]
        found = self.shape.fullmatch(path.name) or self.shape.fullmatch(stem)
        return self.read(found.groupdict()) if found else None


def _bosz_2017(groups: Mapping[str, str]) -> dict[str, float]:
    def abundance(text: str) -> float:
        steps = round(float(text[1:]) / 10 / BOSZ_STEP) * BOSZ_STEP
        return -steps if text[0] == "m" and steps else steps

    labels = {name: abundance(groups[name]) for name in ("M_H", "a_M", "C_M")}
    labels |= {"T_eff": float(groups["T_eff"]), "log_g": float(groups["log_g"]) / 10}
    return labels | {"v_micro": float(groups["v_micro"]) / 10, RESOLUTION: float(groups["R"])}


def _bosz_2024(groups: Mapping[str, str]) -> dict[str, float]:
    labels = {name: float(groups[name]) + 0.0 for name in ("T_eff", "log_g", "M_H", "a_M", "C_M", "v_micro")}
    return labels | {RESOLUTION: float(groups["R"]) if groups["R"].isdigit() else float("inf")}


_SIGNED = rf"[+-]{NUMBER}"
_2024 = rf"bosz\d{{4}}_[a-z]+_t(?P<T_eff>\d+)_g(?P<log_g>{_SIGNED})_m(?P<M_H>{_SIGNED})_a(?P<a_M>{_SIGNED})"
_2024 += rf"_c(?P<C_M>{_SIGNED})_v(?P<v_micro>\d+)_r(?P<R>\d+|orig)_"
KNOWN = (
    # Bohlin et al. 2017, AJ 153, 234, and archive.stsci.edu/prepds/bosz: vacuum; text: wavelength, flux, continuum.
    Naming(
        name="bosz2017",
        shape=re.compile(
            r"a?m(?P<M_H>[mp]\d\d)c(?P<C_M>[mp]\d\d)o(?P<a_M>[mp]\d\d)t(?P<T_eff>\d{4,5})g(?P<log_g>\d\d)"
            r"v(?P<v_micro>\d\d)modrt0b(?P<R>\d+)rs"
        ),
        example="amm03cm00om03t3500g40v20modrt0b300000rs.fits",
        read=_bosz_2017,
        unit="A",
        medium="vacuum",
        columns=("1", "2"),
        fill={"redshift": 0.0},
    ),
    # Meszaros et al. 2024, A&A 688, A197, and archive.stsci.edu/hlsp/bosz: air above 2000 A. At the original sampling:
    Naming(
        name="bosz2024",
        shape=re.compile(_2024 + "noresam"),
        example="bosz2024_mp_t5000_g+5.0_m+0.00_a+0.00_c+0.00_v0_rorig_noresam.txt.gz",
        read=_bosz_2024,
        unit="A",
        medium="air",
        columns=("1", "2"),
        fill={"redshift": 0.0},
    ),
    # Resampled: flux and continuum, the wavelengths in a file of their own.
    Naming(
        name="bosz2024",
        shape=re.compile(_2024 + "resam"),
        example="bosz2024_mp_t5000_g+5.0_m+0.00_a+0.00_c+0.00_v0_r50000_resam.txt.gz",
        read=_bosz_2024,
        unit="A",
        medium="air",
        columns=("", "1"),
        wave_file="bosz2024_wave_r{resolution:.0f}.txt",
        fill={"redshift": 0.0},
    ),
)
WAVE_FILES = re.compile(r"bosz\d{4}_wave_r\d+\.txt")
"""Files of wavelengths that lie among spectra."""


def naming_of(names: str | None, first: Path) -> Naming | None:
    """Return how files are named: as asked for, else as the first file's name shows, None if that is unknown.

    Raises `ConfigError` for a name that is neither known nor a pattern.
    """
    if names is None:
        return next((known for known in KNOWN if known.labels_of(first) is not None), None)
    alike = [known for known in KNOWN if known.name == names]
    if alike:
        return next((known for known in alike if known.labels_of(first) is not None), alike[0])
    if "{" not in names:
        known = ", ".join(dict.fromkeys(known.name for known in KNOWN))
        what = f"{names!r} is neither a library ({known}) nor a pattern with a field in braces"
        remedy = f"{nearest(names, known.split(', '))}a pattern is such as {{T_eff}}_{{log_g}}_{{M_H}}"
        raise ConfigError(what, where="--names", remedy=remedy)
    return Naming(name=names, shape=_compiled(names), example=names, read=_numbers)


def labels_from_names(naming: Naming, paths: list[Path]) -> list[dict[str, float]]:
    """Return the labels of all files; raises `DataError` naming the first whose name does not fit."""
    found = []
    for path in paths:
        labels = naming.labels_of(path)
        if labels is None:
            what = f"its name does not fit --names {naming.name}" + f" ({naming.example})" * (naming.name in _LIBRARIES)
            remedy = "name the files that do by a glob in quotes, such as 'FOLDER/*.fits'"
            raise DataError(what, where=str(path), remedy=remedy)
        found.append(labels)
    return found


_LIBRARIES = {known.name for known in KNOWN}


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern's regular expression: {name} is a number, * anything, all else itself; raises `ConfigError`.

    A field right behind another one needs a sign in the name, since nothing else would tell where it begins; behind a
    star it does not begin within a number.
    """
    made, before = "", ""
    for part in re.split(r"(\{[^{}]*\}|\*)", pattern):
        if part.startswith("{"):
            if not re.fullmatch(r"\{[A-Za-z_]\w*\}", part):
                what = f"{part} is not a field of {pattern!r}"
                raise ConfigError(what, where="--names", remedy="a field is a label's name in braces")
            begin = {"}": "[+-]", "*": r"(?<![\d.])[+-]?"}.get(before, "[+-]?")
            made += f"(?P<{part[1:-1]}>{begin}{NUMBER})"
        elif part:
            made += ".*?" if part == "*" else re.escape(part)
        before = part[-1:] or before
    try:
        return re.compile(made)
    except re.error as problem:
        raise ConfigError(f"{pattern!r} has a field twice", where="--names", remedy="name each once") from problem


def _numbers(groups: Mapping[str, str]) -> dict[str, float]:
    return {name: float(text) + 0.0 for name, text in groups.items()}
