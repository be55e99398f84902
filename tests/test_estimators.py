"""Estimators: ridge as scikit-learn's, templates as by hand, trees, and the states that all runs share."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from whole_runs import whole_and_stopped

from specvit.commands import evaluate
from specvit.config.build import build_config
from specvit.config.compose import Composer, compose
from specvit.config.schema import CNNConfig, Config, LightGBMConfig, LossConfig
from specvit.data.batches import EvalData, eval_data
from specvit.data.splits import Splits, open_splits
from specvit.estimators.ridge import Linear, solve, sum_up
from specvit.estimators.template import Template
from specvit.run.context import locate
from specvit.run.run import Result, run
from specvit.utils.errors import ConfigError
from specvit.utils.quantities import Batch

KINDS = ("ridge", "lightgbm", "template")
SMALL_TREES = ("model.num_trees=40", "model.patience=20", "model.min_leaf_rows=5", "model.pixel_fraction=0.5")


def settings(tiny: list[str], kind: str, *more: str) -> list[str]:
    """Return the overrides of a run of `kind` on the toy sets."""
    trees = SMALL_TREES if kind == "lightgbm" else ()
    return [*(text for text in tiny if not text.startswith("model.")), f"model={kind}", *trees, *more]


def configured(tiny: list[str], kind: str, *more: str) -> Config:
    return build_config(compose(settings(tiny, kind, *more)))


def made(tiny: list[str], folder: Path, kind: str, *more: str) -> Result:
    return run(configured(tiny, kind, f"tracking.folder={folder}", *more))


def run_id_of(tiny: list[str], kind: str, *more: str) -> str:
    return locate(configured(tiny, kind, *more), lambda *_: None).folder.run_id


def opened(config: Config) -> Splits:
    return open_splits(config, lambda *_: None)


def whole(view: EvalData) -> tuple[np.ndarray, np.ndarray]:
    batches = list(view.batches())
    return torch.cat([b.flux_BP for b in batches]).numpy(), torch.cat([b.target for b in batches]).numpy()


def noisy(config: Config, splits: Splits, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a split's flux as it is in the files, with the noise of `seed`, and its normalised labels."""
    plain = dataclasses.replace(config, noise=dataclasses.replace(config.noise, eval_seed=seed))
    from specvit.data.noise import FluxNorm

    nothing = FluxNorm(torch.zeros(splits.train.num_pixels), 1.0)
    return whole(eval_data(getattr(splits, split), split, plain, splits.coder, nothing, torch.device("cpu")))


@pytest.mark.parametrize(("mean", "spread"), [(0.3, 1.0), (1.0, 0.01)], ids=["centred", "as it is"])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 30.0, 1e4])
def test_ridge_is_that_of_scikit_learn(alpha: float, mean: float, spread: float) -> None:
    """From sums over batches of several sizes; one pixel never changes."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(40, 40)) * np.geomspace(1, 1e-3, 40)[:, None]
    flux_NP = (spread * (rng.normal(size=(300, 40)) @ mixing) / 6 + mean).astype(np.float32)
    flux_NP[:, 7] = 0.3
    label_NK = np.stack((flux_NP[:, 0] / spread + rng.normal(size=300), rng.normal(size=300)), axis=1).astype(
        np.float32
    )
    cuts = [slice(0, 100), slice(100, 101), slice(101, 300)]
    batches = [Batch(torch.from_numpy(flux_NP[cut]), torch.from_numpy(label_NK[cut])) for cut in cuts]
    counts: list[int] = []
    weight_APK, bias_AK = solve(sum_up(batches, counts.append), np.array([alpha]))
    assert counts == [100, 101, 300]
    scaled_NP = StandardScaler().fit_transform(flux_NP.astype(np.float64))
    expected = Ridge(alpha).fit(scaled_NP, label_NK)
    found_NK = flux_NP.astype(np.float64) @ weight_APK[0] + bias_AK[0]
    np.testing.assert_allclose(found_NK, expected.predict(scaled_NP), rtol=1e-4, atol=1e-4)
    weights, bias = torch.from_numpy(weight_APK[0]).float(), torch.from_numpy(bias_AK[0]).float()
    np.testing.assert_allclose(Linear(weights, bias)(torch.from_numpy(flux_NP)), found_NK, rtol=1e-3, atol=1e-2)
    both = Linear.of_all(weight_APK.repeat(3, axis=0).astype(np.float32), bias_AK.repeat(3, axis=0).astype(np.float32))
    three_NAK = both(torch.from_numpy(flux_NP)).reshape(300, 3, 2)
    np.testing.assert_allclose(three_NAK[:, 2], Linear(weights, bias)(torch.from_numpy(flux_NP)), rtol=1e-3, atol=3e-3)


@pytest.mark.slow
def test_a_ridge_run_is_scikit_learn_on_the_same_noisy_rows(tiny: list[str], tmp_path: Path) -> None:
    """The penalty too: the one with the least error on the validation rows."""
    result = made(tiny, tmp_path, "ridge", "noise.eval_seed=7")
    config = configured(tiny, "ridge", "noise.eval_seed=7")
    splits = opened(config)
    (train_NP, train_NK), (val_NP, val_NK), (test_NP, _) = (
        noisy(config, splits, split, seed) for split, seed in (("train", 42), ("val", 7), ("test", 7))
    )
    scaler = StandardScaler().fit(train_NP.astype(np.float64))
    fits = [Ridge(alpha).fit(scaler.transform(train_NP), train_NK) for alpha in np.geomspace(0.1, 1e7, 33)]
    errors = [float(np.mean((fit.predict(scaler.transform(val_NP)).reshape(-1, 1) - val_NK) ** 2)) for fit in fits]
    best = int(np.argmin(errors))
    (row,) = (json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines())
    assert row["alpha"] == pytest.approx(np.geomspace(0.1, 1e7, 33)[best])
    assert row["val_loss"] == pytest.approx(errors[best], rel=1e-3)
    assert isinstance(splits.coder.names, tuple)
    predicted_N = fits[best].predict(scaler.transform(test_NP)).ravel() * splits.coder.scale[0] + splits.coder.offset[0]
    table = pd.read_csv(result.folder / "predictions.csv")
    np.testing.assert_allclose(table["pred_log_g"], predicted_N, atol=2e-3)
    assert result.summary["test_r2"] > 0.8


@pytest.mark.parametrize("flux_norm", ["standard", "none"])
@pytest.mark.parametrize("estimate", ["mean", "best"])
def test_templates_are_weighed_by_hand_alike(
    estimate: str, flux_norm: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specvit.estimators.template.CHUNK", 50)  # so that sums go on over several
    config = configured(tiny, "template", f"model.estimate={estimate}", "noise.noise_level=2.0")
    splits = opened(config)
    from specvit.data.noise import fit_flux_norm

    norm = fit_flux_norm(splits.train, flux_norm, config.noise)
    cpu = torch.device("cpu")
    view = eval_data(splits.test, "test", config, splits.coder, norm, cpu)
    model = Template(config).open_templates(splits.train, splits.coder, cpu)
    batch = next(iter(view.batches()))
    flux_BP, sigma_BP = batch.flux_BP.double().unbind(1)
    template_TP = torch.from_numpy(splits.train.gather(np.arange(len(splits.train)))[0]).double().clamp(min=0)
    target_TK = splits.coder.encode(splits.train.label_values(("log_g",)))
    chi_BT = (((flux_BP[:, None] - template_TP) / sigma_BP[:, None]) ** 2).sum(2).numpy()
    weight_BT = np.exp(-0.5 * (chi_BT - chi_BT.min(1, keepdims=True)))
    expected_BK = weight_BT @ target_TK / weight_BT.sum(1, keepdims=True)
    if estimate == "best":
        expected_BK = target_TK[chi_BT.argmin(1)]
    np.testing.assert_allclose(model(batch.flux_BP), expected_BK, atol=2e-3)
    # The flux is the noisy one, and sigma is what the noise was drawn with.
    clean_BP, error_BP = (torch.from_numpy(x).double() for x in splits.test.gather(np.arange(len(batch.target))))
    torch.testing.assert_close(sigma_BP, 2 * error_BP)
    assert ((flux_BP - clean_BP) / sigma_BP).std().item() == pytest.approx(1, abs=0.02)


def test_trees_are_those_of_lightgbm_on_the_whole_array(tiny: list[str]) -> None:
    """Rows that come in pieces make the same trees, and the best number of them is kept."""
    import lightgbm

    from specvit.estimators.lightgbm import Trees, fit_trees, parameters

    config = configured(tiny, "lightgbm")
    assert isinstance(config.model, LightGBMConfig)
    splits = opened(config)
    from specvit.data.noise import FluxNorm

    nothing = FluxNorm(torch.zeros(splits.train.num_pixels), 1.0)
    views = [
        eval_data(view, split, config, splits.coder, nothing, torch.device("cpu"))
        for split, view in (("train", splits.train), ("val", splits.val))
    ]
    seen: list[tuple[int, float]] = []
    (flux_NP, target_NK), (val_NP, val_NK) = map(whole, views)

    def evaluate_trees(number: int, train_N: np.ndarray, val_N: np.ndarray) -> float:
        seen.append((number, float(np.mean((val_N - val_NK[:, 0]) ** 2))))
        assert np.mean((train_N - target_NK[:, 0]) ** 2) < 1
        return seen[-1][1]

    found = fit_trees(*views, config.model, LossConfig(), seed=3, evaluate=evaluate_trees)
    params = parameters(config.model, LossConfig(), 3)
    dataset = lightgbm.Dataset(flux_NP.astype(np.float64), target_NK[:, 0].astype(np.float64), params=params)
    expected = lightgbm.train(params, dataset, num_boost_round=found.best_step)
    np.testing.assert_allclose(
        Trees(found.parts["text"])(torch.from_numpy(val_NP))[:, 0], expected.predict(val_NP), atol=1e-6
    )
    assert [number for number, _ in seen] == list(range(10, 10 * len(seen) + 1, 10))
    assert found.best_step == min(seen, key=lambda pair: pair[1])[0]


def test_every_loss_is_one_of_lightgbm() -> None:
    from specvit.estimators.lightgbm import parameters

    losses = {name: parameters(LightGBMConfig(), LossConfig(name), 3)["objective"] for name in ("mse", "l1", "huber")}
    assert losses == {"mse": "regression", "l1": "regression_l1", "huber": "huber"}


@pytest.mark.slow
def test_trees_minimise_the_loss_that_was_chosen(tiny: list[str], tmp_path: Path) -> None:
    result = made(tiny, tmp_path, "lightgbm", "loss=l1")
    text = torch.load(result.folder / "best.ckpt", weights_only=True)["model"]["text"]
    assert "objective=regression_l1" in text
    assert result.summary["test_r2"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_recorded_finished_scored_and_evaluated_like_any_other(
    kind: str, tiny: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = made(tiny, tmp_path, kind)
    assert result.state in ("completed", "early_stopped") and result.exit_code == 0
    assert result.folder.name.startswith(f"{kind}-log_g-hdf5-all-")
    assert result.summary["test_rows"] == 64 and result.summary["test_r2"] > 0.5
    table = pd.read_csv(result.folder / "predictions.csv")
    assert made(tiny, tmp_path, kind).state == result.state
    assert "finished already" in capsys.readouterr().out
    assert evaluate.main([str(result.folder)]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(result.folder / "evaluate-test" / "predictions.csv"), table)
    assert (result.folder / "figures" / "predictions.png").exists()
    assert (result.folder / "figures" / "curves.png").exists() == (kind == "lightgbm")
    assert yaml.safe_load((result.folder / "config.yaml").read_text())["model"]["kind"] == kind
    # The same test rows as a network is scored on.
    theirs = pd.read_csv(finished / "predictions.csv")
    columns = ["file", "row", "snr", "mag", "true_log_g"]
    pd.testing.assert_frame_equal(theirs[columns], table[columns])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_loop_would_need_does_not_name_the_run(kind: str, tiny: list[str]) -> None:
    loop = ["opt.lr=0.5", "train.epochs=7", "train.batch_size=3", "opt.type=SGD"]
    plain, again, other = (run_id_of(tiny, kind, *more) for more in ([], loop, ["train.seed=43"]))
    assert again == plain
    assert (other == plain) == (kind == "template")  # which sees no training noise


@pytest.mark.slow
def test_training_noise_is_keyed_by_the_seed(tiny: list[str], tmp_path: Path) -> None:
    one, other = (made(tiny, tmp_path, "ridge", f"train.seed={seed}") for seed in (1, 2))
    tables = [pd.read_csv(result.folder / "predictions.csv") for result in (one, other)]
    assert (tables[0]["true_log_g"] == tables[1]["true_log_g"]).all()
    assert np.abs(tables[0]["pred_log_g"] - tables[1]["pred_log_g"]).max() > 1e-3
    clean = [made(tiny, tmp_path, "ridge", f"train.seed={seed}", "noise=none") for seed in (1, 2)]
    assert clean[0].folder == clean[1].folder and not clean[0].folder.name.rpartition("-")[0].endswith("s1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ridge", "template"])
def test_several_labels_at_once(kind: str, tiny: list[str], tmp_path: Path) -> None:
    result = made(tiny, tmp_path, kind, "data.param=[log_g,T_eff]")
    assert result.summary["test_r2_T_eff"] > 0.5
    alone = made(tiny, tmp_path, kind)
    exact = 1e-6 if kind == "template" else 0.02  # one penalty serves both labels
    assert result.summary["test_r2"] == pytest.approx(alone.summary["test_r2"], abs=exact)


REFUSED = [
    (["model=ridge", "model.patch_size=8"], "model.patch_size: belongs to model=vit, not to "),
    (["model=ridge", "model/size=base"], "model/size: belongs to model=vit, not to model=ridge"),
    (["model.num_alphas=3"], "model.num_alphas: belongs to model=ridge, not to the model that was chosen"),
    (["model=rigde"], "did you mean ridge"),
    (["model.kind=[a]"], "model.kind: ['a'] is not one of vit, cnn, ridge, lightgbm, template"),
    (["model.kind=CNN", "model.patch_size=8"], "model.patch_size: belongs to model=vit, not to model=cnn"),
    (["model.kind=rigde"], "model.kind: 'rigde' is not one of vit, cnn, ridge, lightgbm, template"),
    (["model=ridge", "loss=l1"], "loss.name: is l1, but model=ridge minimises squared errors; use loss=mse"),
    (["model=template", "loss=laplace"], "loss.name: is laplace, but model=template minimises squared errors"),
    (
        ["model=lightgbm", "loss=gaussian"],
        "loss.name: is gaussian, but model=lightgbm predicts one number a label, without a scale; use loss=mse, l1",
    ),
    (["model=ridge", "model.task_type=cls", "loss=ce"], "model.task_type: 'cls' is not one of reg"),
    (["model=lightgbm", "data.param=[log_g,T_eff]"], "model=lightgbm learns one"),
    (["model=template", "noise=none"], "model=template weights pixels by their noise"),
    (["model=ridge", "data=synth", "data.endless=true"], "data.endless: is set, but model=ridge"),
    (
        ["model=ridge", "train.init_from=outputs/x"],
        "train.init_from: is set, but model=ridge has no weights to start from",
    ),
    (["model=cnn", "model.channels=[8,8,8,8,8,8,8]"], "model.channels: pools 7 times by 4"),
    (["model=ridge", "model.num_alphas=0"], "model.num_alphas: expects a whole number from 1 to 100,000, not 0"),
    (["model=ridge", "model.alpha_range=10,1"], "goes from 10 down to 1; set model.alpha_range=[1,10]"),
    (["model=ridge", "model.num_alphas=1"], "only the first of the penalties"),
]


def test_what_does_not_go_together_is_refused_in_a_sentence() -> None:
    compose = Composer()
    for overrides, complaint in REFUSED:
        with pytest.raises(ConfigError, match=re.escape(complaint)):
            build_config(compose(overrides))


@pytest.mark.parametrize("model", ["model=cnn", "model.kind=cnn", "model.kind=CNN"])
def test_an_experiment_of_the_vit_serves_the_cnn(model: str) -> None:
    composed = compose(["experiment=demo", model])
    assert composed["model"]["kind"] == "cnn"
    assert build_config(composed).model == CNNConfig()


def test_the_builder_takes_a_kind_in_upper_case() -> None:
    plain = compose(["model=cnn"])
    plain["model"]["kind"] = "CNN"
    assert build_config(plain).model == CNNConfig()


PAIRS = [
    pytest.param(kind, number, marks=pytest.mark.slow if chosen else pytest.mark.nightly, id=f"{kind}-{number.name}")
    for kind in KINDS
    for number in (signal.SIGKILL, signal.SIGTERM)
    for chosen in [(kind, number) == ("ridge", signal.SIGKILL)]
]


@pytest.mark.parametrize(("kind", "number"), PAIRS)
def test_a_stopped_run_starts_again_and_comes_to_the_same(
    kind: str, number: signal.Signals, tiny: list[str], tmp_path: Path
) -> None:
    def words(folder: str) -> list[str]:
        return settings(tiny, kind, f"tracking.folder={tmp_path / folder}", "train.threads=1")

    whole_and_stopped(words, number, "each with one noise")
    for name in ("predictions.csv", "metrics.jsonl"):
        one, other = (next((tmp_path / folder).glob(f"*/{name}")).read_bytes() for folder in ("whole", "stopped"))
        assert one == other


@pytest.mark.slow
def test_the_estimator_of_the_contributing_page_is_a_short_change_that_works(tiny: list[str], tmp_path: Path) -> None:
    top = Path(__file__).resolve().parent.parent
    page = (top / "CONTRIBUTING.md").read_text()
    diff = page.split("## Add an estimator")[1].split("```diff\n")[1].split("```")[0]
    registration = diff.split("+++ b/specvit/estimators/pls.py")[0]
    assert len(re.findall(r"^\+(?!\+\+)", registration, re.MULTILINE)) <= 25
    for name in ("specvit", "conf"):
        shutil.copytree(top / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    words = settings(tiny, "pls", f"tracking.folder={tmp_path / 'runs'}")
    command = [sys.executable, "-P", "-m", "specvit.train", *words]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True)
    (summary,) = (tmp_path / "runs").glob("pls-*/summary.json")
    assert json.loads(summary.read_text())["test_r2"] > 0.8
