"""Labels from the names of files: BOSZ as it is published, and patterns of one's own."""

import bz2
from pathlib import Path

import convert_corpus as corpus
import numpy as np
import pytest
from convert_inputs import PATTERN, SNR, STARS, convert, converted, refusal, shard_in, texts

from specvit.convert.names import RESOLUTION, labels_from_names, naming_of
from specvit.physics.instrument import wavelength
from specvit.utils.errors import ConfigError, DataError

NAMES = {
    "amm03cm00om03t3500g40v20modrt0b300000rs.fits": (-0.25, -0.25, 0.0, 3500, 4.0, 2.0, 300_000),
    "amm13cp00op00t3500g45v20modrt0b50000rs.asc.bz2": (-1.25, 0.0, 0.0, 3500, 4.5, 2.0, 50_000),
    "mm13cp00op00t3500g45v20modrt0b50000rs.asc": (-1.25, 0.0, 0.0, 3500, 4.5, 2.0, 50_000),
    "amp08cp05op03t12000g05v20modrt0b500rs.fits": (0.75, 0.25, 0.5, 12_000, 0.5, 2.0, 500),
    "amm23cm08om03t4250g25v20modrt0b2000rs.fits.gz": (-2.25, -0.25, -0.75, 4250, 2.5, 2.0, 2000),
    "bosz2024_mp_t5000_g+5.0_m+0.00_a+0.00_c+0.00_v0_r50000_noresam.txt.gz": (0.0, 0.0, 0.0, 5000, 5.0, 0.0, 50_000),
    "bosz2024_mp_t5000_g+4.5_m-1.75_a-0.25_c+0.50_v2_rorig_noresam.txt.gz": (-1.75, -0.25, 0.5, 5000, 4.5, 2.0, np.inf),
    "bosz2024_ms_t3500_g-0.5_m+0.75_a+0.50_c-0.75_v4_r10000_resam.txt": (0.75, 0.5, -0.75, 3500, -0.5, 4.0, 10_000),
    "bosz2024_ap_t16000_g+4.0_m+0.00_a+0.00_c+0.00_v1_r500_resam.txt.gz": (0.0, 0.0, 0.0, 16_000, 4.0, 1.0, 500),
}
ORDER = ("M_H", "a_M", "C_M", "T_eff", "log_g", "v_micro", RESOLUTION)
MINE = {
    ("{T_eff}_{log_g}_{M_H}", "5000_4.5_-0.5.txt.gz"): (5000, 4.5, -0.5),
    ("star_{T_eff}K*g{log_g}*z{M_H}_*", "star_5000K_old_g+4.50_z-.5.npz"): None,
    ("star_{T_eff}K*g{log_g}*z{M_H}_*", "star_5e3K_old_g+4.50_z-0.5_7.npz"): (5000, 4.5, -0.5),
    ("lte{T_eff}-{log_g}{M_H}.PHOENIX*", "lte05000-4.50-0.0.PHOENIX-ACES-AGSS-COND-2011-HiRes.fits"): (5000, 4.5, 0.0),
    ("lte{T_eff}-{log_g}{M_H}.PHOENIX*", "lte05000-4.50.PHOENIX-ACES.fits"): None,
    ("{T_eff}_{log_g}_{M_H}.txt", "5000_4.5_1.0.txt"): (5000, 4.5, 1.0),
    ("{T_eff}_{log_g}_{M_H}", "5000_4.5.txt"): None,
    ("{T_eff}_{log_g}_{M_H}", "5000_4.5_low.txt"): None,
    ("{T_eff}*{log_g}", "6000.csv"): None,
    ("{T_eff}*{log_g}", "5000_4.5.csv"): (5000, 4.5),
    ("*{log_g}_x", "a12.5_x.csv"): (12.5,),
    ("*_{T_eff}", "HD209458_5800.csv"): (5800,),
}


def test_names_of_bosz() -> None:
    for name, expected in NAMES.items():
        path = Path("somewhere") / name
        naming = naming_of(None, path)
        assert naming is not None and naming == naming_of(naming.name, path), name
        (labels,) = labels_from_names(naming, [path])
        assert tuple(labels[key] for key in ORDER) == expected, name
        assert not any(str(value) == "-0.0" for value in labels.values()), name
        assert naming.medium == ("air" if name.startswith("bosz2024") else "vacuum"), name
    assert naming_of(None, Path("bosz2024_mp_t5000_g+4.5.0_m+0.00_a+0.00_c+0.00_v0_r50000_resam.txt")) is None


def test_names_by_a_pattern() -> None:
    """Numbers are read whole, in the order in which the pattern has them."""
    for (pattern, name), expected in MINE.items():
        naming = naming_of(pattern, Path(name))
        assert naming is not None
        labels = naming.labels_of(Path(name))
        assert (labels and tuple(labels.values())) == expected, (pattern, name)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("bosz2042", "'bosz2042' is neither a library (bosz2017, bosz2024) nor a pattern"),
        ("bosz2042", "did you mean bosz20"),
        ("{T eff}_{log_g}", "{T eff} is not a field of"),
        ("{T_eff}_{T_eff}", "has a field twice"),
    ],
)
def test_a_pattern_that_is_none(pattern: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        naming_of(pattern, Path("5000_4.5.txt"))
    assert said in str(caught.value)


def test_a_name_that_does_not_fit_is_named() -> None:
    naming = naming_of("bosz2017", Path("x.fits"))
    assert naming is not None
    with pytest.raises(DataError, match=r"a/README\.fits: its name does not fit --names bosz2017 \(amm03cm00"):
        labels_from_names(naming, [Path("a/amm03cm00om03t3500g40v20modrt0b300000rs.fits"), Path("a/README.fits")])


def test_files_of_bosz_need_no_option_but_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the spectra of all four forms become is compared in test_convert_corpus.py."""
    for form in ("BOSZ 2017, FITS", "BOSZ 2024, resampled"):
        assert corpus.convert_in(tmp_path / form, form) == 0
        shown = capsys.readouterr().out
        assert "note: files are named as those of bosz20" in shown
        assert ("bosz2024 has wavelengths in air" in shown) == ("2024" in form)


def test_resolution_comes_from_the_names(tmp_path: Path) -> None:
    """A line of R = 50,000 in files that say so comes out as wide as at R = 5000."""
    assert corpus.convert_in(tmp_path / "case", "resolution in the name") == 0
    flux_NP, _, _ = shard_in(tmp_path / "case" / "out")
    depth_P = 1 - flux_NP[0] / np.median(flux_NP[0])
    near = np.abs(wavelength() - 8000) < 5
    spread = (depth_P * (wavelength() - 8000) ** 2)[near].sum() / depth_P[near].sum()
    assert np.sqrt(spread) * 2.3548 == pytest.approx(8000 / 5000, rel=0.02)


def test_wavelengths_that_lie_elsewhere_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    corpus.resampled_2024(source)
    (source / "bosz2024_wave_r5000.txt").rename(tmp_path / "elsewhere.txt")
    said = refusal(capsys, source, tmp_path / "out", *SNR)
    assert "they lie in bosz2024_wave_r5000.txt, which is not beside it; put it there, or give --source-wave" in said
    assert convert(source, tmp_path / "out", *SNR, "--source-wave", str(tmp_path / "elsewhere.txt")) == 0


def test_files_of_two_resolutions_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for resolution in (5000, 50_000):
        name = f"amp00cp00op00t4000g40v20modrt0b{resolution}rs.asc.bz2"
        (tmp_path / name).write_bytes(bz2.compress(b"7000 1 1\n9000 1 1\n"))
    assert "has a resolution of 50000 and " in refusal(capsys, tmp_path, tmp_path / "out", *SNR)


def test_what_is_read_from_the_first_name_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(texts(tmp_path / "source", STARS[2:3]), *PATTERN, *SNR)
    assert "note: 5000_4.5_+0.25.txt is read as T_eff 5000, log_g 4.5, M_H 0.25\n" in capsys.readouterr().out
