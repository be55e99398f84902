"""The commands as a user types them."""

import ast
import io
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import h5py
import pandas as pd
import pytest

from specvit import cli
from specvit.commands import data as data_cli
from specvit.commands import evaluate, train
from specvit.run_folder.folder import RunFolder
from specvit.utils.quantities import WAVE


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command(capsys) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"specvit {name}" in text for name in cli.COMMANDS)


def test_the_version_is_that_of_the_package(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"specvit {metadata.version('specvit')}\n"


def test_an_unknown_command_is_one_sentence(capsys) -> None:
    assert cli.main(["trian"]) == 2
    assert (
        capsys.readouterr().err.strip() == "specvit: no command 'trian'; did you mean train? "
        "there are train, runs, sweep, evaluate, predict, analysis, track, doctor, data, import, completion."
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--help"], ["--cfg", "job"], ["--cfg", "job", "experiment=demo"], ["--info", "defaults"]]
)
def test_hydras_flags_answer_and_leave_nothing_behind(flags: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "specvit.train", *flags]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert "proj_fn" in answer.stdout or "model/tokenizer" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_grid_with_one_refusal_makes_no_run(tiny, capsys, tmp_path: Path) -> None:
    """The key is in `tiny`, too: what is typed last holds."""
    assert train.main(["-m", *tiny, "model.num_attention_heads=2,3,4", "train.epochs=1"]) == 2
    heard = capsys.readouterr()
    assert heard.err.count("specvit: ") == 1
    assert "1 of 3 runs cannot be made: model.num_attention_heads: is 3, which does not divide" in heard.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_evaluate_repeats_the_test_score_and_scores_a_foreign_file_row_by_row(
    tiny, toy_sets, write_set, capsys
) -> None:
    assert train.main(tiny) == 0
    (run,) = Path("outputs").iterdir()
    assert evaluate.main([str(run)]) == 0
    assert (run / "evaluate-test" / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    own = f"{toy_sets}/test/dataset.h5"  # the same rows by path: the same noise, so the same numbers
    assert evaluate.main([str(run), "--data", own]) == 0
    assert (run / "evaluate-test-dataset" / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    foreign = write_set(Path("foreign"), 7, seed=99, star="K0 III")
    capsys.readouterr()
    assert evaluate.main([str(run), "--data", str(foreign)]) == 0
    table = pd.read_csv(run / "evaluate-foreign-dataset" / "predictions.csv")
    assert list(table["row"]) == list(range(7))
    assert capsys.readouterr().out.count("foreign/dataset.h5") == 7


def test_evaluate_refuses_a_file_with_other_pixels_and_a_folder_that_is_no_run(
    finished_run: RunFolder, write_set, capsys
) -> None:
    run = finished_run.path
    other = write_set(Path("other"), 5, pixels=128)
    capsys.readouterr()
    assert evaluate.main([str(run), "--data", str(other)]) == 2
    assert "has 128 pixels a spectrum, the run was trained on 256" in capsys.readouterr().err
    with h5py.File(other := write_set(Path("shifted"), 5), "r+") as file:
        file[WAVE][...] += 500.0
    assert evaluate.main([str(run), "--data", str(other)]) == 2
    assert "starts at 7600.00 Å, the run's spectra at 7100.00 Å" in capsys.readouterr().err
    assert evaluate.main(["nowhere"]) == 2
    assert "nowhere: is not a known run; name a folder in outputs or a run's hash." in capsys.readouterr().err
    assert evaluate.main([str(run), "--data", "missing.h5"]) == 2
    assert "missing.h5" in capsys.readouterr().err


@pytest.mark.slow
def test_generate_writes_files_that_inspect_finds_sound_and_refuses_to_overwrite(capsys) -> None:
    arguments = ["generate", "--out", "made", "--train", "60", "--shard", "40", "--val", "10", "--test", "10"]
    assert data_cli.main(arguments) == 0
    files = sorted(map(str, Path("made").rglob("dataset.h5")))
    assert files == [f"made/{name}/dataset.h5" for name in ("test_10", "train_40_0", "train_40_1", "val_10")]
    capsys.readouterr()
    assert data_cli.main(["inspect", *files]) == 0
    assert capsys.readouterr().out.count("no fault found") == 4
    assert data_cli.main(arguments) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--train", "--val", "--test", "--shard"])
def test_generate_refuses_a_text_that_is_not_a_count(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_cli.main(["generate", "--out", "made", option, "abc"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"specvit: specvit data generate: argument {option}: 'abc' is not a whole number of at least 1"
    )


def test_a_folder_that_cannot_be_written_is_one_sentence(tiny, capsys, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert train.main([*tiny, "tracking.folder=file"]) == 2
    assert capsys.readouterr().err.startswith("specvit: file")


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_stop_the_run(tiny, tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "specvit.train", *tiny])
    subprocess.run(["bash", "-c", f"{words} | head -1"], capture_output=True, timeout=120, check=True)
    (run,) = (tmp_path / "outputs").iterdir()
    assert json.loads((run / "status.json").read_text())["state"] in ("completed", "plateau")
    assert "epoch 2/2" in (run / "log.txt").read_text()


HEAVY = {"torch", "pandas", "h5py", "numpy", "scipy", "matplotlib", "mlflow", "optuna", "hydra", "omegaconf"}
HELPS = ["", *cli.COMMANDS, *(f"analysis {name}" for name in ("ceiling", "attention", "report"))]
HELPS += [
    "data generate",
    "data convert",
    "data inspect",
    "data fetch",
    "analysis folds",
    "analysis errors",
    "track sync",
    "sweep status",
    "sweep list",
]


@pytest.mark.parametrize("words", HELPS)
def test_help_imports_nothing_heavy(words: str) -> None:
    script = "import sys\nfrom specvit import cli\ntry: cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += "print(list(sys.modules), file=sys.stderr)"
    answer = subprocess.run(
        [sys.executable, "-c", script, *words.split(), "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert len(answer.stdout.splitlines()) >= 1
    assert HEAVY & set(ast.literal_eval(answer.stderr)) == set()


def test_help_of_train_names_studies_launchers_and_sweep_keys(capsys) -> None:
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    for words in ("tokenization_small", "hydra/launcher: inprocess, local, slurm", "sweep.dry_run", "proj_fn"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_completion_is_for_three_shells(capsys) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        assert "specvit completion --line" in capsys.readouterr().out or shell != "fish"
    assert cli.main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh' (choose from 'bash', 'zsh', 'fish')" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train", "opt.lr=1"], ["sweep", "status", "toy"]])
def test_a_working_folder_that_was_deleted_is_one_sentence(
    words: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main(words) == 2
    assert capsys.readouterr().err == "specvit: the working folder was deleted; go to another one.\n"
    monkeypatch.chdir(tmp_path)


def test_outputs_that_are_closed_or_know_few_letters_are_no_fault(monkeypatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    assert cli.main(["trän"]) == 2
    stream.flush()
    assert b"no command 'tr?n'" in stream.buffer.getvalue()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main([]) == 0
    assert cli.main(["trian"]) == 2


def test_a_cache_in_the_home_of_nobody_is_one_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setenv("SPECVIT_CACHE", "~no-such-user")
    assert train.main(["model=ridge", "data/size=1k"]) == 2
    assert "SPECVIT_CACHE: '~no-such-user' begins with the home of a user" in capsys.readouterr().err
