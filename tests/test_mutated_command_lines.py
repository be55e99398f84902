"""Command lines with a slip of the hand, over all subcommands: each has an effect or is refused in one sentence."""

import contextlib
import io
import random
import re
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest

COUNT, SECONDS = 300, 20
NO_RUN = "train.device=cuda:99 train.init_from=/no/such/run"  # two reasons why a right line trains nothing
LINES = [
    f"train model/tokenizer=sw opt.lr=1.5e-4 {NO_RUN}",
    f"train experiment=demo data/size=2k train.seed=3 noise.noise_level=0.5 {NO_RUN}",
    f"train data.param=log_g,T_eff model=cnn model.channels=[8,16] opt.betas=0.8,0.95 {NO_RUN}",
    "train hydra/launcher=local hydra.launcher.slots=2 sweep.dry_run=true train.device=cuda:99",
    "train -m model/tokenizer=c1d,sw train.seed=1,2 sweep.dry_run=true train.device=cuda:99",
    "train sweeps=lr_small sweep.dry_run=true sweep.name=a sweep.max_parallel=2 train.device=cuda:99",
    "train --cfg job experiment=demo model/size=small +tracking.tags.paper=one",
    "train --info defaults",
    "sweep status toy",
    "sweep table toy --metric test_r2 --by seed --style csv",
    "sweep why toy",
    "sweep diff one two",
    "sweep retry toy one",
    "sweep cancel toy one",
    "data generate --out made --train 60 --shard 40 --val 10 --test 10",
    "data inspect nothing.h5",
    "data convert nothing.npz out --wave-name w --flux-name f --unit A",
    "evaluate outputs/none --data nothing.h5 --noise 0,1",
    "analysis ceiling outputs --rows 5k --label log_g",
    "analysis scaling outputs --label log_g",
    "analysis ablation outputs --metric test_r2",
    "analysis report toy --out page",
    "analysis archive multirun/toy toy.tar.xz",
    "track sync outputs --uri sqlite:///a.db",
    "doctor --help",
    "completion bash",
]
ODD = [
    "",
    "null",
    "nan",
    "-1",
    "1e400",
    "9" * 400,
    "true",
    "[",
    "{a:1}",
    "a,b",
    "'",
    '"x',
    "é",
    "\x1b[31m",
    "${x}",
    "../x",
    "%s",
]
STRAY = [
    "hydra.run.dir=x",
    "+new=1",
    "~model",
    "++opt.lr=x",
    "hydra=1",
    "-x",
    "--resolve",
    "=",
    "a=b=c",
    "sweeps=",
    "\u202e",
]


def mutated(rng: random.Random) -> list[str]:
    """Return a line with one slip; the command itself is spared more often than not."""
    words = rng.choice(LINES).split()
    place = rng.randrange(0 if rng.random() < 0.1 else min(1, len(words) - 1), len(words))
    word = words[place]
    letter = rng.randrange(len(word))
    name, equals, _ = word.partition("=")
    slips = [
        word[:letter] + word[letter + 1 :],
        word[:letter] + word[letter] + word[letter:],
        word[: max(0, letter - 1)] + word[letter : letter + 1] + word[max(0, letter - 1) : letter] + word[letter + 1 :],
        (name + equals if equals else "") + rng.choice(ODD),
        rng.choice(["+", "++", "~", "-", "'", "/"]) + word,
        word.upper() if rng.random() < 0.5 else f"{word},{word}",
    ]
    kind = rng.randrange(len(slips) + 3)
    if kind < len(slips):
        return [*words[:place], slips[kind], *words[place + 1 :]]
    others = [words[:place] + words[place + 1 :], [*words, word], [*words, rng.choice(STRAY)]]
    return others[kind - len(slips)]


def lines() -> list[list[str]]:
    """Return the lines, the same ones each time; without `specvit doctor` alone, which is right and takes longer."""
    rng = random.Random(16)
    return [words for _ in range(COUNT) if (words := mutated(rng)) != ["doctor"]]


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("no answer")


def verdict(words: list[str]) -> str:
    """Return how a line ended: `done`, `refused`, or what is wrong with its end."""
    from specvit.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(words))
    except SystemExit as end:
        code = int(end.code or 0)
    except TimeoutError:
        return "no answer"
    except BaseException as error:
        return (
            f"raised {type(error).__name__}: {str(error)[:60]} at {traceback.extract_tb(error.__traceback__)[-1][:2]}"
        )
    finally:
        signal.alarm(0)
    told = "".join(stream.buffer.getvalue().decode(errors="replace") for stream in (out, err))
    if "Traceback" in told:
        return "a traceback"
    if code == 2 and not re.search(r"^specvit: [^\n]+[.?]\n\Z", told, re.MULTILINE) and "usage" not in told:
        return f"no sentence: {told[-80:]!r}"
    return {0: "done", 1: "done, with failures", 2: "refused"}.get(code, f"ends with {code}")


def place(folder: Path) -> None:
    """Lay out a folder with a study of two runs that never started."""
    (folder / "outputs").mkdir(parents=True)
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "toy.yaml").write_text("grids: [{axes: {model/tokenizer: [c1d, sw]}}]\n")


@pytest.mark.nightly
def test_a_line_with_a_slip_has_an_effect_or_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "argv", ["specvit"])
    ends = [(verdict(words), " ".join(words)) for words in lines()]
    wrong = [end for end in ends if end[0] not in ("done", "done, with failures", "refused")]
    assert not wrong, "\n".join(f"{what}: {line[:200]}" for what, line in wrong)
    assert Counter(what for what, _ in ends)["refused"] > COUNT / 2


if __name__ == "__main__":  # the same lines for another version: PYTHONPATH=CHECKOUT python tests/test_mutated...py
    import os

    shutil.rmtree("/tmp/mutated-lines", ignore_errors=True)
    place(Path("/tmp/mutated-lines"))
    os.chdir("/tmp/mutated-lines")
    verbose = "-v" in sys.argv
    found = [(verdict(words), words) for words in lines()]
    print(*sorted(Counter(what.partition(":")[0] for what, _ in found).items()), sep="\n")
    for what, words in found:
        if what not in ("done", "done, with failures", "refused") or verbose:
            print(what, "|", " ".join(words)[:150])
