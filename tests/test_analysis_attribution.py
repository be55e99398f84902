"""`specvit analysis attention`: where models look, against what is known of models made by hand, and what it writes."""

import csv
import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bounds_fixtures import BUILTIN, trained

from specvit.analysis.attribution import (
    PRECISION,
    attention_of,
    attribution,
    best_weights,
    optimal_weights,
    spread,
)
from specvit.analysis.bounds.inputs import open_stars
from specvit.commands.analysis import main
from specvit.commands.evaluate import read_config
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import Config, ViTConfig
from specvit.data.batches import EvalData, eval_data
from specvit.data.labels import LabelScaler
from specvit.data.splits import open_split
from specvit.estimators.ridge import Linear
from specvit.models import ViT, build_model
from specvit.models.block import attend, attention_weights
from specvit.physics.features import FEATURES
from specvit.physics.instrument import wavelength
from specvit.run.predictor import Predictor, load_predictor
from specvit.run.run import run as begin
from specvit.utils.errors import CheckpointError
from tools.spectral_grid.titanium_oxide import SYSTEMS, _band

TOY = ["model.patch_size=32", "model.stride_size=16", "model.hidden_size=32", "model.num_hidden_layers=3"]
TOY += ["model.num_attention_heads=4", "model.intermediate_size=64"]


def config_of(*overrides: str) -> Config:
    return build_config(compose([*TOY, *overrides]))


def vit(*overrides: str, pixels: int = 136) -> ViT:
    """Return a network with weights large enough for its attention to be uneven."""
    model = config_of(*overrides).model
    assert isinstance(model, ViTConfig)
    made = build_model(model, num_pixels=pixels, num_outputs=1, seed=1).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return made


def test_weights_are_those_that_attend_uses() -> None:
    query, key, value = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention_weights(query, key) @ value, attend(query, key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_attention_of_a_block_is_what_its_forward_pass_does(pool: str, positions: str) -> None:
    """The output of the network, put together again from the weights and the values."""
    model = vit(f"model.pool={pool}", f"model.pos_encoding_type={positions}")
    flux_BP = torch.randn(3, 136, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weights, pooled_BS = model.attention(flux_BP)
        x_BSD = model._embedded(flux_BP)
        for block, weights_BSS in zip(model.blocks, weights, strict=True):
            normed = block.norm_attention(x_BSD)
            per_head = block.attention.weights(normed)
            torch.testing.assert_close(per_head.mean(1), weights_BSS)
            values = block.attention._heads(block.attention.qkv(normed).chunk(3, dim=-1)[2])
            x_BSD = x_BSD + block.attention.out((per_head @ values).transpose(1, 2).flatten(2))
            x_BSD = x_BSD + block.feed_forward(block.norm_feed_forward(x_BSD))
        vector_BD = (pooled_BS[:, :, None] * model.norm(x_BSD)).sum(1)
        torch.testing.assert_close(model.head(vector_BD), model(flux_BP), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_shares_of_attention_sum_to_one(pool: str) -> None:
    blocks_LBS, rollout_BS = attention_of(vit(f"model.pool={pool}"), torch.randn(5, 136))
    assert blocks_LBS.shape[:2] == (3, 5)
    torch.testing.assert_close(blocks_LBS.sum(-1), torch.ones(3, 5))
    torch.testing.assert_close(rollout_BS.sum(-1), torch.ones(5))
    assert float(blocks_LBS.std()) > 1e-3, "an even attention would prove nothing"


def test_rollout_is_the_product_of_the_blocks_matrices() -> None:
    model, flux_BP = vit(), torch.randn(2, 136)
    with torch.no_grad():
        weights, pooled_BS = model.attention(flux_BP)
    product = torch.eye(weights[0].shape[1])
    for weights_BSS in weights:  # the first block acts first, so that it stands rightmost
        product = (0.5 * torch.eye(weights[0].shape[1]) + 0.5 * weights_BSS) @ product
    torch.testing.assert_close(attention_of(model, flux_BP)[1], torch.einsum("bs,bst->bt", pooled_BS, product))


def test_tokens_are_spread_over_their_patches() -> None:
    spread_P = spread(np.array([0.5, 0.25, 0.25]), pixels=11, patch=4, stride=3)
    expected = np.array([0.5, 0.5, 0.5, 0.75, 0.25, 0.25, 0.5, 0.25, 0.25, 0.25, 0]) / 4
    np.testing.assert_allclose(spread_P, expected)


def test_the_optimum_is_the_posterior_mean_of_a_linear_model() -> None:
    """Its weights against Bayes' rule in the space of pixels, with a wide prior on the amplitude."""
    slope_BLP, scaled_BP = torch.randn(3, 2, 30).double(), 5 + torch.randn(3, 30).double()
    found = best_weights(slope_BLP, scaled_BP)
    prior = torch.diag(torch.tensor([1 / PRECISION, 1 / PRECISION, 1e8]).double())
    for slope_LP, scaled_P, weight_LP in zip(slope_BLP, scaled_BP, found, strict=True):
        design = torch.cat((slope_LP, scaled_P[None])).T
        gain = prior @ design.T @ torch.linalg.inv(design @ prior @ design.T + torch.eye(30).double())
        torch.testing.assert_close(weight_LP, gain[:2], rtol=1e-4, atol=1e-6)


def test_marked_lines_are_in_the_line_list_and_heads_in_the_band_systems() -> None:
    text = files("tools.spectral_grid").joinpath("lines.csv").read_text()
    rows = [line.split(",") for line in text.splitlines() if line[0].isdigit()]
    heads = [1e8 / band[0].max() for system in SYSTEMS.values() for v in range(3) for band in _band(system, 0, v)]
    for feature in FEATURES:
        element = feature.name.split()[0].replace("Paschen", "H")
        waves = heads if element == "TiO" else [float(row[0]) for row in rows if row[1] == element]
        for place in feature.places:
            assert np.abs(np.array(waves) - place).min() < (1.0 if element == "TiO" else 1e-3), feature.name
        assert feature.inside(wavelength()).any()


def fitted(place: Path, *overrides: str) -> Path:
    """Return a finished run of a model that is no network."""
    settings = [*BUILTIN, *overrides, "train.precision=32", "tracking.progress=none", "tracking.live=false"]
    return begin(build_config(compose([*settings, f"tracking.folder={place}"]))).folder


def opened(run: Path) -> tuple[Predictor, EvalData]:
    """Return a run's model and its test rows."""
    config, device = read_config(run), torch.device("cpu")
    model = load_predictor(run / "best.ckpt", config, device, run.name[-8:])
    spectra = open_split(config.data, "test", lambda *_: None)
    return model, eval_data(spectra, "test", config, model.coder, model.flux_norm, device)


@pytest.mark.slow
def test_saliency_of_a_network_is_that_of_differences(ceiling_runs: Path) -> None:
    model, view = opened(next(path for path in ceiling_runs.iterdir() if path.name.startswith("sw")))
    found, flux_BP = attribution(model, view, "log_g", 3), view.rows(np.arange(3)).flux_BP
    assert found.share_P.sum() == pytest.approx(1)
    assert isinstance(model.coder, LabelScaler)
    step = 0.02
    for pixel in (5, 1000, 3000):
        moved_P = torch.zeros(len(model.wave_P))
        moved_P[pixel] = step / model.flux_norm.scale
        with torch.no_grad():
            up, down = (model.model(flux_BP + sign * moved_P)[:, 0].numpy() for sign in (1, -1))
        slope = float(((up - down) / (2 * step)).mean()) * model.coder.scale[0]
        assert found.gradient_P[pixel] == pytest.approx(slope, rel=0.02, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["heteroscedastic", pytest.param("homoscedastic", marks=pytest.mark.nightly)])
def test_saliency_of_ridge_is_its_weights_times_the_noise(noise: str, tmp_path: Path) -> None:
    """And so is what noise does to its predictions, drawn 2,000 times."""
    run = fitted(tmp_path, "model=ridge", f"noise.noise_type={noise}", "noise.noise_level=2")
    model, view = opened(run)
    found = attribution(model, view, "log_g", 70)
    assert isinstance(model.model, Linear) and isinstance(model.coder, LabelScaler) and found.attention is None
    weight_P = model.model.weight[:, 0].double().numpy() * model.coder.scale[0] / model.flux_norm.scale
    np.testing.assert_allclose(found.gradient_P, weight_P, rtol=1e-5)
    sigma_BP = 2 * view.store.gather(np.arange(70))[1].double().numpy()
    if noise == "homoscedastic":
        sigma_BP = np.repeat(np.sort(sigma_BP, axis=1)[:, [2047]], 4096, axis=1)
    part_BP = (weight_P * sigma_BP) ** 2
    np.testing.assert_allclose(found.share_P, (part_BP / part_BP.sum(1, keepdims=True)).mean(0), rtol=1e-5)
    noise_NP = np.random.default_rng(0).standard_normal((2000, 4096)) * sigma_BP[0]
    one = attribution(model, view, "log_g", 1)
    assert (noise_NP @ weight_P).std() == pytest.approx(one.noise, rel=0.05)


@pytest.mark.slow
def test_runs_become_tables_and_a_figure_for_each_setting(
    ceiling_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attention", str(ceiling_runs), "--rows", "40"]) == 0
    said, out = capsys.readouterr().out, ceiling_runs / "attention"
    assert f"written: {out}" in said and "first 40 rows" in said and "note:" not in said
    names = {path.name for path in out.iterdir()}
    figures = sorted(name for name in names if name.endswith(".png"))
    assert len(figures) == 2 and {name.replace(".png", ".pdf") for name in figures} < names
    from PIL import Image

    for name in figures:
        with Image.open(out / name) as image:
            assert round(image.info["dpi"][0]) == 300 and len(image.convert("RGB").getcolors(2**24)) > 100
    with (out / "attention.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    settings = {row["setting"] for row in rows}
    assert len(settings) == 2 and len(rows) == 2 * 4096
    for setting in settings:
        mine = [row for row in rows if row["setting"] == setting]
        for kind in ("saliency", "attention", "rollout", "optimum"):
            assert sum(float(row[kind]) for row in mine) == pytest.approx(1, abs=1e-3)
    whole, text = json.loads((out / "attention.json").read_text()), (out / "attention.md").read_text()
    assert 0 < whole["optimum_noise"] < 1.2 and all(f"({name})" in text for name in figures)
    assert whole["stars"] == 40 and whole["unit"] == "dex" and "built-in" in whole["test_set"]
    for setting in whole["settings"]:
        assert setting["run_ids"] in text and len(setting["noise"]) == len(setting["seeds"].split())
        calcium = next(row for row in setting["features"] if row["feature"] == "Ca II triplet")
        assert (calcium["saliency_sd"] is None) == (len(setting["noise"]) == 1)
        inside_P = FEATURES[0].inside(wavelength())
        mine = [float(row["saliency"]) for row in rows if row["setting"] == setting["name"]]
        assert calcium["saliency"] == pytest.approx(np.array(mine)[inside_P].sum(), rel=1e-4)
        assert calcium["optimum"] > 2 * calcium["pixels"], "the triplet is where gravity shows"


@pytest.mark.slow
def test_what_cannot_be_looked_into_is_left_out_or_refused(
    ceiling_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(ceiling_runs, "model=template")
    first, second = sorted(path for path in ceiling_runs.iterdir() if path.name.startswith("c1d"))
    (second / "best.ckpt").unlink()
    assert main(["attention", str(ceiling_runs), "--rows", "20", "--out", "made"]) == 0
    said = capsys.readouterr().out
    assert "1 run left out: no best.ckpt" in said and "1 run left out: model=template" in said
    assert first.name.split("-")[-1] in Path("made/attention.md").read_text()
    assert main(["attention", str(second)]) == 2
    assert "has no run to look into" in capsys.readouterr().err
    shutil.copy(first / "run.json", first / "best.ckpt")
    assert main(["attention", str(first)]) == 2
    heard = capsys.readouterr().err
    assert heard.startswith("specvit: ") and heard.count("\n") == 1 and "best.ckpt" in heard


@pytest.mark.slow
def test_a_label_without_slopes_in_the_model_has_no_optimum(
    ceiling_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(Path("magnitudes"), *BUILTIN, "model.proj_fn=SW", "data.param=[mag]", "noise.noise_level=0")
    assert main(["attention", "magnitudes", "--label", "mag", "--rows", "20"]) == 0
    assert "note: no optimum" in capsys.readouterr().out
    assert "optimum" not in Path("magnitudes/attention/attention.csv").read_text().splitlines()[0]
    assert "Noise moves" not in Path("magnitudes/attention/attention.md").read_text(), "there was none"
    other = next(path for path in ceiling_runs.iterdir() if path.name.startswith("sw"))
    (run,) = (path for path in Path("magnitudes").iterdir() if path.name != "attention")
    shutil.copy(run / "best.ckpt", other / "best.ckpt")
    assert main(["attention", str(other)]) == 2
    assert f"best.ckpt: belongs to run {run.name[-8:]}, and this is {other.name[-8:]}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_gives_every_spectrum_the_same_is_refused(ceiling_runs: Path) -> None:
    model, view = opened(next(path for path in ceiling_runs.iterdir() if path.name.startswith("sw")))
    assert isinstance(model.model, ViT)
    torch.nn.init.zeros_(model.model.head.weight)
    with pytest.raises(CheckpointError, match="gives every spectrum the same"):
        attribution(model, view, "log_g", 3)


def test_other_spectra_in_the_place_of_the_tested_ones_are_refused(
    tiny: list[str], stars: Any, write_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = write_set(tmp_path / "test", 30)
    done = begin(build_config(compose([*tiny, f"data.test_path={test}", f"tracking.folder={tmp_path / 'outputs'}"])))
    assert main(["attention", str(done.folder), "--rows", "500"]) == 0
    assert "first 30 rows" in capsys.readouterr().out, "there are no more"
    text = (done.folder / "attention" / "attention.json").read_text()
    assert {row["feature"] for row in json.loads(text)["settings"][0]["features"]} == {"Ca I", "TiO gamma 0-0"}
    test.unlink()
    write_set(tmp_path / "test", 31)
    assert main(["attention", str(done.folder)]) == 2
    assert "data.test_path: is not what it was; put the spectra back" in capsys.readouterr().err


@pytest.mark.slow
def test_stars_with_an_error_of_0_are_in_no_optimum(ceiling_runs: Path) -> None:
    model, _ = opened(next(path for path in ceiling_runs.iterdir() if path.name.startswith("sw")))
    known = open_stars(model.config, 4)

    def pixels(labels_BL: torch.Tensor, rows_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        flux_BP, error_BP = known.pixels(labels_BL, rows_B)
        spoilt_B1 = torch.from_numpy(rows_B == 2)[:, None] & (torch.arange(error_BP.shape[1]) == 7)
        return flux_BP, error_BP * ~spoilt_B1

    found, whole = optimal_weights(replace(known, pixels=pixels), "log_g"), optimal_weights(known, "log_g")
    assert found is not None and whole is not None and 0 < found.noise < 1.2
    assert found.share_P.sum() == pytest.approx(1) and 0 < np.abs(found.share_P - whole.share_P).max() < 0.1
