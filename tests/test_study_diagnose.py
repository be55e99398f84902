"""Why a run went as it did: verdicts on its health, causes, curves, gradients, attempts; and how two runs differ."""

import time
from pathlib import Path
from typing import Any

import pytest
from handmade import at_work, config, ended, epochs, make_run, make_study, trial_of

from specvit.run_folder.folder import RunFolder
from specvit.study.diagnose import BARS, WIDTH, diagnosis_lines, diff_lines, health_of, sparkline
from specvit.study.find import find_folder_of_runs, find_run
from specvit.study.results import outcome_of
from specvit.utils.errors import FolderError

GOOD = {"train_loss": [1.0, 0.8, 0.6, 0.5, 0.4], "val_r2": [0.0, 0.1, 0.2, 0.3, 0.4], "skipped_steps": [0, 0, 0, 0, 0]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "toy-00000001"


def why(run: RunFolder, *trial: Any) -> str:
    return "\n".join(diagnosis_lines(run, *trial))


# verdicts


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "healthy"),
        ({"train_loss": [1.0, 0.8, 0.6, 0.5, None]}, "the loss is not finite"),
        ({"train_loss": [1.0, 0.8, 0.6, 0.5, float("nan")]}, "the loss is not finite"),
        ({"train_loss": [None, 0.8, 0.6, 0.5, 0.4]}, "healthy"),
        ({"skipped_steps": [9, 9, 9, 9, 11]}, "healthy"),
        ({"skipped_steps": [1, 1, 1, 1, 4]}, "3 of 10 steps overflowed fp16"),
        ({"train_loss": [0.4, 0.5, 0.6, 0.5, 0.4]}, "the training loss has not fallen in 5 validations"),
        ({"train_loss": [0.4, 0.5, 0.3, 0.5, 0.6]}, "healthy"),
        ({"val_r2": [-0.1, 0.0, 0.02, 0.01, 0.0]}, "val R² is 0.000 after step 50: nothing learnt yet"),
        ({"val_r2": [0.0, 0.03, 0.0, 0.0, 0.0]}, "healthy"),
        ({"val_r2": [None] * 5}, "healthy"),
    ],
)
def test_a_record_gives_a_verdict(changes: dict[str, list[Any]], expected: str, path: Path) -> None:
    run = make_run(path, rows=epochs(**{**GOOD, **changes}))
    assert health_of(run, outcome_of(run)) == expected


@pytest.mark.parametrize("count", [1, 4])
def test_a_young_run_is_given_time(count: int, path: Path) -> None:
    rows = epochs(train_loss=[1.0, 2.0, 3.0, 4.0][:count], val_r2=[0.0] * count)
    run = make_run(path, rows=rows)
    assert health_of(run, outcome_of(run)) == "healthy"


def test_a_run_without_an_epoch_has_no_verdict(path: Path) -> None:
    run = make_run(path, "running")
    assert health_of(run, outcome_of(run)) == ""


@pytest.mark.parametrize(
    ("seconds", "later", "expected"),
    [
        ([10.0] * 5, 0.0, "healthy"),
        ([10.0, 10.0, 10.0, 10.0, 31.0], 0.0, "the steps to the last validation took 31.0 s, usually 10.0 s"),
        ([10.0, 10.0, 10.0, 10.0, 29.0], 0.0, "healthy"),
        ([10.0] * 5, 35.0, "healthy"),
        ([10.0] * 5, 100.0, "no news for 100 s, a validation usually comes every 10.0 s"),
        ([10.0, 40.0], 100.0, "healthy"),
    ],
)
def test_a_run_at_work_is_judged_by_its_pace(seconds: list[float], later: float, expected: str, path: Path) -> None:
    run = make_run(path, rows=epochs(**GOOD), seconds=seconds)
    with at_work(run, updated="2026-01-02T03:04:05+0000"):
        now = 1767323045.0 + later
        assert health_of(run, outcome_of(run), now) == expected
    assert health_of(run, outcome_of(run), now) == "healthy"  # it is over


def test_a_status_without_a_time_is_no_verdict(path: Path) -> None:
    run = make_run(path, rows=epochs(**GOOD), seconds=[1.0] * 5)
    with at_work(run, updated="yesterday"):
        assert health_of(run, outcome_of(run), time.time() + 1e6) == "healthy"


# why


def test_a_runs_end_is_printed_with_cause_remedy_and_trace(path: Path) -> None:
    trace = "Traceback:\n" + "".join(f"  line {n}\n" for n in range(8))
    facts: dict[str, Any] = {"cause": "it broke", "remedy": "correct it", "traceback": trace}
    run = make_run(path, "crashed", rows=epochs(train_loss=[2.0, 1.0], lr=[1e-3, 5e-4]), **facts)
    lines = why(run).splitlines()
    assert lines[:4] == ["toy-00000001: crashed", "cause: it broke", "remedy: correct it", "health: healthy"]
    assert lines[4:7] == ["2 epochs, 20 steps", f"  {'train_loss':<12} █▁  2 → 1", f"  {'lr':<12} █▁  0.001 → 0.0005"]
    assert lines[7:] == [
        "traceback (the last lines; all of it is in log.txt):",
        *(f"    line {n}" for n in range(2, 8)),
    ]


def test_a_worker_may_know_more_than_the_folder(path: Path) -> None:
    run = RunFolder(path, "00000001")
    end = {"state": "refused", "cause": "no such file", "remedy": "make it"}
    assert why(run, trial_of(0, run, {}, end=end)) == "toy-00000001: refused\ncause: no such file\nremedy: make it"
    assert why(run) == "toy-00000001: never started"


def test_a_run_that_came_through_later_is_not_called_failed(path: Path) -> None:
    run = make_run(path, "completed", rows=epochs(**GOOD))
    said = why(run, trial_of(0, run, {}, end={"state": "crashed", "cause": "it broke"}))
    assert said.startswith("toy-00000001: completed\n")
    assert "it broke" not in said and "health" not in said


def test_gradient_norms_are_printed_by_part_and_a_faint_one_is_named(path: Path) -> None:
    rows = epochs(
        grad_norm=[3.0, 2.0], grad_norm_tokenizer=[1.0, 1e-4], grad_norm_blocks=[1.0, 1.5], grad_norm_head=[1, None]
    )
    said = why(make_run(path, "diverged", rows=rows))
    assert "gradient norm by part, at the end: tokenizer 0.0001, blocks 1.5\n  tokenizer hardly gets a gradient" in said
    rows[-1]["grad_norm_tokenizer"] = 0.01
    assert "hardly" not in why(make_run(path, "diverged", rows=rows))


def test_attempts_are_printed_when_there_were_several(path: Path) -> None:
    run = make_run(path, "running")
    run.record_attempt(event="start")
    assert "attempt" not in why(run)
    run.record_attempt(event="end", state="preempted")
    run.record_attempt(event="start")
    assert why(run) == "toy-00000001: lost\n2 attempts: preempted, 1 without a word"
    run.record_attempt(event="start")
    with at_work(run):
        assert "3 attempts: preempted, 1 without a word, one running" in why(run)
        run.record_attempt(event="end", state="crashed")
    run.record_attempt(event="start")
    with at_work(run):
        assert "4 attempts: preempted, crashed, 1 without a word, one running" in why(run)


def test_a_curve_is_a_line_of_bars() -> None:
    assert sparkline([float(n) for n in range(8)]) == BARS
    assert sparkline([3.0, 3.0]) == BARS[0] * 2
    assert sparkline([-1.0, 1.0, 0.0]) == f"{BARS[0]}{BARS[7]}{BARS[4]}"
    long = sparkline([0.0] * 500 + [1.0])
    assert (len(long), long[0], long[-1]) == (WIDTH, BARS[0], BARS[7])


def test_what_is_not_finite_is_left_out_of_a_curve(path: Path) -> None:
    run = make_run(
        path, "diverged", rows=epochs(train_loss=[1.0, 2.0, float("nan"), None], val_loss=[float("inf")] * 4)
    )
    said = why(run)
    assert f"train_loss   {BARS[0]}{BARS[7]}  1 → 2" in said
    assert "val_loss" not in said


# two runs


def test_two_runs_differ_in_keys_and_scores(tmp_path: Path) -> None:
    left = make_run(
        tmp_path / "a-rather-long-name-of-a-run-of-some-study-00000001",
        "completed",
        rows=epochs(val_r2=[0.5]),
        seconds=[2.0],
        summary={"test_r2": 0.25, "best_epoch": 1},
        settings=config(model={"proj_fn": "C1D"}, tracking={"name": "left"}),
    )
    right = make_run(
        tmp_path / "toy-00000002",
        "diverged",
        rows=epochs(val_r2=[0.25]),
        settings=config(model={"proj_fn": "SW"}, opt={"lr": 0.01}),
        identity={"data": {"train": "other"}},
    )
    lines = list(diff_lines((left, None), (right, None)))
    rows = [line.split() for line in lines]
    assert rows == [
        ["a-rather-long-name-of-a-run-of-some-study-00000001", "toy-00000002"],
        ["model.proj_fn", "C1D", "SW"],
        ["opt.lr", str(config()["opt"]["lr"]), "0.01"],
        ["the", "data", "differ"],
        ["state", "completed", "diverged"],
        ["test_r2", "0.25", "None"],
        ["best_epoch", "1", "None"],
        ["val_r2", "0.5", "0.25", "-0.25"],
        ["train_seconds", "2", "0", "-2"],
    ]
    assert len({line.index(row[-1]) for line, row in zip(lines[:3], rows, strict=False)}) == 1  # in columns


def test_a_run_does_not_differ_from_itself(path: Path) -> None:
    run = make_run(path, "completed", summary={"test_r2": 0.5})
    assert [line.split() for line in diff_lines((run, None), (run, None))][1:3] == [
        ["the", "same", "settings"],
        ["state", "completed", "completed"],
    ]
    run.file("config.yaml").write_text("a: [")
    assert [line.strip() for line in diff_lines((run, None), (run, None))][1] == "the same settings"


def test_a_run_that_never_began_is_compared_by_its_plan(tmp_path: Path) -> None:
    run = make_run(tmp_path / "outputs" / "toy-00000001", "completed", settings=config(opt={"lr": 0.01}))
    study = make_study(tmp_path / "multirun" / "toy", [RunFolder(tmp_path / "outputs" / "toy-00000002", "00000002")])
    (trial,) = study.trials()
    rows = [line.split() for line in diff_lines((run, None), (trial.run, trial))]
    assert rows[1:] == [
        ["opt.lr", "0.01", str(trial.config["opt"]["lr"])],
        ["state", "completed", "never", "started"],
        ["train_seconds", "0", "0", "+0"],
    ]


# a run by its name


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return `outputs` with three runs, the last of which a study in `multirun` has, with one that never began."""
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / "outputs" / name) for name in ("toy-aaaa0001", "toy-aaaa0002", "other[1]-bbbb0003")]
    waiting = RunFolder(tmp_path / "outputs" / "toy-cccc0004", "cccc0004")
    make_study(tmp_path / "multirun" / "study", [runs[2], waiting])
    return tmp_path / "outputs"


@pytest.mark.parametrize(
    ("name", "found", "number"),
    [
        ("outputs/toy-aaaa0001", "toy-aaaa0001", None),
        ("outputs/toy-aaaa0001/", "toy-aaaa0001", None),
        ("toy-aaaa0002", "toy-aaaa0002", None),
        ("0002", "toy-aaaa0002", None),
        ("aaaa0001", "toy-aaaa0001", None),
        ("bb", "other[1]-bbbb0003", 0),
        ("other[1]", "other[1]-bbbb0003", 0),
        ("cccc", "toy-cccc0004", 1),
    ],
)
def test_a_run_is_found(name: str, found: str, number: int | None, outputs: Path) -> None:
    run, trial = find_run(name)
    assert (run.path.resolve(), run.run_id) == (outputs / found, found[-8:])
    assert (trial and trial.number) == number


@pytest.mark.usefixtures("outputs")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "nothing: is not a known run; name a folder in outputs or a run's hash"),
        ("**", "**: is not a known run"),
        ("other?1?", "other?1?: is not a known run"),
        ("toy", "toy: fits 3 runs; there are toy-aaaa0001, toy-aaaa0002, toy-cccc0004."),
        ("aaaa", "aaaa: fits 2 runs"),
    ],
)
def test_a_name_of_no_run_or_of_several_is_refused(name: str, words: str) -> None:
    with pytest.raises(FolderError) as refusal:
        find_run(name)
    assert words in str(refusal.value)


def test_a_damaged_record_still_has_a_name(outputs: Path) -> None:
    (outputs / "toy-aaaa0001" / "run.json").write_text("{")
    assert find_run("outputs/toy-aaaa0001")[0].path.name == "toy-aaaa0001"
    assert find_run("aaaa0001")[0].path.name == "toy-aaaa0001"


def test_a_trials_end_is_printed_as_its_worker_saw_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy-00000001", "crashed", cause="it broke")
    study = make_study(tmp_path / "study", [run])
    ended(study, 0, "crashed", cause="the worker saw it break")
    (trial,) = study.trials()
    assert "cause: the worker saw it break" in why(run, trial)


def test_a_hash_means_its_run_before_a_name_that_contains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("toy-aaaa0001-aaaa0002", "toy-aaaa0001"):
        make_run(tmp_path / "outputs" / name)
    assert find_run("aaaa0001")[0].path == Path("outputs/toy-aaaa0001")
    assert find_run("aaaa0002")[0].path == Path("outputs/toy-aaaa0001-aaaa0002")
    assert find_folder_of_runs("aaaa0002") == Path("outputs/toy-aaaa0001-aaaa0002")
    assert find_folder_of_runs("outputs") == Path("outputs")
    with pytest.raises(FolderError, match="aaaa: fits 2 runs"):
        find_folder_of_runs("aaaa")


def test_a_study_of_another_format_hides_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs" / "toy-aaaa0001")
    study = make_study(tmp_path / "multirun" / "newer", [RunFolder(tmp_path / "outputs" / "toy-aaaa0002", "aaaa0002")])
    study.file("study.json").write_text('{"format": 99}')
    assert find_run("aaaa")[0].run_id == "aaaa0001"
