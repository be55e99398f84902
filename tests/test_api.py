"""What `import specvit` offers, and that docs/api.md says of it what is so."""

import contextlib
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import specvit
from specvit.commands import evaluate
from specvit.data.shards import write_shard
from specvit.run.ensemble import Ensemble
from specvit.utils.files import read_json_lines

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"


def test_the_import_is_quick_and_brings_nothing_heavy() -> None:
    code = "import sys, time; t = time.process_time(); import specvit; took = time.process_time() - t\n"
    code += "heavy = {'torch', 'numpy', 'pandas', 'hydra', 'mlflow', 'optuna'} & set(sys.modules)\n"
    code += "print(took < 0.1, heavy, hasattr(specvit, 'lo'), 'load' in dir(specvit))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "True set() False True\n"


def test_the_page_gives_each_public_function_with_its_arguments() -> None:
    text = PAGE.read_text()
    for name in specvit.PUBLIC:
        assert f"specvit.{name}" in text
    functions = {f"specvit.{name}": getattr(specvit, name) for name in specvit.PUBLIC if name != "SpecvitError"}
    for name, function in {**functions, "predict": Ensemble.predict}.items():
        given = [re.sub(r"[\s*]", "", one).partition("=") for one in shown(text, name).split(",")]
        known = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
        assert [one.name for one in known] == [argument for argument, _, _ in given], name
        defaults = ["" if one.default is inspect.Parameter.empty else str(one.default) for one in known]
        assert defaults == [default.strip("\"'") for _, _, default in given], name
        assert function.__doc__


def shown(text: str, name: str) -> str:
    """Return the arguments of a function as the page shows them between backquotes."""
    found = re.search(rf"`{re.escape(name)}\((.*?)\)`", text.replace("=()", "=EMPTY"))
    assert found, name
    return found[1].replace("EMPTY", "()")


@pytest.mark.slow
def test_the_code_of_the_page_runs(tiny: list[str], stars: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """As one would copy it, with an experiment and a file of the names in the text."""
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"defaults": [{"override /data": "hdf5"}, "_self_"]}
    for word in [*tiny, "opt.lr=3e-3", "train.epochs=3"]:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        if name:
            settings.setdefault(section, {})[name] = yaml.safe_load(value) if key != "opt.lr" else float(value)
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/own.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(settings, sort_keys=False)}")
    write_shard(Path("stars.h5"), **stars(20, seed=8))
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(block, names)  # a document of ours
    run = Path(names["result"].folder)
    assert names["result"].state == "completed" and names["result"].exit_code == 0, output.getvalue()
    assert evaluate.main([str(run), "--data", "stars.h5", "--noise", "0"]) == 0
    scored = pd.read_csv(next(run.glob("evaluate-*-stars-noise0")) / "predictions.csv")
    np.testing.assert_array_equal(names["table"]["log_g"], scored["pred_log_g"])
    assert {"log_g", "log_g_run_sd"} <= set(names["best"])
    runs = names["runs"]
    assert len(runs) == 4 and set(runs["state"]) == {"completed"} and runs["finished"].all()
    assert runs["seed"].tolist() == runs["train.seed"].tolist() and set(runs["model.patch_size"]) == {32, 64}
    assert set(runs["setting"]) == {"model.patch_size=32", "model.patch_size=64"}
    assert runs["test_r2"].notna().all() and len(names["curve"]) == 3
    lines = read_json_lines(Path(runs["folder"][0]) / "metrics.jsonl")
    assert names["curve"].tolist() == [line["val_r2"] for line in lines]
    again = specvit.run_training(["experiment=own", "train.seed=1"])
    assert (again.folder, again.summary) == (names["result"].folder, names["result"].summary)


@pytest.mark.slow
def test_what_the_functions_cannot_do_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls = [
        (lambda: specvit.load("ghost"), "ghost: is not a known run"),
        (lambda: specvit.read_runs("ghost"), "ghost: is not a folder"),
        (lambda: specvit.read_metrics("ghost"), "ghost: is not a known run"),
        (lambda: specvit.run_training("experiment=demo"), "overrides: expects a list"),
        (lambda: specvit.run_training(["-m"]), "-m: is a flag of the command line"),
        (lambda: specvit.run_training(["sweeps=patch"]), "sweeps: has no study 'patch'"),
        (lambda: specvit.run_training(["sweeps=tokenization"]), "run_training: asks for a study; use run_study"),
        (lambda: specvit.run_training(["opt.l=1"]), "opt.l: unknown key"),
        (lambda: specvit.run_study("ghost"), "sweeps: has no study 'ghost'"),
        (lambda: specvit.run_study({"grids": []}), "run_study: has no name"),
        (lambda: specvit.run_study({"name": "a/b", "grids": [{}]}), "cannot be a folder's name"),
        (lambda: specvit.run_study({"name": "x", "grid": []}), "study x: "),
    ]
    for call, said in calls:
        with pytest.raises(specvit.SpecvitError, match=re.escape(said)):
            call()
    assert not list(tmp_path.iterdir())
