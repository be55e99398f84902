"""A set in another format, converted, is trained on and scored by the very command that the conversion prints."""

import json
import re
import shlex
import sys
from pathlib import Path

import convert_inputs as make
import numpy as np
import pytest

from specvit.commands import data as data_cli
from specvit.commands.evaluate import main as evaluate
from specvit.commands.train import main as train

RIDGE = ["model=ridge", "noise.noise_level=0.1", "tracking.progress=lines", "tracking.live=false"]


@pytest.mark.slow
def test_the_printed_command_trains_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = 300
    labels = {"teff": rng.uniform(4000, 6000, rows), "logg": rng.uniform(1, 5, rows), "mh": rng.uniform(-2, 0.5, rows)}
    air_X = np.arange(7050.0, 8900.0, 0.4)
    vacuum_X = air_X + (air_X - make.air(air_X))
    flux_NX = np.stack([make.flux_of(star, vacuum_X) for star in zip(*labels.values(), strict=True)])
    make.fits_table(
        tmp_path / "set.fits", {**labels, "FLUX": flux_NX, "LAMBDA": np.tile(air_X / 10, (rows, 1))}, {"LAMBDA": "nm"}
    )
    monkeypatch.chdir(tmp_path)
    np.savetxt("pixels.txt", np.arange(7200.0, 8800.0, 3.2))
    options = [
        "--air",
        "--wave",
        "pixels.txt",
        "--snr",
        "30",
        "--split",
        "0.7,0.15,0.15",
        "--shard",
        "200",
        "--workers",
        "1",
    ]
    assert data_cli.main(["convert", "set.fits", "out", *options]) == 0
    line = re.search(r"train on them:  specvit train (.*)\n", capsys.readouterr().out)
    assert line is not None
    monkeypatch.setattr(sys, "argv", ["specvit train"])
    assert train([*shlex.split(line[1]), *RIDGE]) == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "completed" and summary["test_rows"] == 45
    assert summary["test_r2"] > 0.5
    assert evaluate([str(folder), "--data", "out/val_0/dataset.h5"]) == 0
    assert "45 spectra" in capsys.readouterr().out
