"""When a run validates, logs and saves: durations in epochs or steps, and what follows where an epoch is long."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from test_recovery import DiesAt
from toys import FREE, LIVELY, Run, StopAfter, assert_identical, toy_run

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.durations import check_rhythm
from specvit.config.schema import EarlyStoppingConfig, TrainConfig
from specvit.run_folder.folder import RunFolder
from specvit.study.optuna_trials import TrialPruner
from specvit.study.search_space import Search
from specvit.tracking.metric_files import FileTracker
from specvit.tracking.run_record import _rows
from specvit.training import checkpoint
from specvit.training.recovery import find_start
from specvit.training.schedule import build_rhythm
from specvit.utils.errors import ConfigError
from specvit.utils.files import read_json_lines

EPOCH_STEPS, EPOCHS = 4, 5
OFTEN: dict[str, Any] = {"eval_every": "3steps", "log_every": "1steps", "save_every": "5steps"}


def rhythm_steps(duration: Any, epochs: int = 2, epoch_steps: int = 3906) -> list[int]:
    """Return the steps of a duration, asked for one by one."""
    every = build_rhythm(TrainConfig(epochs=epochs, eval_every=duration), epoch_steps).evaluate
    steps = [step for step in range(1, epochs * epoch_steps + 1) if every.due(step)]
    for step in (1, every.first - 1, every.first, epoch_steps, epochs * epoch_steps):
        assert every.until(step) == {one for one in steps if one <= step}
    assert steps[0] == every.first
    return steps


def test_parts_of_an_epoch_end_with_it_and_the_last_step_is_always_one() -> None:
    assert rhythm_steps(0.25) == [977, 1953, 2930, 3906, 4883, 5859, 6836, 7812]
    assert rhythm_steps(1) == rhythm_steps("3906steps") == [3906, 7812]
    assert rhythm_steps("3000steps") == [3000, 6000, 7812]
    assert rhythm_steps(0.1, epoch_steps=5) == list(range(1, 11))  # shorter than a step
    assert len(rhythm_steps(0.05)) == 40


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("train.eval_every=0", "expects epochs, a number above 0"),
        ("train.save_every=-1", "expects epochs, a number above 0"),
        ("train.save_every=true", "or steps, such as 500steps, not True"),
        ("train.log_every='500 steps'", "not '500 steps'; write 500steps."),
        ("train.log_every=500s", "write 500steps."),
        ("train.eval_every=2epochs", "write 2."),
        ("train.eval_every=0steps", "expects epochs"),
        ("train.eval_every=16", "train.eval_every: is 16, longer than train.epochs=15; set a shorter"),
        ("train.log_every=2", "train.log_every: is 2, longer than train.eval_every=1; set a shorter"),
    ],
)
def test_a_duration_that_is_none_is_refused_in_one_sentence(typed: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_config(compose([typed]))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_steps_and_epochs_are_compared_once_the_steps_of_an_epoch_are_known() -> None:
    check_rhythm(15, "586steps", 0.5)
    with pytest.raises(ConfigError, match=r"is 586steps, longer than train.epochs=15 at 39 steps an epoch"):
        check_rhythm(15, "586steps", None, 39)
    check_rhythm(15, "585steps", "39steps", 39)


def test_one_duration_has_one_spelling_in_the_configuration_and_names_one_run() -> None:
    configs = [build_config(compose([f"train.eval_every={text}"])) for text in ("2", "2.0", "2.")]
    assert {repr(config.train.eval_every) for config in configs} == {"2"}


def start(folder: Path, saved: dict[str, Any] | None = None, **changes: Any) -> Run:
    return toy_run(folder, opt=LIVELY, dropout=0.3, saved=saved, epochs=EPOCHS, **{**OFTEN, **changes})


def test_how_often_a_run_logs_and_saves_changes_no_result_and_a_line_is_of_its_own_steps(tmp_path: Path) -> None:
    runs = [start(tmp_path, **changes) for changes in ({}, {"log_every": None, "save_every": 1})]
    for run in runs:
        run.fit()
        run.state.logged = {}
    assert_identical(runs[0].everything(), runs[1].everything())
    rows, logged = runs[0].recorder.rows, runs[0].recorder.logged
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18, 20]
    assert [row["epoch"] for row in rows] == [0.75, 1.5, 2.25, 3, 3.75, 4.5, 5] and isinstance(rows[3]["epoch"], int)
    assert [row["step"] for row in logged] == [1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19]
    assert [row for row in rows if "first_step_loss" in row] == rows[:1]
    assert logged[0]["running_loss"] == pytest.approx(rows[0]["first_step_loss"])
    losses = runs[0].recorder.losses  # means since the last validation
    for first, second in itertools.pairwise(logged):
        if second["step"] == first["step"] + 1:
            both = first["running_loss"] + second["running_loss"]
            assert losses[second["step"]] == pytest.approx(both / 2), "a line is of one step here"
    assert logged[0].keys() >= {"lr", "running_grad_norm", "running_grad_norm_up"}


def test_validating_more_often_changes_no_weight_and_no_score(tmp_path: Path) -> None:
    steady = dataclasses.replace(LIVELY, lr_sch="cosine")
    runs = [toy_run(tmp_path, opt=steady, dropout=0.3, eval_every=every) for every in (1, 0.5, "1steps")]
    for run in runs:
        assert run.fit() == "completed"
        assert run.weights().equal(runs[0].weights())
    scores = [{row["step"]: row["val_mae"] for row in run.recorder.rows} for run in runs]
    assert scores[0].items() < scores[1].items() < scores[2].items()
    assert checkpoint.load(runs[2].checkpoints.last)["state"]["best_value"] == min(scores[2].values())


@pytest.mark.parametrize(("every", "steps"), [(1, 4 + 12), (0.5, 2 + 12), ("1steps", 1 + 12), (2, 8 + 16)])
def test_patience_is_in_epochs_however_often_a_run_is_validated(every: Any, steps: int, tmp_path: Path) -> None:
    rule = EarlyStoppingConfig(monitor="val_accuracy", mode="max", patience=3)
    still = dataclasses.replace(FREE, lr=1e-30)
    run = toy_run(tmp_path, opt=still, epochs=50, early_stopping=rule, task="cls", eval_every=every)
    assert (run.fit(), run.state.step) == ("early_stopped", steps)


def test_the_plateau_schedule_waits_for_epochs_too() -> None:
    opt = dataclasses.replace(LIVELY, plateau_patience=5)
    for every, validations in ((1, 5), (0.25, 20), (2, 2), ("3steps", 6)):
        rhythm = build_rhythm(TrainConfig(eval_every=every), EPOCH_STEPS)
        assert rhythm.in_validations(EarlyStoppingConfig(), opt)[1].plateau_patience == validations


def lines(folder: RunFolder) -> list[Any]:
    """Return the lines on file, those of the log without the time of day."""
    log = read_json_lines(folder.file("training.jsonl"))
    return [folder.file("metrics.jsonl").read_text(), [{**row, "time": 0} for row in log]]


@pytest.mark.parametrize("loses", [(), ("last.ckpt",), ("best.ckpt",)])
@pytest.mark.parametrize("dies_at", [2, 4, 7, 10, 11, 14, 19])
def test_a_run_killed_between_two_validations_ends_bitwise_equal(
    dies_at: int, loses: tuple[str, ...], tmp_path: Path
) -> None:
    outcomes = []
    for place, kill in (("whole", None), ("killed", dies_at)):
        folder = RunFolder(tmp_path / place, "toy")
        folder.path.mkdir()
        run = start(folder.path)
        run.recorder = FileTracker(folder.path)
        if kill:
            with pytest.raises(KeyboardInterrupt):
                run.fit(DiesAt(kill))
            for name in loses:
                folder.file(name).unlink(missing_ok=True)
            found = find_start(folder, build_rhythm(run.learner.train, EPOCH_STEPS))
            run = start(folder.path, found.saved)
            run.recorder = FileTracker(folder.path)
            assert loses or run.state.step == kill // 5 * 5
            folder.cut_back(run.state.step)
        assert run.fit() == "completed"
        saved = [checkpoint.load(folder.file(name)) for name in ("last.ckpt", "best.ckpt")]
        outcomes.append([run.weights(), run.learner.optimizer.state_dict(), saved, lines(folder)])
    assert_identical(*outcomes)


def test_a_run_stopped_between_two_validations_saves_at_once(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert run.fit(StopAfter(11)) == "interrupted"
    assert checkpoint.load(run.checkpoints.last)["state"]["step"] == 11


def test_a_checkpoint_needs_the_lines_of_all_its_validations(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "toy")
    run = start(tmp_path)
    run.recorder = FileTracker(tmp_path)
    run.fit(StopAfter(11))
    rhythm = build_rhythm(run.learner.train, EPOCH_STEPS)
    assert find_start(folder, rhythm).note == ""
    kept = folder.file("metrics.jsonl").read_text().splitlines(keepends=True)
    folder.file("metrics.jsonl").write_text("".join([kept[0], *kept[2:]]))
    assert "metrics.jsonl lacks epoch 1.5, which last.ckpt has behind it" in find_start(folder, rhythm).note


class Reports:
    """Keeps what a trial reports."""

    def __init__(self) -> None:
        """Nothing is reported yet."""
        self.numbers: list[int] = []

    def report(self, value: float, step: int) -> None:
        """Keep the number."""
        self.numbers.append(step)


@pytest.mark.parametrize(
    ("every", "epoch_steps", "numbers"),
    [
        (1, 3906, [1, 2]),
        (0.25, 3906, [1, 2, 3, 4, 5, 6, 7, 8]),
        (0.25, 5, [1, 2, 3, 4, 5, 6, 7, 8]),  # steps 2, 3, 4, 5, ...
        (0.3333333, 3, [1, 2, 3, 4, 5, 6]),
        ("3000steps", 3906, [1, 2, 2]),
        (2, 3906, [1]),
    ],
)
def test_pruners_compare_validations_by_their_number(every: Any, epoch_steps: int, numbers: list[int]) -> None:
    trial, rhythm = Reports(), build_rhythm(TrainConfig(epochs=2, eval_every=every), epoch_steps)
    pruner = TrialPruner(trial, "val_r2", Search(metrics={"val_r2": "maximize"}, space=(), trials=1), every)
    for step in sorted(rhythm.evaluate.until(2 * epoch_steps)):
        assert pruner.report({"step": step, "epoch": rhythm.epoch(step), "val_r2": 0.1})
    assert trial.numbers == numbers


def test_lines_between_validations_are_points_in_mlflow_in_the_order_of_their_steps(tmp_path: Path) -> None:
    folder, tracker = RunFolder(tmp_path, "toy"), FileTracker(tmp_path)
    for step in range(1, 5):
        row = {"step": step, "epoch": step / 4, "lr": 0.1}
        if step % 2:
            tracker.log({**row, "running_loss": 1.0})
        else:
            tracker.metrics({**row, "train_loss": 1.0})
        if step == 2:
            tracker.timing({**row, "train_seconds": 1.0})
    points = [{point.name: point.step for point in row} for row in _rows(folder, whole=False)]
    assert points[0] == {"epoch": 1, "lr": 1, "running_loss": 1}
    assert [row["epoch"] for row in points] == [1, 2, 3], "the last one waits for its wall-clock figures"
