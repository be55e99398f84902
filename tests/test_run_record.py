"""What a run folder has to tell a tracking server, read without one."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from specvit.config.build import build_config, to_plain
from specvit.config.tracking_uri import OWN_TAGS, artifact_folder, check_names, check_uri, resolve_uri
from specvit.run_folder.folder import RunFolder
from specvit.study.plan import label_of
from specvit.tracking.run_record import fingerprint_of, read_record
from specvit.utils.errors import ConfigError
from specvit.utils.files import write_json

BUILTIN = {"data": {"kind": "builtin", "num_samples": 1000, "val_samples": 9, "test_samples": 9}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run of two epochs that has ended, with a third row that was cut off in writing."""
    folder = RunFolder(tmp_path / "outputs" / "toy-0123abcd", "0123abcd")
    folder.path.mkdir(parents=True)
    config = to_plain(build_config(BUILTIN))
    config["tracking"] |= {"tags": {"paper": "2"}, "notes": "a try"}
    folder.create({"data": {"train": {"rows": 1000}}}, yaml.safe_dump(config))
    folder.record_attempt(event="start", commit="abc1234", job=None)
    rows = [{"step": 5 * k, "epoch": k, "val_r2": 0.1 * k, "val_slope": None} for k in (1, 2)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    folder.file("metrics.jsonl").write_text(text + '{"step": 15, "ep')
    folder.file("timing.jsonl").write_text(json.dumps({"step": 5, "train_seconds": 2.0, "time": 1000.5}) + "\n")
    folder.set_status("completed", host="here", device="cpu")
    write_json(folder.file("summary.json"), {"test_r2": 0.25, "best_epoch": 2, "label": "log_g", "test_by_snr": []})
    return folder


def test_a_trial_is_named_by_what_its_study_varies(folder: RunFolder) -> None:
    config = yaml.safe_load(folder.file("config.yaml").read_text())
    config["tracking"]["tags"] = {"setting": label_of({"opt.lr": 0.006062205196547231, "train.seed": 3}, "old")}
    folder.file("config.yaml").write_text(yaml.safe_dump(config))
    assert read_record(folder).name == "toy-0123abcd"  # a user's own tag
    config["tracking"]["tags"] |= {"study": "rates"}
    folder.file("config.yaml").write_text(yaml.safe_dump(config))
    assert read_record(folder).name == "old, lr=0.00606, seed=3: toy-0123abcd"


def test_numbers_that_are_written_out_keep_their_digits_in_a_name() -> None:
    assert [label_of({"opt.lr": rate}) for rate in (0.12341, 0.12342)] == ["lr=0.12341", "lr=0.12342"]
    assert label_of({"opt.lr": 1e-4, "opt.eps": 1e-8, "model.dropout": 0.0}) == "lr=0.0001, eps=1e-08, dropout=0"


def test_a_record_has_names_parameters_tags_points_and_results(folder: RunFolder) -> None:
    record = read_record(folder)
    assert (record.name, record.experiment, record.state, record.alive) == (
        "toy-0123abcd",
        "specvit",
        "completed",
        False,
    )
    assert record.params["opt.lr"] == "0.0003"
    assert record.params["train.early_stopping.monitor"] == "val_mae"
    assert record.params["data.param"] == '["log_g"]'
    assert not [name for name in record.params if name.startswith("tracking")]
    expected = {"state": "completed", "signature": "0123abcd", "tokenizer": "C1D", "size": "h256-L6-p16", "seed": "42"}
    expected |= {
        "rows": "1000",
        "labels": "log_g",
        "data": "builtin",
        "host": "here",
        "commit": "abc1234",
        "paper": "2",
    }
    assert expected.items() <= record.tags.items()
    assert record.tags.keys() - set(OWN_TAGS) == {"paper"}
    assert "slurm_job" not in record.tags
    assert {(p.name, p.value) for p in record.results} == {("test_r2", 0.25), ("best_epoch", 2.0)}
    assert {p.step for p in record.results} == {10}
    assert record.notes == "a try\n\nData: built-in spectra, made by specvit from a physical model, not observations."


def test_points_carry_step_time_and_wall_clock_figures_and_no_undefined_score(folder: RunFolder) -> None:
    first, second = read_record(folder).rows
    points = {p.name: (p.value, p.step, p.time) for p in first}
    assert points == {"epoch": (1.0, 5, 1_000_500), "val_r2": (0.1, 5, 1_000_500), "train_seconds": (2.0, 5, 1_000_500)}
    written = folder.file("metrics.jsonl").stat().st_mtime
    assert {(p.name, p.value, p.time) for p in second} == {
        ("epoch", 2.0, int(1000 * written)),
        ("val_r2", 0.2, int(1000 * written)),
    }


def test_while_a_run_lives_a_row_waits_for_its_wall_clock_figures(folder: RunFolder) -> None:
    with folder.claimed():
        folder.set_status("running", pid=os.getpid(), host=os.uname().nodename)
        record = read_record(folder)
        assert record.alive
        assert [row[0].step for row in record.rows] == [5]
        assert [(path.name, place) for path, place in record.files] == [("config.yaml", "")]
    assert read_record(folder).state == "lost"
    assert len(read_record(folder).rows) == 2


def test_files_and_figures_are_shown_when_the_run_has_ended(folder: RunFolder) -> None:
    folder.file("figures").mkdir()
    (folder.file("figures") / "curves.png").write_bytes(b"png")
    names = {(path.name, place) for path, place in read_record(folder).files}
    expected = {("config.yaml", ""), ("summary.json", ""), ("status.json", ""), ("attempts.jsonl", "")}
    assert names == expected | {("curves.png", "figures")}


def test_a_cause_and_a_remedy_are_recorded(folder: RunFolder) -> None:
    folder.set_status("diverged", cause="the loss was not finite", remedy="try opt.lr=1e-4")
    record = read_record(folder)
    assert (record.tags["cause"], record.tags["remedy"]) == ("the loss was not finite", "try opt.lr=1e-4")
    assert "**diverged**: the loss was not finite\n\nRemedy: try opt.lr=1e-4" in record.notes


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "config.yaml", "log.txt"])
def test_the_fingerprint_follows_every_recorded_file(name: str, folder: RunFolder) -> None:
    before = fingerprint_of(folder)
    assert fingerprint_of(folder) == before
    with open(folder.file(name), "a") as stream:
        stream.write("\n")
    assert fingerprint_of(folder) != before


def test_starting_from_nothing_makes_another_record(folder: RunFolder) -> None:
    before = read_record(folder).key
    assert read_record(folder).key == before
    folder.forget()
    assert read_record(folder).key != before
    assert len(before) == 32


def test_a_record_needs_no_clock(folder: RunFolder) -> None:
    folder.file("attempts.jsonl").write_text("torn")
    status = json.loads(folder.file("status.json").read_text()) | {"updated": "2026-01-02T03:04:05+0000"}
    folder.file("status.json").write_text(json.dumps(status))
    record = read_record(folder)
    assert record.started == record.ended == 1_767_323_045_000
    assert record.started < 1000 * time.time()


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        (None, "sqlite:////data/mlflow.db"),
        ("sqlite:///other.db", "sqlite:////data/other.db"),
        ("sqlite:////var/lib/m.db", "sqlite:////var/lib/m.db"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
    ],
)
def test_databases_have_absolute_paths_beside_the_folder_of_runs(uri: str | None, resolved: str) -> None:
    check_uri(uri)
    assert resolve_uri(uri, Path("/data/outputs/run-1")) == resolved


def test_files_lie_beside_a_sqlite_database_and_a_server_decides_for_itself() -> None:
    assert artifact_folder("sqlite:////data/mlflow.db", "a/b c") == "file:///data/mlartifacts/a_b_c"
    assert artifact_folder("http://localhost:5000", "a") is None


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mlruns", "is not an MLflow database or server"),
        ("file:///tmp/mlruns", "is not an MLflow database or server"),
        ("htp://host", "is not an MLflow database or server"),
        ("sqlite://mlflow.db", "names no file"),
        ("sqlite:///", "names no file"),
        ("postgresql://user:secret@host/db", "holds a password"),
        ("https://user:secret@host", "holds a password"),
    ],
)
def test_a_uri_that_cannot_work_or_tells_a_secret_is_refused(uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        build_config({**BUILTIN, "tracking": {"uri": uri}})
    assert refusal.value.where == "tracking.uri"
    assert "secret" not in str(refusal.value)


def test_names_that_mlflow_would_refuse_are_refused_first() -> None:
    for name in ("", " ", "x" * 257):
        with pytest.raises(ConfigError, match=r"tracking\.experiment: "):
            check_names(name, {})
    for tag in ("a+b", "", "k" * 251, "specvit.record", "mlflow.runName", *OWN_TAGS, "/a", "a//b", "a/", "../a", "."):
        with pytest.raises(ConfigError, match=r"tracking\.tags"):
            check_names("specvit", {tag: "1"})


def test_a_folder_whose_name_a_database_url_misreads_is_refused() -> None:
    for name in ("a?b", "a%20b"):
        with pytest.raises(ConfigError, match=r"tracking\.uri: would be /data/a.*misreads"):
            resolve_uri(None, Path("/data") / name / "outputs" / "run-1")
    for name in ("a b", "a#b", "a;b", "a&b", "a%b", "ä"):
        assert resolve_uri(None, Path("/data") / name / "outputs" / "run-1") == f"sqlite:////data/{name}/mlflow.db"


def test_an_empty_text_is_refused_where_it_would_name_something() -> None:
    for section, key in (
        ("tracking", "folder"),
        ("tracking", "experiment"),
        ("tracking", "uri"),
        ("train", "init_from"),
    ):
        with pytest.raises(ConfigError, match=f"{section}.{key}: is empty"):
            build_config({**BUILTIN, section: {key: ""}})
    assert build_config({**BUILTIN, "tracking": {"notes": ""}}).tracking.notes == ""
