"""Libraries of observed stars, as the wheel of the MaNGA data analysis pipeline carries them, and MILES's labels.

The wheel is `sdss-mangadap==4.5.0` on PyPI. Its spectra are single FITS images, linear in air Angstrom, without errors.
"""

import re
from dataclasses import dataclass
from typing import Any

from specvit.utils.errors import DataError

WHEEL = "pip download --no-deps sdss-mangadap==4.5.0 -d FOLDER"
TEMPLATES = "spectral_templates"
"""Folder of the wheel that holds a folder for each library."""
TABLE = "paramsMILES_v9.1.txt"
STARS = 984
"""Rows of MILES's table that have a number; HD044691A has `022.`, and is too hot to be taken."""
RANGES = {"T_eff": (3750.0, 6500.0), "log_g": (0.5, 5.2), "M_H": (-2.5, 0.75)}
"""Labels of the stars that are taken: cool stars, about the range of the built-in spectra."""
ROW = re.compile(
    r"(?P<name>.{23})(?P<number>\d{4})\s+(?:\d{1,3}\s+)?(?P<type>.*?)\s*"
    r"\s(?P<T_eff>\d{4,5}|--)\s+(?P<log_g>\S+)\s+(?P<M_H>\S+)"
)
"""A line of the table; types have spaces and digits, but no number of four or five digits."""
LICENCE = "the wheel is under the BSD 3-Clause licence; the libraries ask to be cited"


@dataclass(frozen=True)
class Library:
    """One library: which files of the wheel, how many, and what to cite."""

    name: str
    files: re.Pattern[str]
    """Names of its spectra; the group is the star's number in MILES, or its name."""
    spectra: int
    cite: tuple[str, ...]
    instrument: bool
    """Whether spectra are brought to the instrument's pixels; else they keep their own."""


MILES = Library(
    "miles",
    re.compile(r"MILES_res2\.50_star_m(\d{4})V\.fits"),
    984,
    (
        "Sánchez-Blázquez et al. 2006, MNRAS 371, 703",
        "Falcón-Barroso et al. 2011, A&A 532, A95",
        "Cenarro et al. 2007, MNRAS 374, 664 (labels)",
    ),
    instrument=False,
)
STELIB = Library(
    "stelib",
    re.compile(r"STELIB_v3\.2_(\w+)\.fits"),
    255,
    ("Le Borgne et al. 2003, A&A 402, 433", "Cenarro et al. 2007, MNRAS 374, 664 (labels)"),
    instrument=True,
)
LIBRARIES = {library.name: library for library in (MILES, STELIB)}


@dataclass(frozen=True)
class Star:
    """A row of MILES's table; `labels` are NaN where the table has none."""

    number: int
    name: str
    type: str
    labels: dict[str, float]

    @property
    def why_not(self) -> str:
        """Why it is left out, or ""."""
        if any(value != value for value in self.labels.values()):
            return "a label is not known"
        inside = all(low <= self.labels[name] <= high for name, (low, high) in RANGES.items())
        return "" if inside else "labels out of range"


def read_stars(text: str, where: str) -> dict[int, Star]:
    """Return the stars of MILES's table by their number; raises `DataError` for another table."""
    stars = {}
    for line in text.splitlines():
        if row := ROW.match(line):
            labels = {name: _number(row[name], line, where) for name in RANGES}
            number = int(row["number"])
            stars[number] = Star(number, row["name"].strip(), row["type"].strip(), labels)
    if len(stars) != STARS:
        what = f"has {len(stars)} stars, not the {STARS} of MILES"
        raise DataError(what, where=where, remedy=f"name the wheel as it comes: {WHEEL}")
    return stars


def star_of(library: Library, name: str, stars: dict[int, Star]) -> Star | None:
    """Return the star whose spectrum a file is, None where MILES's table does not have it.

    Names of STELIB are matched without the observer's mark (`ss`, `lp`) that ends some; a component (`A`) is another
    star.
    """
    found = library.files.fullmatch(name)
    assert found is not None
    if library is MILES:
        return stars.get(int(found[1]))
    by_name = {star.name: star for star in stars.values()}
    return by_name.get(re.sub(r"(ss|lp)$", "", found[1]))


def _number(text: str, line: str, where: str) -> float:
    try:
        return float("nan") if text == "--" else float(text)
    except ValueError:
        what = f"has {text!r} where a label is, in {line.strip()!r}"
        raise DataError(what, where=where, remedy=f"name the wheel as it comes: {WHEEL}") from None


def terms(library: Library) -> dict[str, Any]:
    """Return where the spectra come from, their licence, and what to cite."""
    return {"source": "sdss-mangadap 4.5.0 (PyPI)", "licence": LICENCE, "cite": list(library.cite)}
