"""What a study will cost: operations and parameters beside the real network's, disk, and hours by timed runs."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import config, ended, epochs, make_run, make_study, study, trial_of

from specvit.cluster.slots import LauncherConfig
from specvit.config.build import build_config
from specvit.config.model_kinds import MODEL_KINDS, num_tokens
from specvit.config.schema import ViTConfig
from specvit.models import build_model
from specvit.run_folder.folder import RunFolder
from specvit.study import forecast
from specvit.study.options import SweepOptions
from specvit.study.request import StudyRequest
from specvit.study.store import Trial
from specvit.study.trial_queue import has_open_trials, state_counts
from specvit.utils.quantities import NUM_PIXELS

SIZES = {
    "demo": {"patch_size": 64, "stride_size": 64, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 256},
    "overlapping": {
        "patch_size": 16,
        "stride_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 256,
    },
    "flat": {"patch_size": 128, "stride_size": 30, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64},
    "small": {"num_hidden_layers": 2},
}
KINDS = [
    {},
    {"proj_fn": "SW", "qkv_bias": False},
    {"pos_encoding_type": "rope", "pool": "mean"},
    {"pos_encoding_type": "sinusoidal", "pool": "attention"},
]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_network_is_as_large_as_the_forecast_says(size: str, kind: dict[str, Any]) -> None:
    model = ViTConfig(**SIZES[size], **kind, num_attention_heads=4)
    real = build_model(model, num_pixels=NUM_PIXELS, num_outputs=1, seed=0)
    plain = config(model=asdict(model), data={"num_samples": 1}, train={"epochs": 1})
    assert MODEL_KINDS["vit"].parameters(plain["model"]) == pytest.approx(
        sum(p.numel() for p in real.parameters()), rel=0.02
    )
    assert num_tokens(plain["model"]) == real.num_tokens + real.num_prefix_tokens
    assert forecast.work_of(plain) == real.cost().training_flops


def test_work_grows_with_spectra_and_epochs() -> None:
    one, more = (
        forecast.work_of(config(data={"num_samples": n}, train={"epochs": e})) for n, e in ((1000, 2), (3000, 4))
    )
    assert more == pytest.approx(6 * one)


def test_a_run_leaves_its_checkpoints_on_disk() -> None:
    small, large = config(model=TINY), config()
    more = MODEL_KINDS["vit"].parameters(large["model"]) - MODEL_KINDS["vit"].parameters(small["model"])
    each = 4 * (3 + 3 + 1)  # weights and two moments of last and previous, weights of best
    assert forecast.disk_bytes(large) - forecast.disk_bytes(small) == each * more > 0
    assert forecast.disk_bytes(config(data={"test_samples": -1})) < forecast.disk_bytes(large)


# hours


def settings_of(root: Path, spectra: int = 1000) -> dict[str, Any]:
    return config(model=TINY, data={"num_samples": spectra}, train={"epochs": 4}, tracking={"folder": str(root)})


def timed(root: Path, number: int, seconds: float, *, done: int = 2) -> RunFolder:
    """Return a finished run of `done` epochs of four, each of so many seconds."""
    return make_run(
        root / f"toy-0000000{number}",
        "completed",
        rows=epochs(val_r2=[0.1] * done),
        seconds=[seconds] * done,
        summary={"test_r2": 0.1},
        settings=settings_of(root),
    )


def to_make(root: Path, spectra: int = 1000) -> Trial:
    """Return a trial that never began."""
    return Trial(0, "toy", {}, "", settings_of(root, spectra), "99999999", str(root / "toy-99999999"))


def test_the_median_of_timed_runs_counts(tmp_path: Path) -> None:
    runs = [timed(tmp_path, 0, 3.0, done=4), timed(tmp_path, 1, 5.0), timed(tmp_path, 2, 100.0)]
    found = forecast.training_rates(tmp_path).get("vit")
    assert found is not None
    assert found[0] * forecast.work_of(settings_of(tmp_path)) == pytest.approx(20.0)
    assert found[1] == 3
    runs[2].file("config.yaml").write_text("a: [")
    runs[0].file("timing.jsonl").unlink()
    assert (forecast.training_rates(tmp_path).get("vit") or (0, 0))[1] == 1
    assert forecast.training_rates(tmp_path / "nowhere") == {}


def test_only_the_latest_runs_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        os.utime(timed(tmp_path, number, 10.0**number).file("summary.json"), (1e9 + number, 1e9 + number))
    latest = forecast.training_rates(tmp_path).get("vit")
    monkeypatch.setattr(forecast, "TIMED_RUNS", 1)
    only = forecast.training_rates(tmp_path).get("vit")
    assert latest and only and only[1] == 1
    assert only[0] == pytest.approx(10 * latest[0])


@pytest.mark.parametrize(
    ("count", "spectra", "said"),
    [
        (3, 1000, "time: about 12 minutes for one worker, by the operations and 1 run timed here"),
        (30, 3000, "time: about 6.0 hours for one worker, by the operations and 1 run timed here"),
        (1, 10, "time: about 0 minutes for one worker, by the operations and 1 run timed here"),
    ],
)
def test_the_forecast_says_hours_and_disk(count: int, spectra: int, said: str, tmp_path: Path) -> None:
    timed(tmp_path / "outputs", 1, 60.0)
    trials = [to_make(tmp_path / "outputs", spectra)] * count
    disk, hours = forecast.cost_lines(trials)
    assert hours == said
    assert disk == f"disk: about {count * forecast.disk_bytes(trials[0].config) / 1e6:.0f} MB"


def test_without_a_timed_run_the_time_is_unknown(tmp_path: Path) -> None:
    assert forecast.cost_lines([]) == ["nothing is left to do"]
    trials = [to_make(tmp_path / "outputs")] * 2000
    disk, hours = forecast.cost_lines(trials)
    assert hours == "time: unknown until a run has finished here"
    assert disk == f"disk: about {2000 * forecast.disk_bytes(trials[0].config) / 1e9:.1f} GB"


def test_what_all_rows_of_a_file_cost_is_unknown(tmp_path: Path) -> None:
    timed(tmp_path / "outputs", 1, 60.0)
    known, unknown = to_make(tmp_path / "outputs"), to_make(tmp_path / "outputs", -1)
    assert "data.num_samples=-1" in forecast.cost_lines([known, unknown])[1]
    assert forecast.cost_lines([known])[1].endswith("1 run timed here")
    make_run(tmp_path / "outputs" / "all", "completed", rows=[{"epoch": 4}], seconds=[9.0], settings=unknown.config)
    assert forecast.cost_lines([known])[1].endswith("1 run timed here")


# a study's open runs


def test_only_open_runs_are_forecast_and_failed_ones_counted(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    runs = [timed(outputs, number, 60.0, done=4) for number in range(5)]
    runs[1].set_status("crashed")
    runs[2].set_status("preempted")
    runs[3].set_status("preempted")
    runs[4].set_status("preempted")
    made = make_study(tmp_path / "toy", runs, trials=7)
    ended(made, 3, "lost", given_up=True)
    ended(made, 4, "pruned")
    _, hours, failed = forecast.open_cost_lines(made)
    assert hours.startswith("time: about 4 minutes")
    assert failed == "2 failed before and stay as they are; sweep.retry=true tries them again"
    assert state_counts(made) == "7 runs: 3 waiting, 1 completed, 1 pruned, 1 crashed, 1 lost"
    assert has_open_trials(made)


def test_where_all_is_settled_there_is_no_work_left(tmp_path: Path) -> None:
    runs = [timed(tmp_path / "outputs", number, 1.0) for number in range(2)]
    made = make_study(tmp_path / "toy", runs)
    assert (has_open_trials(made), forecast.open_cost_lines(made)) == (False, [])
    made.request_retry(made.trials()[1])
    assert has_open_trials(made)


def test_a_dry_run_tells_what_it_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = timed(tmp_path / "outputs", 1, 1.0)
    made = make_study(tmp_path / "toy", [run])
    waiting = to_make(tmp_path / "outputs")
    trials = [trial_of(0, run, {"cell": "old", "train.seed": 1}), waiting]
    order = StudyRequest(study("grids: [{}]"), {}, SweepOptions(), LauncherConfig(kind="local"), ())
    assert forecast.print_plan(made, order, trials) == [waiting]
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == [
        "study toy, local: nothing is started (sweep.dry_run)",
        "  completed      toy-00000001  old, train.seed=1",
        "  to do          toy  ",
        "2 runs: 1 completed, 1 to do",
    ]
    assert said[4:] == forecast.cost_lines([waiting])


@pytest.mark.parametrize(
    ("init", "stride", "twins"),
    [("specvit", 64, 4), ("legacy", 64, 2), ("legacy_positions", 64, 4), ("specvit", 32, 0)],
)
def test_twins_are_named_before_they_are_run(init: str, stride: int, twins: int, tmp_path: Path) -> None:
    """And they are twins: networks that are built alike give the same outputs to the last bit."""
    names = ["C1D", "SW", "linear"][: 3 if stride == 64 else 2]
    models = [{**SIZES["demo"], "proj_fn": name, "stride_size": stride, "init": init} for name in names]
    plans = [config(model=model, train={"seed": seed}) for seed in (1, 2) for model in models]
    trials = [replace(trial_of(n, make_run(tmp_path / f"toy-0000000{n}"), {}), config=c) for n, c in enumerate(plans)]
    line = forecast.twins_line(trials)
    assert line.startswith(f"{twins} of 6 runs are twins of others: model.proj_fn ") if twins else line == ""
    flux_BP = torch.randn(3, NUM_PIXELS, generator=torch.Generator().manual_seed(0))
    configs = [build_config(trial.config) for trial in trials if trial.config["train"]["seed"] == 1]
    built = [build_model(one.model, num_pixels=NUM_PIXELS, num_outputs=1, seed=1).eval()(flux_BP) for one in configs]
    same = sum(any(torch.equal(one, other) for other in built[:n]) for n, one in enumerate(built))
    assert not twins or 2 * same == twins, "with overlap they are equal at first only"
