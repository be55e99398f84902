"""Whatever is wrong with a command line, its user reads one sentence, and nothing is left behind.

All cases enter through `specvit.commands.train.main`, as a user does.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from specvit.data import synthetic

CLASSES = "loss=ce model.task_type=cls train.early_stopping.monitor=val_accuracy train.early_stopping.mode=max"
COMMAND_LINES = {
    "keys that are not there": {
        "bananas=1": ["bananas: unknown key"],
        "model.patchsize=8": ["model.patchsize: unknown key", "did you mean model.patch_size?"],
        "train.monitor=val_r2": ["it is called train.early_stopping.monitor here"],
        "+typo=1": ["typo: unknown key"],
        "++opt.typo=1": ["opt.typo: unknown key"],
        "+opt.lr=1e-3": ["+opt.lr", "without the plus sign"],
        "+loss=l1": ["+loss", "without the plus sign"],
        "~model.pool": ["model.pool: cannot be removed"],
        "tracking.tags.paper=1": ["+tracking.tags.NAME=VALUE"],
    },
    "spellings of older files": {
        "train.ep=3": ["it is called train.epochs here"],
        "training.epochs=3": ["it is called train.epochs here"],
        "train_size=100": ["it is called data.num_samples here"],
        "position_encoding=rope": ["it is called model.pos_encoding_type here"],
        "optimizer=adam": ["it is called opt.type here"],
        "optimizer.lr=1e-3": ["it is called opt.lr here"],
        "lr_scheduler=cosine": ["it is called opt.lr_sch here"],
        "noise.sigma=1": ["it is called noise.noise_level here"],
        "project=mine": ["it is called tracking.experiment here"],
    },
    "groups": {
        "data=boz": ["data: has no option 'boz'", "did you mean bosz?", "builtin"],
        "loss=l2": ["it is called mse here"],
        "model/tokenizer=CNN": ["it is called c1d here"],
        "model/tokeniser=sw": ["model/tokeniser: unknown group", "did you mean model/tokenizer?"],
        "model.tokenizer=sw": ["model/tokenizer=sw."],
        "model/tokenizer=sw model.proj_fn=C1D": ["model/tokenizer=sw means model.proj_fn=SW", "drop one"],
        "experiment=nothing": ["experiment: has no option 'nothing'", "demo"],
        "experimnt=demo": ["experimnt: unknown key", "did you mean experiment?"],
        "sweeps=sweeps/lr_small.yaml": ["sweeps: has no study", "write sweeps=lr_small"],
        "model=null": ["model: "],
        "opt=": ["opt: has no option ''"],
    },
    "what a shell or a slip makes of an override": {
        "opt.lr": ["'opt.lr' is not an override", "key=value"],
        "": ["is not an override"],
        "=3": ["'=3' is not an override"],
        "tracking.name=[a": ["tracking.name=[a", "quotes"],
        "tracking.name=${nowhere.at_all}": ["nowhere.at_all"],
        "tracking.uri=${oc.env:SPECVIT_NOT_SET}": ["SPECVIT_NOT_SET"],
        "model.patch_size=8,16": ["model.patch_size=8,16", "-m"],
        "-m opt.lrr=1,2": ["did you mean opt.lr?"],
        "-m loss=mse,l7": ["has no option 'l7'"],
    },
    "types and ranges": {
        "opt.lr=fast": ["opt.lr: expects a number above 0, not 'fast'"],
        "train.epochs=2.5": ["train.epochs: expects a whole number"],
        "model.qkv_bias=1": ["model.qkv_bias: expects true or false"],
        "opt.lr=-1": ["opt.lr: expects a number above 0, not -1"],
        "opt.lr=nan": ["opt.lr: expects a number above 0, not nan"],
        "train.batch_size=0": ["train.batch_size: expects a whole number from 1 to 10,000,000, not 0"],
        "model.dropout=1.5": ["model.dropout: expects a number from 0 to 0.95, not 1.5"],
        "model.kind=[a]": ["model.kind: ['a'] is not one of vit, cnn"],
        "-m model.kind=[a],[b]": ["model.kind: ['a'] is not one of vit, cnn"],
        "sweeps=tokenization_small train.epochs=2 model.kind=[a]": ["model.kind: ['a'] is not one of vit, cnn"],
        "sweeps=tokenization_small train.epochs=2 model.kind=vti": ["model.kind: 'vti' is not one of", "mean vit?"],
        "model.pool=max": ["model.pool: 'max' is not one of cls, mean, attention"],
    },
    "more than any machine has": {
        "opt.lr=" + 5000 * "9": ["has a number that is too long"],
        "opt.lr=" + 400 * "9": ["opt.lr: expects a number above 0, not 9999", "..."],
        "train.epochs=" + 400 * "9": ["train.epochs: expects a whole number from 1 to 10,000,000, not 9", "..."],
        "model.intermediate_size=99999999999999": ["from 1 to 1,048,576, not 99999999999999"],
        "model.num_hidden_layers=1000000000": ["from 1 to 1,000, not 1000000000"],
        "data.num_samples=99999999999999999": ["from -1 to 1,000,000,000, not 99999999999999999"],
        "train.threads=100000000000000": ["from 1 to 4,096, not 100000000000000"],
        "train.seed=99999999999999999999": ["from 0 to 9,223,372,036,854,775,807, not 99999999999999999999"],
        "-m train.seed=range(0,1000000000)": ["gives more than 100,000 values"],
        "-m train.seed=range(0,2000) data.subset_seed=range(0,2000)": ["has 4,000,000 points, more than the 100,000"],
        "data.param=" + 3000 * "[" + 3000 * "]": ["is nested too deeply"],
        "train.device=cpu:7": ["train.device: 'cpu:7' is not supported"],
    },
    "keys that do not go together": {
        "model.hidden_size=64 model.num_attention_heads=5": ["model.num_attention_heads", "does not divide"],
        "model.patch_size=16 model.stride_size=32": ["model.stride_size", "pixels would be skipped"],
        "model.patch_size=5000": ["model.patch_size: is 5000 but a spectrum has 4096 pixels"],
        "model.proj_fn=linear model.stride_size=8": ["model.proj_fn", "separate patches"],
        "model.pos_encoding_type=rope model.hidden_size=12 model.num_attention_heads=4": ["even width"],
        "loss=ce": ["loss.name: ce does not go with model.task_type=reg"],
        "model.task_type=cls": ["loss.name: mse does not go with model.task_type=cls", "loss=ce"],
        "data.class_edges=2,3": ["data.class_edges: is set, but the task is regression"],
        "data.class_edges=3,2": ["data.class_edges: must rise"],
        "data.param=log_g,M_H,log_g": ["data.param: names a label twice"],
        "data.param=x,x_low": ["data.param: x, x_low would give two scores the name r2_x_low"],
        "data.param=log_g,norm": ["two scores the name mae_norm"],
        "train.early_stopping.monitor=val_r3": ["'val_r3'", "did you mean val_r2?"],
        "train.early_stopping.mode=min": ["train.early_stopping.mode", "a better val_r2 is a higher one"],
        "train.epochs=5 opt.warmup_epochs=5": ["opt.warmup_epochs: is 5, not less than train.epochs=5"],
        "opt.lr=1e-6": ["opt.eta_min: is 1e-05, above opt.lr=1e-06"],
        "train.compile=true train.checkpoint_blocks=true": ["train.compile", "train.checkpoint_blocks"],
        "data.num_samples=100": ["one step takes 128 spectra but data.num_samples=100"],
        "data.num_samples=-1": ["data.num_samples: is -1"],
        "data.val_samples=0": ["data.val_samples: is 0"],
        "data.file_path=a.h5": ["data.file_path: is set, but data=builtin makes its own"],
        "data.param=redshift": ["data.param: names redshift, which is 0 for every star", "data.max_redshift=0.001"],
        "data.param=logg": ["data.param: names 'logg'", "did you mean log_g?"],
        "data.max_redshift=0.002": ["data.max_redshift: expects a number from 0 to 0.001, not 0.002"],
        "data=bosz data.max_redshift=1e-4": ["data.max_redshift: is set, but spectra from files", "data=builtin"],
        "data=bosz data.label_prior=published": [
            "data.label_prior: is set, but spectra from files",
            "data=builtin",
        ],
        "data.label_prior=publishd": ["data.label_prior", "did you mean published?"],
        "data.endless=true": ["data.endless: is set, but data.kind=builtin", "data=synth"],
        "data=synth data.num_samples=-1": ["data.num_samples: is -1", "an epoch", "data.endless=true"],
        "data=synth data.val_samples=-1": ["data.val_samples: is -1", "give a number of rows."],
        "data=synth data.file_path=a.h5": ["data.file_path: is set, but data=synth makes its own"],
        "data=synth data.subset=random": ["data.subset: is random", "data.subset=first"],
        "data=synth data.storage=float16": ["data.storage: is float16", "stores no training spectra"],
        "data=synth data.param=log_g,snr": ["data.param: names snr", "data=builtin"],
        "data=synth data.param=age": ["data.param: names 'age'", "T_eff, log_g"],
        "data=synth data.num_samples=100": ["one step takes 128 spectra but data.num_samples=100"],
        "data=synth model.patch_size=5000": ["model.patch_size: is 5000 but a spectrum has 4096 pixels"],
        f"data=synth {CLASSES}": ["data.class_edges: is not set", "data.class_edges=[...]"],
    },
    "things outside that are not there": {
        "data=bosz": ["data.file_path: there is no file at", "train_200k_*/dataset.h5", "data=builtin"],
        "data=hdf5": ["data.file_path: is not set"],
        "data=bosz data.root=/no/such/folder": ["data.root: /no/such/folder is not a folder"],
        "train.init_from=/no/such/run": ["train.init_from: /no/such/run is not there", "name a run folder"],
    },
}


def wrong(lines: dict[str, list[str]], refused: Callable[[list[str]], str]) -> list[str]:
    """Return the lines whose refusal lacks what it has to say, each with its refusal."""
    sentences = {line: refused(line.split(" ")) for line in lines}
    return [
        f"{line[:80]}: {sentences[line]}"
        for line, texts in lines.items()
        if any(t not in sentences[line] for t in texts)
    ]


def test_a_line_of_each_kind_is_refused_in_one_sentence(refused: Callable[[list[str]], str]) -> None:
    assert not wrong(dict(next(iter(lines.items())) for lines in COMMAND_LINES.values()), refused)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMAND_LINES)
def test_a_wrong_command_line_is_refused_in_one_sentence(kind: str, refused: Callable[[list[str]], str]) -> None:
    assert not wrong(COMMAND_LINES[kind], refused)


def test_a_device_that_is_not_there_is_refused(tiny: list[str], refused: Callable[[list[str]], str]) -> None:
    for device in ("cuda:99", "foo", "mps"):
        assert "train.device: " in refused([*tiny, f"train.device={device}"])


def test_a_device_is_refused_before_any_spectra_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[list[str]], str]
) -> None:
    monkeypatch.setenv("SPECVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(synthetic, "ROUND_UP", 1)
    sizes = ["train.batch_size=1", "data.num_samples=1", "data.val_samples=1", "data.test_samples=1"]
    assert "train.device: " in refused(["train.device=foo", *sizes])
    assert list(tmp_path.glob("cache/**/*.h5")) == []
