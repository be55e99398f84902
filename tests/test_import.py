"""`specvit import`: each key of another file is taken over, dropped with the reason, or asked for, in one message."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from import_files import FILES, answers

from specvit.cli import main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.foreign_keys import entries, tables
from specvit.config.schema import Config
from specvit.config.suggestions import is_known
from specvit.importing.read_file import flat, resolved, unwrapped
from specvit.importing.special import HANDLERS
from specvit.importing.translate import translate
from specvit.importing.translation import ASKED, CHANGES, DROPPED, UNKNOWN, Translation
from specvit.importing.translation import TAKEN as TAKEN_OVER
from specvit.importing.values import metric_name, value_of
from specvit.run.run import run
from specvit.study.yaml_schema import valued
from specvit.utils.files import read_json_lines


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAIN_DIR", raising=False)
    return tmp_path


def composed(*overrides: str) -> Config:
    return build_config(compose(overrides))


def value(config: Config, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_the_owners_files_is_answered_and_the_file_composes(name: str, imported: Any) -> None:
    text, expected, values = FILES[name]
    code, message = imported(text, f"{name}.yaml")
    assert code == 0, message
    for key in flat(yaml.safe_load(text)):
        wanted = expected.get(key, f"{key}=")
        assert answers(message, key, wanted), (key, wanted, message)
    config = composed(f"experiment={name}")
    assert {key: value(config, key) for key in values} == values
    assert message.splitlines()[-1].startswith(f"run it:  specvit train experiment={name}")


@pytest.mark.nightly
@pytest.mark.parametrize("name", FILES)
def test_an_imported_file_trains_two_steps(name: str, imported: Any, toy_sets: Path) -> None:
    imported(FILES[name][0], f"{name}.yaml")
    data = [f"data.root={toy_sets}", "data.file_path=train_*/dataset.h5"]
    data += ["data.val_path=val/dataset.h5", "data.test_path=test/dataset.h5"]
    small = ["data.num_samples=64", "data.val_samples=-1", "data.test_samples=-1", "train.batch_size=32"]
    small += ["train.epochs=1", "train.precision=32", "tracking.live=false", "tracking.progress=lines"]
    result = run(composed(f"experiment={name}", "data=hdf5", *data, *small))
    [epoch] = read_json_lines(result.folder / "metrics.jsonl")  # two steps, after which the verdict means nothing
    assert epoch["step"] == 2 and math.isfinite(epoch["val_loss"])


SPELLINGS = {
    "viz.enable: true": f"{DROPPED}: every run draws its own figures",
    "plotting.dpi: 300": f"{DROPPED}: every run draws its own figures",
    "warmup.preprocessor: 5": f"{CHANGES}: specvit has no preprocessor",
    "noise.sigma: 0.5": f"{TAKEN_OVER}: noise.noise_level=0.5",
    "data.file_path: ${TRAIN_DIR}": f"{TAKEN_OVER}: data.file_path=${{oc.env:TRAIN_DIR}}",
    "opt.lr: ${LR}": f"{UNKNOWN}: opt.lr takes no variable",
    "hidden_size: ${nope.x}": f"{UNKNOWN}: model.hidden_size refers to nope.x, which the file lacks",
    "name: my run": f"{TAKEN_OVER}: tracking.name=my-run",
    "model.list: []": f"{DROPPED}: it is not set",
    "foo: null": f"{DROPPED}: it is not set",
    "model.class_path: mine.SpectralViT": f"{TAKEN_OVER}: model.kind=vit",
    "trainer.check_val_every_n_epoch: 5": f"{CHANGES}: every epoch is validated",
    "pretrained: true": f"{CHANGES}: train.init_from=FILE",
    "greater_is_better: true": f"{ASKED}: of which metric?",
    "lr_scheduler.T_max: 100": f"{CHANGES}: a schedule is as long as train.epochs",
    "data.train_dir: $TRAIN_DIR/": f"{TAKEN_OVER}: data.file_path=${{oc.env:TRAIN_DIR}}/dataset.h5",
    "data.val_path: '${VAL_DIR:-/data}/v.h5'": f"{TAKEN_OVER}: data.val_path=${{oc.env:VAL_DIR,/data}}/v.h5",
    "data.test_path: '${oc.env:TEST_DIR}/t.h5'": f"{TAKEN_OVER}: data.test_path=${{oc.env:TEST_DIR}}/t.h5",
    "loss: MSE": f"{TAKEN_OVER}: loss.name=mse",
    "loss.name: L1": f"{TAKEN_OVER}: loss.name=l1",
    "training.loss: mae": f"{TAKEN_OVER}: loss.name=l1",
    "criterion: l2": f"{TAKEN_OVER}: loss.name=mse",
    "loss._target_: torch.nn.SmoothL1Loss": f"{TAKEN_OVER}: loss.name=huber",
    "loss.class_path: torch.nn.GaussianNLLLoss": f"{TAKEN_OVER}: loss.name=gaussian",
    "loss: weighted_MSE": f"{UNKNOWN}: loss.name 'weighted_MSE' is not one of mse, l1, huber",
    "criterion: chi2": "laplace, ce; labels have no errors to divide by, and those of the flux",
    "loss.use_errors: true": f"{CHANGES}: labels have no errors to divide by",
    "train.use_ivar: false": f"{DROPPED}: as here: labels have no errors",
    "model.proj_fn: CNN": f"{TAKEN_OVER}: model.proj_fn=C1D",
    "opt.type: adamw": f"{TAKEN_OVER}: opt.type=AdamW",
    "optimizer.class_path: torch.optim.AdamW": f"{TAKEN_OVER}: opt.type=AdamW",
    "optimizer.init_args.lr: '2e-05'": f"{TAKEN_OVER}: opt.lr=2e-05",
    "optimizer.params.betas: [0.9, 0.95]": f"{TAKEN_OVER}: opt.betas=[0.9, 0.95]",
    "lr_scheduler._target_: torch.optim.lr_scheduler.CosineAnnealingLR": f"{TAKEN_OVER}: opt.lr_sch=cosine",
    "lr_scheduler.patience: 5": f"{TAKEN_OVER}: opt.plateau_patience=5",
    "scheduler: linear": f"{UNKNOWN}: opt.lr_sch 'linear' is not one of",
    "scheduler.name: CosineAnnealingWarmRestarts": f"{UNKNOWN}: opt.lr_sch",
    "trainer.max_epochs: 30": f"{TAKEN_OVER}: train.epochs=30",
    "trainer.gradient_clip_val: 1.0": f"{TAKEN_OVER}: train.gradient_clip=1.0",
    "trainer.accumulate_grad_batches: 2": f"{TAKEN_OVER}: train.accumulate=2",
    "trainer.precision: bf16": f"{TAKEN_OVER}: train.precision=bf16-mixed",
    "trainer.devices: 4": f"{CHANGES}: one process trains on one device; if the batch size",
    "trainer.devices: 1": f"{DROPPED}: as here: one process",
    "trainer.accelerator: gpu": f"{DROPPED}: train.device=auto",
    "seed_everything: 7": f"{TAKEN_OVER}: train.seed=7",
    "num_train_epochs: 3": f"{TAKEN_OVER}: train.epochs=3",
    "per_device_train_batch_size: 64": f"{TAKEN_OVER}: train.batch_size=64",
    "max_grad_norm: 0": f"{TAKEN_OVER}: train.gradient_clip=null",
    "fp16: true": f"{TAKEN_OVER}: train.precision=16-mixed",
    "fp16: false": f"{TAKEN_OVER}: train.precision=32",
    "metric_for_best_model: eval_mae": f"{TAKEN_OVER}: train.early_stopping.monitor=val_mae",
    "hidden_act: gelu": f"{DROPPED}: as here: the activation is GELU",
    "hidden_act: relu": f"{CHANGES}: the activation is GELU",
    "attention_probs_dropout_prob: 0.1": f"{CHANGES}: attention weights are not dropped out",
    "hidden_dropout_prob: 0.1": f"{TAKEN_OVER}: model.dropout=0.1",
    "model.name: vit_small_patch16_224": f"{TAKEN_OVER}: model.num_attention_heads=6",
    "embedDim: 128": f"{TAKEN_OVER}: model.hidden_size=128",
    "data.num-workers: 8": f"{DROPPED}: batches are made on the device",
    "train_size: 50k": f"{TAKEN_OVER}: data.num_samples=50000",
    "train_size: 0.8": f"{UNKNOWN}: data.num_samples expects a whole number",
    "data.target: logg": f"{TAKEN_OVER}: data.param=log_g",
    "data.label_norm: z-score": f"{TAKEN_OVER}: data.label_norm=standard",
    "early_stopping: false": f"{TAKEN_OVER}: train.early_stopping.patience=null",
    "early_stopping.min_delta: 0.001": f"{CHANGES}: any better epoch counts",
    "train.precision: 64": f"{UNKNOWN}: train.precision 64 is not one of",
    "model.head_dim: 32": f"{ASKED}: it is model.hidden_size / model.num_attention_heads",
    "wandb.api_key: abcdefgh": f"{DROPPED}: records go to MLflow",
    "decoder.depth: 2": f"{UNKNOWN}: did you mean",
    "banana: 1": f"{UNKNOWN}: no key here has a name like it",
    "opt.lr: '${eval:1e-3}'": f"{UNKNOWN}: opt.lr refers to eval:1e-3, which the file lacks",
    "lr: '0,001'": f"{UNKNOWN}: opt.lr expects a number",
    "lr: ''": f"{DROPPED}: it is not set",
    "notes: [a, b]": f"{UNKNOWN}: tracking.notes takes one value",
    "model.cls_token: true": f"{UNKNOWN}: no key",
    "train: true": f"{UNKNOWN}: it is a section here",
    "data: /data/spectra.h5": f"{TAKEN_OVER}: data.file_path=/data/spectra.h5",
    "dataset: mine": f"{ASKED}: choose data=bosz",
    "early_stopping.metric: r2": f"{TAKEN_OVER}: train.early_stopping.monitor=val_r2",
    "monitor: test_loss": f"{TAKEN_OVER}: train.early_stopping.monitor=val_loss",
    "monitor: fid": f"{UNKNOWN}: train.early_stopping.monitor 'fid' is not a metric here",
    "optim: adamw_torch": f"{TAKEN_OVER}: opt.type=AdamW",
    "_wandb.cli_version: '0.16'": f"{DROPPED}: it says where",
    "hydra.run.dir: out": f"{DROPPED}: Hydra composes",
    "defaults: [model: vit]": f"{UNKNOWN}: names other files",
    "model.decoder.hidden_size: 64": f"{UNKNOWN}: did you mean model.hidden_size?",
}


def nested(dotted: str, raw: Any) -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    return {first: nested(rest, raw) if rest else raw}


def translated(plain: dict[str, Any]) -> Translation:
    found = translate(resolved(flat(unwrapped(valued(plain)))))
    assert not found.faults
    return found


@pytest.mark.parametrize("line", SPELLINGS)
def test_a_spelling_is_answered(line: str) -> None:
    name, _, raw = line.partition(": ")
    plain = nested(name, yaml.safe_load(raw))
    message = "\n".join(translated(plain).messages())
    assert answers(message, next(iter(flat(plain))), SPELLINGS[line]) and "abcdefgh" not in message, message


def test_what_is_not_known_shows_in_the_exit_code(imported: Any) -> None:
    code, message = imported("{lr: 1e-3, banana: 1, scheduler: linear}")
    assert code == 1 and "2 not known and left out" in message
    assert composed("experiment=old").opt.lr == 1e-3
    code, message = imported("{precision: 16-mixed, amp_dtype: 64}", "half.yaml")
    assert code == 1 and answers(message, "amp_dtype", f"{UNKNOWN}: train.precision 64 is not one of")


def test_every_name_of_the_tables_leads_to_a_key_or_a_handler() -> None:
    assert all(is_known(key) for key in (*tables()["keys"], *tables()["choices"], *tables()["instead"]))
    assert set(tables()["special"]) == set(HANDLERS)
    assert len(entries()) > 300


COMBINED: dict[str, dict[str, Any]] = {
    "{hidden_size: 256, head_dim: 32}": {"model.num_attention_heads": 8},
    "{hidden_size: 128, mlp_ratio: 2}": {"model.intermediate_size": 256},
    "{patch_size: 32, overlap: 0.5}": {"model.stride_size": 16},
    "{train_size: 10k, batch_size: 100, warmup_steps: 150}": {"opt.warmup_epochs": 1.5},
    "{epochs: 50, warmup_ratio: 0.1}": {"opt.warmup_epochs": 5.0},
    "{train_size: 10k, batch_size: 100, max_steps: 1000}": {"train.epochs": 10},
    "{adam_beta1: 0.8, adam_beta2: 0.95}": {"opt.betas": [0.8, 0.95]},
    "{fp16: false, bf16: true}": {"train.precision": "bf16-mixed"},
    "{amp_dtype: bfloat16, use_amp: true}": {"train.precision": "bf16-mixed"},
    "{amp: false, amp_dtype: float16}": {"train.precision": "32"},
    "{epochs: 50, warmup_steps: 0, warmup_ratio: 0.1}": {"opt.warmup_epochs": 5.0},
    "{optimizer: adam}": {"opt.type": "Adam", "opt.weight_decay": 0.0},
    "{early_stopping: {enabled: false, patience: 9}}": {"train.early_stopping.patience": None},
    "{early_stopping: {monitor: val/loss, patience: 9}}": {
        "train.early_stopping.monitor": "val_loss",
        "train.early_stopping.mode": "min",
    },
    "{epochs: 30, lr_scheduler: {name: CosineAnnealingLR, T_max: 30}}": {"opt.lr_sch": "cosine"},
    "{optimizer: {name: sgd, lr: 0.1}}": {"opt.type": "SGD", "opt.momentum": 0.0},
    "{noise: {enabled: false, type: heteroscedastic}}": {"noise.noise_type": "none"},
    "{model: {type: Ridge, hidden_size: 256}}": {"model.kind": "ridge"},
    "{lr: {value: 0.01, desc: null}, _wandb: {value: {cli_version: 1}}}": {"opt.lr": 0.01},
    "{size: 128, model: {hidden_size: '${size}', d_model: '${.hidden_size}'}}": {"model.hidden_size": 128},
}


@pytest.mark.parametrize("text", COMBINED)
def test_names_that_depend_on_others(text: str) -> None:
    settings = translated(yaml.safe_load(text)).settings
    assert {key: settings[key] for key in COMBINED[text]} == COMBINED[text]


CONTRADICTIONS = {
    "{model: {architecture: p32_h256, patch_size: 16}}": "model.patch_size: is 16, but model.architecture=p32_h256",
    "{model: {hidden_size: 256, num_heads: 8, head_dim: 64}}": "model.head_dim: is 64, but model.hidden_size=256 and",
    "{noise: {sigma: 1.0}, data: {noise_level: 0.5}}": "data.noise_level: is 0.5, but noise.sigma=1.0 says",
    "{lr: 1e-3, optimizer: {lr: 1e-4}}": "optimizer.lr: is 0.0001, but lr=0.001 says opt.lr=0.001",
    "{epochs: 2, opt: {warmup_epochs: 5}}": "opt.warmup_epochs: is 5, not less than train.epochs=2",
    "{model: {hidden_size: 100, num_heads: 8}}": "does not divide model.hidden_size=100",
}


@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_a_contradiction_is_refused_and_nothing_is_written(text: str, imported: Any, place: Path) -> None:
    code, message = imported(text)
    assert code == 2 and CONTRADICTIONS[text] in message and not (place / "conf").exists()


DAMAGED: dict[str, bytes] = {
    "is empty": b"# nothing\n",
    "is a list, not keys with values": b"- 1\n- 2\n",
    "is a single value": b"vit\n",
    "is given twice": b"lr: 1\nlr: 2\n",
    "a tab, where YAML wants spaces": b"model:\n\tlr: 1\n",
    "is not valid YAML": b"model: [1, 2\n",
    "is not UTF-8 text": b"\x89HDF\r\n\x1a\n\xff\xfe",
    "is not text": b"a: 1\0\n",
    "has 50 MB": b"#" * 50_000_000,
}


@pytest.mark.parametrize("words", DAMAGED)
def test_a_damaged_file_is_one_sentence(words: str, imported: Any) -> None:
    code, message = imported(DAMAGED[words])
    assert code == 2 and message.count("\n") == 1 and message.startswith("specvit: old.yaml: ") and words in message


def test_a_missing_file_and_a_folder_are_one_sentence(place: Path, capsys: Any) -> None:
    (place / "folder").mkdir()
    for name, words in (("none.yaml", "no such file"), ("folder", "is a folder")):
        assert main(["import", name]) == 2
        assert words in capsys.readouterr().err


def test_another_file_is_not_overwritten(imported: Any, place: Path) -> None:
    assert imported("lr: 1e-3")[0] == 0
    written = (place / "conf/experiment/old.yaml").read_text()
    assert imported("lr: 1e-3")[0] == 0  # the same again
    code, message = imported("lr: 1e-4")
    assert code == 2 and "conf/experiment/old.yaml: already exists; choose another --out" in message
    assert (place / "conf/experiment/old.yaml").read_text() == written
    assert imported("lr: 1e-4", "old.yaml", "--out", "conf/experiment/other.yaml")[0] == 0
    assert composed("experiment=other").opt.lr == 1e-4


def test_what_specvits_own_spectra_do_not_allow_is_said(imported: Any) -> None:
    code, message = imported("{train: {batch_size: 8192}, model: {type: ViT, channels: [8, 16]}}")
    assert (
        code == 0 and "cannot run, since train.batch_size: one step takes 8192 spectra but data.num_samples" in message
    )
    assert message.rstrip().endswith(
        "experiment=old data=hdf5 data.file_path=FILE data.val_path=FILE data.test_path=FILE"
    )
    assert answers(message, "model.channels", f"{CHANGES}: model=vit has no") and message.count("channels=") == 1
    assert imported("lr: 1", "elsewhere.yaml", "--out", "elsewhere.yaml2.yaml")[0] == 2
    message = imported("lr: 1e-3", "old.yaml", "--out", "here.yaml")[1]
    assert "mkdir -p conf/experiment && cp here.yaml conf/experiment/ && specvit train experiment=here" in message


@pytest.mark.slow
def test_the_command_works_wherever_the_file_is(imported: Any, place: Path, capsys: Any) -> None:
    for out in ("mine.yaml", "a b/conf/experiment/mine.yaml"):
        _, message = imported("lr: 1e-3", "old.yaml", "--out", out)
        command = message.splitlines()[-1].removeprefix("run it:  ").replace("specvit", f"{sys.executable} -m specvit")
        shown = subprocess.run(
            f"{command} --cfg job", shell=True, cwd=place, capture_output=True, text=True, check=True
        )
        assert "lr: 0.001" in shown.stdout
    code, message = imported("lr: 1e-3", "null.yaml")
    assert code == 2 and "conf/experiment/null.yaml: cannot be the file of an experiment" in message


LIGHTNING = """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val_mae, mode: min}
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {monitor: val_r2, mode: max, patience: 10}
    - class_path: lightning.pytorch.callbacks.StochasticWeightAveraging
      init_args: {swa_lrs: 0.01, lr: 1.0}
"""


def test_a_callback_is_known_by_its_class(place: Path) -> None:
    found = translate(flat(yaml.safe_load(LIGHTNING)))
    patience, monitor, mode = (f"train.early_stopping.{name}" for name in ("patience", "monitor", "mode"))
    assert not found.faults and found.settings == {monitor: "val_r2", mode: "max", patience: 10}
    message, start = "\n".join(found.messages()), "trainer.callbacks[0:ModelCheckpoint].init_args"
    assert answers(message, f"{start}.monitor", f"{CHANGES}: trainer.callbacks[1:EarlyStopping]")
    assert answers(message, "trainer.callbacks[2:StochasticWeightAveraging].init_args.lr", f"{UNKNOWN}: did you mean")
    alone = translate(flat({"callbacks": [yaml.safe_load(LIGHTNING)["trainer"]["callbacks"][0]]}))
    assert alone.settings == {monitor: "val_mae", mode: "min"}


def test_a_name_that_the_model_lacks_has_one_answer(place: Path) -> None:
    message = "\n".join(translated({"model": "cnn", "hidden_size": 64}).messages())
    assert message.count("hidden_size=64") == 1 and answers(message, "hidden_size", f"{CHANGES}: model=cnn has no")


def test_the_hidden_layer_is_that_of_the_first_width() -> None:
    message = "\n".join(translated({"hidden_size": [64, 128]}).messages())
    assert "model.intermediate_size=256 (4 times the width, as is usual; type it with each other width)" in message


def test_what_is_silent_is_listed(imported: Any) -> None:
    assert "and as in the reference: " in (message := imported("lr: 1e-3")[1])
    assert "opt.weight_decay=0.01, opt.lr_sch=cosine, train.gradient_clip=0.5" in message


def test_the_file_says_where_it_comes_from_and_what_it_lacks(imported: Any, place: Path) -> None:
    imported("{notes: 'does it learn?', image_size: 4096, lr: 1e-3, foo: 2}")
    lines = (place / "conf/experiment/old.yaml").read_text().splitlines()
    assert lines[:2] == ["# @package _global_", "# Question: does it learn?"]
    assert any(line.startswith("# Source: old.yaml") for line in lines)
    assert any("image_size=4096" in line for line in lines) and any("foo=2" in line for line in lines)


def test_data_that_are_not_here_are_asked_for_at_run_time(imported: Any, capsys: Any) -> None:
    code, message = imported("data: {file_path: '${TRAIN_DIR}/a.h5'}\n")
    assert code == 0 and "$TRAIN_DIR: not set here" in message
    assert message.rstrip().endswith("experiment=old data.val_path=FILE data.test_path=FILE")
    assert main(["train", "experiment=old"]) == 2
    assert "TRAIN_DIR" in capsys.readouterr().err


def test_metrics_have_our_names() -> None:
    names = {"val/R2": "val_r2", "best_valid_mae": "best_val_mae", "test-loss": "test_loss", "eval_rmse": "val_rmse"}
    assert {name: metric_name(name) for name in names} == names
    assert [metric_name(name) for name in ("val_size", "loss", "test_path", "lr")] == [None] * 4


def test_numbers_are_read_from_text() -> None:
    cases = [("opt.lr", "2e-05", 2e-5), ("data.num_samples", "50k", 50_000), ("data.num_samples", "1M", 1_000_000)]
    cases += [("train.epochs", 200.0, 200), ("train.epochs", "1_000", 1000), ("train.compile", "yes", True)]
    assert [value_of(key, raw) for key, raw, _ in cases] == [own for _, _, own in cases]


def test_translation_is_idempotent_on_our_own_configuration() -> None:
    plain = yaml.safe_load(yaml.safe_dump(compose(())))
    found = translate(flat(plain))
    assert not found.lines[UNKNOWN] and not found.faults
    assert {key: found.settings[key] for key in ("opt.lr", "model.patch_size")} == {
        "opt.lr": 3e-4,
        "model.patch_size": 64,
    }
