"""The published tables are those of their archives."""

import csv
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import mixed_study

from specvit.analysis.archive import unpack
from specvit.commands.analysis import main
from specvit.study.store import command_of

RESULTS = Path(__file__).parents[1] / "docs" / "results"
ARCHIVES = sorted(RESULTS.glob("*/runs.tar.xz"))


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def assert_same(found: Path, published: Path) -> None:
    """Compare two CSV files, numbers to nine digits."""
    rows, expected = lines_of(found), lines_of(published)
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, text in row.items():
            if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", text):
                assert float(text) == pytest.approx(float(other[name]), rel=1e-9), name
            else:
                assert text == other[name], name


@pytest.mark.slow
@pytest.mark.parametrize("archive", ARCHIVES, ids=[path.parent.name for path in ARCHIVES])
def test_published_tables_are_those_of_the_archive(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = unpack(archive, tmp_path)
    published = [path.stem for path in archive.parent.glob("*.csv")]
    assert "ablation" in published
    for command in published:
        more = ["--ceilings", str(archive.parent / "ceiling.json")] if command == "scaling" else []
        assert main([command, str(study), "--out", "made", *more]) == 0
        assert_same(Path("made") / f"{command}.csv", archive.parent / f"{command}.csv")


def test_archives_are_small_and_name_no_machine() -> None:
    assert ARCHIVES
    for archive in ARCHIVES:
        assert archive.stat().st_size < 3e6
        with tarfile.open(archive) as packed:
            assert {member.mtime for member in packed} == {0}
            for member in packed:
                if member.name.endswith((".json", ".yaml")):
                    stream = packed.extractfile(member)
                    assert stream is not None
                    text = stream.read().decode()
                    assert not re.search(r'"(host|cwd|pid)"|/tmp/|/home/|/root', text), member.name


@pytest.mark.slow
def test_an_archive_has_all_that_the_tables_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = mixed_study(tmp_path)
    assert main(["ablation", str(study.path), "--out", "before"]) == 0
    assert main(["archive", str(study.path), "packed.tar.xz"]) == 0
    once = Path("packed.tar.xz").read_bytes()
    main(["archive", str(study.path), "packed.tar.xz"])
    assert Path("packed.tar.xz").read_bytes() == once, "the same to the byte"
    (tmp_path / "elsewhere").mkdir()
    unpacked = unpack(Path("packed.tar.xz"), tmp_path / "elsewhere")
    study.path.rename(tmp_path / "away")
    assert main(["ablation", str(unpacked), "--out", "after"]) == 0
    rows, before = lines_of(Path("after/ablation.csv")), lines_of(Path("before/ablation.csv"))
    assert [(row["run_ids"], row["test_r2"]) for row in rows] == [(row["run_ids"], row["test_r2"]) for row in before]


def test_what_is_shared_of_an_older_study_has_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = mixed_study(tmp_path)
    storage, uri = "postgresql://user:SEC'RET@host/db", "https://host/?access_token=SECRET"
    command = ["specvit", "train", "sweeps=toy", f"sweep.storage={storage}"]
    about = study.about()
    study.create(**{**about, "storage": storage, "command": command, "typed": {"tracking.uri": uri}})
    for trial in study.trials():
        study.write_trial(replace(trial, config={**trial.config, "tracking": {"uri": uri}}))
        if (file := trial.run.file("config.yaml")).exists():
            file.write_text(f"{file.read_text()}\n# tracking.uri={uri}\n")
    assert main(["archive", str(study.path), "packed.tar.xz"]) == 0
    with tarfile.open("packed.tar.xz") as packed:
        members = [stream.read().decode() for member in packed if (stream := packed.extractfile(member))]
    assert len(members) > 10 and not [text for text in members if "RET" in text]
    assert "sweeps=toy" in members[0] and "host/db" not in members[0]
    assert "sweep.storage=postgresql://***" in command_of(study) and "RET" not in command_of(study)


def test_a_wrong_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = mixed_study(tmp_path)
    assert main(["archive", str(study.path), "packed.zip"]) == 2
    assert "let it end in .tar.xz" in capsys.readouterr().err
