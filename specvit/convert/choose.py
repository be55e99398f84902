"""Choose which arrays of a file are wavelengths, flux, errors and labels: by options or by their usual names."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from specvit.convert.contents import MAYBE_PLANES, Array, Contents, last_part, open_contents, plain, suffixes
from specvit.convert.error_kinds import ERROR_NAMES, kind_of_errors
from specvit.convert.options import SPECTRA, Options
from specvit.convert.wavelengths import LOG_NAMES, WAVE_NAMES
from specvit.utils.errors import DataError
from specvit.utils.quantities import LABELS, MASKED

FLUX_NAMES = ("flux", "fluxes", "flam", "specificintensity", "intensity", "spectrum", "spectra", "spec", "sci")
LABEL_NAMES = {"teff": "T_eff", "logg": "log_g", "mh": "M_H", "am": "a_M", "cm": "C_M", "mag": "mag", "snr": "snr"}
LABEL_NAMES |= {"redshift": "redshift"}
"""Names of labels without case and signs; what may mean two things, such as feh, is not among them."""
MASK_NAMES = ("mask", "andmask", "ormask", "badpix", "dq", "flags", "quality")
ERROR_FILE, MASK_FILE = "--source-error", "--source-mask"
ARM = re.compile(r"(b|r|z|blue|red|nir|vis|uvb)_(\w+)", re.IGNORECASE)
"""A name such as Z_FLUX, which belongs to Z_WAVELENGTH."""
LABEL = re.compile(r"\w([\w. -]*[\w-])?")
"""What may be a label's name: it becomes part of names of folders and metrics."""


@dataclass(frozen=True)
class Choice:
    """Names of the arrays to read; `wave` is None where wavelengths come from another file."""

    flux: str
    wave: str | None = None
    error: str | None = None
    error_kind: str = "sigma"
    """`sigma`, `variance` or `ivar`."""
    labels: dict[str, str] = field(default_factory=dict)
    """Label -> array, of a file with many spectra."""
    spectra: int | None = None
    """Rows of a file with many spectra, None where a file is one spectrum."""
    mask: str | None = None
    """Not 0 where a point is bad."""
    options: Options = field(default_factory=Options)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Wavelengths, flux, error and mask, as far as they are there."""
        return tuple(name for name in (self.wave, self.flux, self.error, self.mask) if name is not None)


@contextmanager
def open_source(
    path: Path, options: Options, wanted: tuple[str, ...] | None = None, origin: Path | None = None
) -> Iterator[Contents]:
    """Open a source, or a copy of the source `origin`, with errors and masks of files beside it; raises `DataError`.

    Those are called --source-error/NAME and --source-mask/NAME. For `wanted` see `open_contents`.
    """
    inner = None if wanted is None else tuple(name for name in wanted if not name.startswith("--"))
    with ExitStack() as stack:
        contents = stack.enter_context(open_contents(path, inner, options.planes))
        for option, pattern, known, name in (
            (ERROR_FILE, options.source_error, ERROR_NAMES, options.error_name),
            (MASK_FILE, options.source_mask, MASK_NAMES, None),
        ):
            if pattern is not None and not any(key.startswith(option) for key in contents.arrays):
                other = stack.enter_context(open_contents(companion(pattern, origin or path)))
                array = _companion_array(other, known, name)
                contents.add(replace(array, name=f"{option}/{array.name}"))
        yield contents


def companion(pattern: str, source: Path) -> Path:
    """Return the file that belongs to a source; one without a folder lies beside it if {name} is in it."""
    suffix, packing = suffixes(source)
    stem = source.name[: len(source.name) - len(packing) - len(suffix)]
    path = Path(pattern.replace("{name}", stem))
    return source.parent / path if "{name}" in pattern and len(path.parts) == 1 else path


def _companion_array(contents: Contents, known: tuple[str, ...], name: str | None) -> Array:
    """Return the errors or the mask that a file of their own holds; raises `DataError`."""
    found = _array(contents, name, "--error-name", known, "what is looked for")
    arrays = [a for a in contents.arrays.values() if a.numeric and a.shape and not a.derived]
    arrays = [a for a in arrays if plain(a.name) not in (*WAVE_NAMES, *LOG_NAMES)]
    found = found or (arrays[-1] if len(arrays) == 1 or (contents.numbered and arrays) else None)
    if found is None:
        what = f"has neither errors nor a mask by a name known; {contents.listing()}"
        raise DataError(what, where=str(contents.path), remedy="keep one array in it, or give --error-name NAME")
    return found


def choose(contents: Contents, options: Options) -> Choice:
    """Return which arrays of a file to read; raises `DataError`, which lists them, where that is not clear."""
    beside = {name.partition("/")[0]: array for name, array in contents.arrays.items() if name.startswith("--")}
    own = {name: array for name, array in contents.arrays.items() if not name.startswith("--")}
    contents = replace(contents, arrays=own)
    if contents.numbered and options.source_wave is None and len(contents.arrays) > 1:
        usual = {"wave": "1", "flux": "2"}
    else:
        usual = {"flux": "1"} if contents.numbered and len(contents.arrays) == 1 else {}
    flux = _array(contents, options.flux_name or usual.get("flux"), "--flux-name", FLUX_NAMES, "the flux")
    if flux is None:
        flux = _only_matrix(contents)
    wave = None
    if options.source_wave is None:
        names = (*WAVE_NAMES, *LOG_NAMES)
        named = options.wave_name or usual.get("wave")
        wave = _array(contents, named, "--wave-name", names, "the wavelengths", beside=flux.name)
        if wave is None:
            what = f"has no wavelengths by a name known; {contents.listing()}"
            raise DataError(what, where=str(contents.path), remedy="give --wave-name NAME or --source-wave FILE")
    error, mask = beside.get(ERROR_FILE), beside.get(MASK_FILE)
    if error is None and options.error_name != "none":
        error = _array(contents, options.error_name, "--error-name", ERROR_NAMES, "the errors", beside=flux.name)
    check_shapes(contents, wave, flux, error, mask)
    many = flux.shape[0] if len(flux.shape) == 2 else None
    _check_planes(contents, options, flux)
    used = {array.name for array in (wave, flux, error, mask) if array is not None}
    return Choice(
        flux=flux.name,
        wave=wave.name if wave else None,
        error=error.name if error else None,
        error_kind=kind_of_errors(flux, error, options.error_kind, contents.path)[0] if error else "sigma",
        labels=_labels(contents, options, many, used) if many is not None else {},
        spectra=many,
        mask=mask.name if mask else None,
        options=options,
    )


def _check_planes(contents: Contents, options: Options, flux: Array) -> None:
    """Raise `DataError` for an image whose rows may be planes of one star: nothing else has a row for each."""
    others = [a for a in contents.arrays.values() if a.shape[:1] == flux.shape[:1] and a.name != flux.name]
    known = flux.planes == MAYBE_PLANES and (others or options.labels)
    if not flux.planes or options.planes == SPECTRA or known:
        return
    remedy = "say what each is: --planes flux,ivar,wavelength for planes of one star, --planes spectra for a star each"
    raise DataError(f"has {flux.shape[0]} rows, {flux.planes}", where=f"{contents.path}:{flux.name}", remedy=remedy)


def _array(
    contents: Contents, name: str | None, option: str, known: tuple[str, ...], what: str, *, beside: str = ""
) -> Array | None:
    """Return the array of that name, or the one whose name is the first of `known` that there is; None without.

    Of several the one in the folder or HDU of `beside`; raises `DataError` if that is not one.
    """
    if name is not None:
        return contents.find(name, option)
    numbers = [a for a in contents.arrays.values() if a.numeric and a.shape]
    arms = {_arm(a.name)[0] for a in numbers if _arm(a.name)[1] in WAVE_NAMES} - {""}
    alike = [a for a in numbers if plain(a.name) in known]
    alike = [a for a in alike if not a.derived] or alike or [a for a in numbers if _axis(a, known)]
    short = {a.name: plain(a.name) for a in alike}
    if not alike:
        short = {a.name: _arm(a.name)[1] for a in numbers if _arm(a.name)[0] in arms and _arm(a.name)[1] in known}
        alike = [contents.arrays[name] for name in short]
    best = min((known.index(word) for word in short.values() if word in known), default=None)
    first = [a for a in alike if best is None or short[a.name] == known[best]]
    near = [a for a in first if a.name.rpartition("/")[0] in (beside, beside.rpartition("/")[0])]
    near = [a for a in first if _arm(a.name)[0] == _arm(beside)[0]] if _arm(beside)[0] in arms else near
    first = near if beside and len(near) == 1 else first
    if len(first) > 1:
        several = " and ".join(array.name for array in first)
        raise DataError(f"may have {what} in {several}", where=str(contents.path), remedy=f"say which by {option}")
    return first[0] if first else None


def _arm(name: str) -> tuple[str, str]:
    """Return the arm of a spectrograph that begins a name, "" without one, and the rest without case and signs."""
    found = ARM.match(last_part(name))
    return (found[1].lower(), plain(found[2])) if found else ("", plain(name))


def _axis(array: Array, known: tuple[str, ...]) -> bool:
    """Say whether an array is the wavelengths of a header, and wavelengths are looked for."""
    return array.derived and known[0] == WAVE_NAMES[0]


def _only_matrix(contents: Contents) -> Array:
    """Return the one array that can only be the flux: with two dimensions, or the one image; raises `DataError`."""
    numbers = [a for a in contents.arrays.values() if a.numeric and not a.derived and a.name not in LABELS]
    numbers = [a for a in numbers if plain(a.name) not in (*WAVE_NAMES, *LOG_NAMES)]
    numbers = [a for a in numbers if plain(a.name) not in ERROR_NAMES]
    for dimensions in (2, 1):
        found = [array for array in numbers if len(array.shape) == dimensions]
        if len(found) == 1:
            return found[0]
    what = f"has no flux by a name known; {contents.listing()}"
    remedy = "give --flux-name NAME" + ", or save numbers, a spectrum a row" * bool(contents.objects)
    raise DataError(what, where=str(contents.path), remedy=remedy)


def check_shapes(contents: Contents, wave: Array | None, flux: Array, *others: Array | None) -> None:
    """Raise `DataError` unless flux is (pixels,) or (spectra, pixels), and errors and mask, the `others`, fit it."""
    where = f"{contents.path}:{flux.name}"
    if len(flux.shape) not in (1, 2) or 0 in flux.shape:
        what = f"has shape {flux.shape}, not (pixels,) or (spectra, pixels); {contents.listing()}"
        raise DataError(what, where=where, remedy="name another by --flux-name")
    if wave is not None and wave.shape not in (flux.shape, flux.shape[-1:]):
        turned = len(flux.shape) == 2 and wave.shape == flux.shape[:1]
        remedy = "turn the array, so that a spectrum is a row" if turned else "give each value its wavelength"
        raise DataError(f"has shape {flux.shape} but {wave.name} has {wave.shape}", where=where, remedy=remedy)
    for array in others:
        if array is not None and array.shape != flux.shape:
            option = array.name.partition("/")[0] if array.name.startswith("--") else "--error-name, or none"
            remedy = f"give each value of the flux one; or name another by {option}"
            raise DataError(f"has shape {flux.shape} but {array.name} has {array.shape}", where=where, remedy=remedy)
    for array in (wave, flux, *others):
        if array is not None and not array.numeric:
            raise DataError(
                f"is not all numbers{_culprit(array)}", where=f"{contents.path}:{array.name}", remedy="correct it"
            )


def _culprit(array: Array) -> str:
    """Return the first value of an array of words that is not a number, and its row, for a message."""
    if array.dtype.kind not in "OUST" or len(array.shape) != 1:
        return f", but {array.dtype}"
    for row, value in enumerate(array.take(None).tolist()):
        try:
            float(value)
        except (TypeError, ValueError):
            return f": {str(value)[:40]!r} in row {row}"
    return ""


def _labels(contents: Contents, options: Options, rows: int | None, used: set[str]) -> dict[str, str]:
    """Return label -> array of a file with many spectra: as named, by their usual names, and the rest by their own."""
    found = {label: contents.find(name, f"--columns {label}=").name for label, name in options.columns.items()}
    for array in contents.arrays.values():
        if (
            array.name in (*used, MASKED)
            or array.name in found.values()
            or array.shape != (rows,)
            or array.dtype.kind not in "fiu"
        ):
            continue
        label = label_of(array.name)
        if label not in found:
            found[label] = array.name
    return found


def label_of(name: str) -> str:
    """Return the label that an array or column is: the layout's, or its own name, as "Fe_H" for "params/[Fe/H]"."""
    last = last_part(name)
    label = last if last in LABELS else LABEL_NAMES.get(plain(name), last)
    return label if LABEL.fullmatch(label) else re.sub(r"[^\w.-]+", "_", label).strip("_.-") or "label"
