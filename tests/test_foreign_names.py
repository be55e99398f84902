"""Labels from the names of files: BOSZ as it is published, and patterns of one's own."""

import bz2
from pathlib import Path

import foreign_files as make
import numpy as np
import pytest
from test_foreign_formats import FINE, ONE, SNR, STARS, converted

from specvit.data import __main__ as data_cli
from specvit.data.foreign.names import RESOLUTION, labels_from_names, naming_of
from specvit.errors import ConfigError, DataError

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
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_bosz(name: str) -> None:
    path = Path("somewhere") / name
    naming = naming_of(None, path)
    assert naming is not None and naming == naming_of(naming.name, path)
    (labels,) = labels_from_names(naming, [path])
    assert tuple(labels[key] for key in ORDER) == NAMES[name]
    assert not any(str(value) == "-0.0" for value in labels.values())
    assert naming.medium == ("air" if name.startswith("bosz2024") else "vacuum")


@pytest.mark.parametrize(("pattern", "name"), MINE)
def test_names_by_a_pattern(pattern: str, name: str) -> None:
    path = Path(name)
    naming = naming_of(pattern, path)
    assert naming is not None
    labels = naming.labels_of(path)
    expected = MINE[pattern, name]
    assert (labels and tuple(labels[key] for key in ("T_eff", "log_g", "M_H"))) == expected


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("bosz2042", "'bosz2042' is neither a library (bosz2017, bosz2024) nor a pattern"),
        ("bosz2042", "did you mean bosz20"),
        ("{T eff}_{log_g}", "{T eff} is no field"),
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


BOSZ = [(4000.0, 1.5, -0.5), (4500.0, 2.0, 0.0), (5000.0, 4.5, 0.25)]
AIR_X = np.arange(7000.0, 8900.0, 0.05)


def vacuum_of(air_X: np.ndarray) -> np.ndarray:
    vacuum_X = air_X.copy()
    for _ in range(5):
        vacuum_X += air_X - make.air(vacuum_X)
    return vacuum_X


def write_2017_fits(folder: Path, star: tuple[float, float, float]) -> None:
    name = f"am{'mp'[star[2] >= 0]}{round(abs(star[2]) * 10 + 1e-9):02d}cp00op00t{star[0]:.0f}g{star[1] * 10:02.0f}"
    columns = {"Wavelength": FINE, "SpecificIntensity": make.flux_of(star, FINE), "Continuum": np.ones(len(FINE))}
    make.fits_table(folder / f"{name}v20modrt0b5000rs.fits", columns)


def write_2017_ascii(folder: Path, star: tuple[float, float, float]) -> None:
    name = f"am{'mp'[star[2] >= 0]}{round(abs(star[2]) * 10 + 1e-9):02d}cp00op00t{star[0]:.0f}g{star[1] * 10:02.0f}"
    columns = {"1": FINE, "2": make.flux_of(star, FINE), "3": np.ones(len(FINE))}
    make.text(folder / f"{name}v20modrt0b5000rs.asc.bz2", columns)


def write_2024(folder: Path, star: tuple[float, float, float]) -> None:
    name = "bosz2024_mp_t{:.0f}_g{:+.1f}_m{:+.2f}_a+0.00_c+0.00_v2_r5000_noresam.txt.gz".format(*star)
    columns = {"1": AIR_X, "2": make.flux_of(star, vacuum_of(AIR_X)), "3": np.ones(len(AIR_X))}
    make.text(folder / name, columns)


def write_2024_resampled(folder: Path, star: tuple[float, float, float]) -> None:
    name = "bosz2024_mp_t{:.0f}_g{:+.1f}_m{:+.2f}_a+0.00_c+0.00_v2_r5000_resam.txt.gz".format(*star)
    inner = folder / f"m{star[2]:+.2f}"
    inner.mkdir(exist_ok=True)
    make.text(inner / name, {"1": make.flux_of(star, vacuum_of(AIR_X)), "2": np.ones(len(AIR_X))})
    np.savetxt(folder / "bosz2024_wave_r5000.txt", AIR_X)


@pytest.mark.parametrize("write", [write_2017_fits, write_2017_ascii, write_2024, write_2024_resampled])
def test_files_of_bosz_need_no_option_but_errors(write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for star in BOSZ:
        write(folder, star)
    flux_NP, _, labels = converted(folder, *SNR)
    for values in BOSZ:
        (row,) = np.flatnonzero((labels[["T_eff", "log_g", "M_H"]].to_numpy() == values).all(axis=1))
        np.testing.assert_allclose(flux_NP[row], make.expected(values), atol=2e-4)
    assert set(labels["redshift"]) == {0.0} and set(labels["v_micro"]) == {2.0}
    shown = capsys.readouterr().out
    assert "note: files are named as those of bosz20" in shown
    assert ("bosz2024 has wavelengths in air" in shown) == ("2024" in write.__name__)


def test_resolution_comes_from_the_names(tmp_path: Path) -> None:
    """A line of R = 50,000 in files that say so comes out as wide as at R = 5000."""
    folder = tmp_path / "source"
    folder.mkdir()
    centre, wave_X = 8000.0, np.arange(7080.0, 8870.0, 0.02)
    depth_X = np.exp(-0.5 * ((wave_X - centre) / (centre / 50_000 / 2.3548)) ** 2)
    make.text(folder / "amp00cp00op00t4000g40v20modrt0b50000rs.asc.bz2", {"1": wave_X, "2": 1 - 0.5 * depth_X})
    flux_NP, _, _ = converted(folder, *SNR)
    from specvit.physics.instrument import wavelength

    depth_P = 1 - flux_NP[0] / np.median(flux_NP[0])
    near = np.abs(wavelength() - centre) < 5
    spread = (depth_P * (wavelength() - centre) ** 2)[near].sum() / depth_P[near].sum()
    assert np.sqrt(spread) * 2.3548 == pytest.approx(8000 / 5000, rel=0.02)


def test_wavelengths_that_lie_elsewhere_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_2024_resampled(tmp_path, STARS[0])
    (tmp_path / "bosz2024_wave_r5000.txt").rename(tmp_path.parent / "elsewhere.txt")
    assert data_cli.main(["convert", str(tmp_path), str(tmp_path / "out"), *SNR, *ONE]) == 2
    said = capsys.readouterr().err
    assert "they lie in bosz2024_wave_r5000.txt, which is not beside it; put it there, or give --source-wave" in said
    given = ["--source-wave", str(tmp_path.parent / "elsewhere.txt")]
    assert data_cli.main(["convert", str(tmp_path), str(tmp_path / "out"), *SNR, *ONE, *given]) == 0


def test_files_of_two_resolutions_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for resolution in (5000, 50_000):
        name = f"amp00cp00op00t4000g40v20modrt0b{resolution}rs.asc.bz2"
        (tmp_path / name).write_bytes(bz2.compress(b"7000 1 1\n9000 1 1\n"))
    assert data_cli.main(["convert", str(tmp_path), str(tmp_path / "out"), *SNR, *ONE]) == 2
    assert "has a resolution of 50000 and " in capsys.readouterr().err
