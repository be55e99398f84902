"""Whatever form spectra come in, the same pixels come out: by the formula that they are made of, and bit for bit."""

import itertools
import json
from pathlib import Path
from typing import Any

import convert_corpus as corpus
import numpy as np
import pytest
from convert_corpus import ERRORS, FORMS, LIBRARIES, SIGMA_X
from convert_inputs import FINE, STARS, expected, pixel_means, shard_in

from specvit.convert.resample import edges
from specvit.physics.instrument import wavelength

pytestmark = pytest.mark.slow
EXPECTED: dict[str, Any] = json.loads(corpus.EXPECTED.read_text())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Return each case's folder, in which it was converted into `out`, and the exit code."""
    root = tmp_path_factory.mktemp("corpus")
    folders = {case: root / str(number) for number, case in enumerate(corpus.CASES)}
    return {case: (place, corpus.convert_in(place, case)) for case, place in folders.items()}


@pytest.fixture(scope="module")
def results(places: dict[str, tuple[Path, int]]) -> dict[str, Any]:
    """Return what is known of each case, as the file of expected results has it."""
    return {case: json.loads(json.dumps(corpus.result_in(*place))) for case, place in places.items()}


def without_bits(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with type and shape of each array, but without values and digests."""
    shards = {file: {n: x[:2] for n, x in arrays.items()} for file, arrays in result.get("shards", {}).items()}
    return {**result, "shards": shards}


def arrays_of(result: dict[str, Any]) -> dict[tuple[str, str], list[Any]]:
    return {(file, name): x for file, arrays in result.get("shards", {}).items() for name, x in arrays.items()}


def test_every_input_becomes_what_it_did(results: dict[str, Any]) -> None:
    """Files, rows, labels, types and options are equal, numbers to six digits, on any machine."""
    assert list(results) == list(EXPECTED["cases"])
    wrong = []
    for case, result in results.items():
        before = EXPECTED["cases"][case]
        if without_bits(result) != without_bits(before):
            wrong.append(f"{case}: {without_bits(result)} was {without_bits(before)}")
            continue
        for place, (_, _, values, _) in arrays_of(result).items():
            known = arrays_of(before)[place][2]
            if not np.allclose(values, known, rtol=1e-6, atol=1e-6 * np.abs(known).max()):
                wrong.append(f"{case}, {place}: {values} was {known}")
    assert not wrong, "\n".join(wrong)


def test_every_input_becomes_the_same_bits(results: dict[str, Any]) -> None:
    changed = [name for name, version in corpus.versions().items() if version != EXPECTED["versions"][name]]
    if changed:
        pytest.skip(f"the corpus was made with another {', '.join(changed)}")
    if corpus.canary() != EXPECTED["canary"]:
        pytest.skip("this processor rounds otherwise than the one of the corpus")
    digests = [
        {(case, *place): x[-1] for case, result in cases.items() for place, x in arrays_of(result).items()}
        for cases in (results, EXPECTED["cases"])
    ]
    assert digests[0] == digests[1]


def test_the_manifest_has_the_digests_of_sources_and_shards(places: dict[str, tuple[Path, int]]) -> None:
    wrong = []
    for case, (place, code) in places.items():
        if code:
            continue
        manifest = json.loads((place / "out" / "manifest.json").read_text())
        folders = {"sources": Path(manifest["folder"]), "outputs": place / "out"}
        for kind, folder in folders.items():
            for entry in manifest[kind]:
                content = (folder / entry["file"]).read_bytes()
                if (entry["bytes"], entry["sha256"]) != (len(content), corpus.sha256(content)):
                    wrong.append((case, entry))
    assert not wrong


def test_every_form_of_a_spectrum_becomes_the_same_pixels(places: dict[str, tuple[Path, int]]) -> None:
    wrong = []
    for case in [*FORMS, *LIBRARIES]:
        flux_NP, error_NP, labels = shard_in(places[case][0] / "out")
        order = np.argsort(labels["T_eff"].to_numpy())
        stars = STARS if case in FORMS else STARS[:3]
        right = [
            np.array_equal(labels[["T_eff", "log_g", "M_H"]].to_numpy()[order], np.array(stars)),
            np.allclose(flux_NP[order], np.stack([expected(star) for star in stars]), rtol=0, atol=2e-4),
            np.allclose(error_NP, np.median(flux_NP, axis=1)[:, None] / 50, rtol=1e-6, atol=0),
            np.allclose(labels["snr"], 50, rtol=1e-5, atol=0),
            case in FORMS or (set(labels["redshift"]), set(labels["v_micro"])) == ({0.0}, {2.0}),
        ]
        if not all(right):
            wrong.append((case, right))
    assert not wrong


def test_errors_of_any_kind_come_along(places: dict[str, tuple[Path, int]]) -> None:
    bins, pixels = edges(FINE), edges(wavelength())
    variance_P = np.empty(len(wavelength()))
    for p, (left, right) in enumerate(itertools.pairwise(pixels)):
        inside_X = np.clip(np.minimum(bins[1:], right) - np.maximum(bins[:-1], left), 0, None)
        variance_P[p] = inside_X @ (SIGMA_X**2 * np.diff(bins)) / (right - left) ** 2
    sigma_P = np.sqrt(variance_P) * 0.5 / np.median(pixel_means(STARS[2]))
    wrong = []
    for case in ERRORS:
        flux_NP, error_NP, labels = shard_in(places[case][0] / "out")
        snr = np.median(flux_NP[0] / error_NP[0])
        if not (
            np.allclose(error_NP[0], sigma_P, rtol=1e-4, atol=0) and labels["snr"][0] == pytest.approx(snr, rel=1e-6)
        ):
            wrong.append(case)
    assert not wrong
