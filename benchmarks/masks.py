"""What masked pixels cost: python benchmarks/masks.py [--folder DIR --json FILE].

Trains the ViT of `experiment=demo_c1d` and ridge on its rows (built-in spectra at noise level 0.2), for each
seed once as they are and once with a tenth of each spectrum's pixels masked, single pixels in one half of the spectra
and blocks of 64 neighbours in the other. Validation rows, which calibrate error bars, have no masked pixels. Then each
run predicts the same noisy test spectra with 0, 5 and 20 % of their pixels masked, and once with flux 0 in these pixels
and no mask, which is what ignoring masks does. Blocks begin anywhere and may overlap. Runs stay in `--folder`, and
finished ones are taken from there. A quarter of an hour on one core.

Shape suffixes: N spectra, P pixels.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import machine
import numpy as np
import torch
from paired import interval

import specvit
from specvit.data.shards import write_shard
from specvit.data.synthetic import builtin_files
from specvit.data.views import Spectra, open_spectra
from specvit.metrics.scores import regression_scores
from specvit.utils.quantities import MASKED

MODELS, BLOCK, LEVEL, NOISE = ("vit", "ridge"), 64, 0.68, 0.2
KINDS, SHARES = {"single": 1, "blocks": BLOCK}, (0.05, 0.2)
CASES = [("none", 0.0, "masked")]
CASES += [(kind, share, way) for way in ("masked", "as 0") for kind in KINDS for share in SHARES]
"""How masked pixels lie, their share of a spectrum, and whether they are masked or have flux 0 without a mask."""


def main() -> None:
    """Train, predict, print the table and perhaps save the scores of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/masks"), help="where runs and masked rows are")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rows", type=int, default=5000, help="training rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the result there, too")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides for all runs, such as train.threads=1")
    options = parser.parse_args()
    sizes = {"train": options.rows, "val": 1000, "test": 2000}
    files = {split: builtin_files(rows, seed=0, split=split, report=lambda *_: None) for split, rows in sizes.items()}
    paths = {f"data.{split}_path": f"[{','.join(map(str, files[split]))}]" for split in ("val", "test")}
    masked_file = options.folder / f"masked-{options.rows}" / "dataset.h5"
    if not masked_file.exists():
        write_masked(open_spectra(files["train"], options.rows), masked_file)
    words = {
        "plain": [],
        "masked": ["data=hdf5", f"data.file_path={masked_file.resolve()}", *(f"{k}={v}" for k, v in paths.items())],
    }
    test = open_spectra(files["test"], sizes["test"])
    sets, label_N = noisy_sets(test), test.label_values(["log_g"])[:, 0]
    scores: list[dict[str, Any]] = []
    for model in options.models:
        for trained, of_set in words.items():
            for seed in options.seeds:
                more = [f"data.num_samples={options.rows}", f"model={model}", f"train.seed={seed}", *options.words]
                more += ["tracking.live=false", f"tracking.folder={options.folder / 'runs'}"]
                run = specvit.run_training(["experiment=demo_c1d", *of_set, *more])
                assert run.exit_code == 0, (run.state, run.cause)
                about = {"model": model, "trained": trained, "seed": seed}
                scores += [{**about, **row} for row in scores_of(specvit.load(run.folder), sets, label_N)]
    if options.json:
        options.json.write_text(json.dumps({**machine.facts(torch.device("cpu")), "scores": scores}, indent=1) + "\n")
    print_table(scores)


def write_masked(spectra: Spectra, path: Path) -> None:
    """Write spectra as a shard in which a tenth of each one's pixels is masked."""
    flux_NP, error_NP = spectra.gather(np.arange(len(spectra)))
    masked_NP = mask(flux_NP.shape, 0.1, 1, seed=10)
    masked_NP[1::2] = mask(flux_NP.shape, 0.1, BLOCK, seed=10)[1::2]
    flux_NP[masked_NP] = error_NP[masked_NP] = np.nan
    write_shard(path, wave_P=spectra.wave_P, flux_NP=flux_NP, error_NP=error_NP, labels=spectra.labels())
    with h5py.File(path, "r+") as file:
        file[MASKED] = masked_NP.sum(axis=1)


def mask(shape: tuple[int, int], share: float, length: int, seed: int) -> np.ndarray:
    """Return masked pixels (N, P): in each spectrum that share, in blocks of `length` pixels, the last one shorter."""
    masked_NP, (_, pixels) = np.zeros(shape, dtype=bool), shape
    wanted = int(share * pixels)
    rng = np.random.default_rng([seed, length, wanted])
    for masked_P in masked_NP:
        if length == 1:
            masked_P[rng.choice(pixels, wanted, replace=False)] = True
        while (missing := wanted - int(masked_P.sum())) > 0:
            start = int(rng.integers(pixels - length + 1))
            masked_P[start : start + min(length, missing)] = True
    return masked_NP


def noisy_sets(spectra: Spectra) -> dict[tuple[str, float, str], np.ndarray]:
    """Return the same noisy spectra (N, P) as each case gives them to a model."""
    flux_NP, error_NP = spectra.gather(np.arange(len(spectra)))
    noise_NP = np.random.default_rng(20).standard_normal(flux_NP.shape, dtype=np.float32)
    flux_NP = flux_NP + np.float32(NOISE) * error_NP * noise_NP
    sets: dict[tuple[str, float, str], np.ndarray] = {}
    for kind, share, way in CASES:
        masked_NP, value = mask(flux_NP.shape, share, KINDS.get(kind, 1), seed=30), 0 if way == "as 0" else np.nan
        sets[kind, share, way] = np.where(masked_NP, np.float32(value), flux_NP)
    return sets


def scores_of(
    trained: Any, sets: dict[tuple[str, float, str], np.ndarray], label_N: np.ndarray
) -> list[dict[str, Any]]:
    """Return R2, MAE, coverage and the share of flagged spectra of a run, case by case."""
    rows = []
    for (kind, share, way), flux_NP in sets.items():
        table = trained.predict(flux_NP, level=LEVEL)
        inside_N = (table["log_g_low"] <= label_N) & (label_N <= table["log_g_high"])
        flagged_N = table["flux_outside"] | table["snr_outside"]
        found = regression_scores(label_N, table["log_g"].to_numpy())
        values = {"coverage_68": float(inside_N.mean()), "flagged": float(flagged_N.mean())}
        rows.append({"kind": kind, "share": share, "way": way, "r2": found["r2"], "mae": found["mae"], **values})
    return rows


def print_table(scores: list[dict[str, Any]]) -> None:
    """Print means over seeds, with paired differences to the same runs without masks and to those trained without."""

    def of(name: str, *where: Any) -> np.ndarray:
        keys = ("model", "trained", "kind", "share", "way")
        return np.array([row[name] for row in scores if tuple(row[key] for key in keys) == where])

    head = (
        f"{'R2':>6} {'R2 to 0 %':>16} {'MAE':>6} {'MAE to 0 %':>16} {'R2 to plain':>16} {'cov. 68':>7} {'flagged':>7}"
    )
    print(f"{'model':<6} {'trained':<7} {'test pixels':<18} {head}")
    for model, trained in dict.fromkeys((row["model"], row["trained"]) for row in scores):
        for kind, share, way in CASES:
            here, base = (model, trained, kind, share, way), (model, trained, *CASES[0])
            r2, mae = of("r2", *here), of("mae", *here)
            columns = [f"{r2.mean():6.3f}", f"{interval(list(r2 - of('r2', *base))):>16}", f"{mae.mean():6.3f}"]
            columns += [f"{interval(list(mae - of('mae', *base))):>16}"]
            to_plain = interval(list(r2 - of("r2", model, "plain", kind, share, way))) if trained != "plain" else ""
            columns += [f"{to_plain:>16}"]
            columns += [f"{of(name, *here).mean():7.3f}" for name in ("coverage_68", "flagged")]
            print(f"{model:<6} {trained:<7} {f'{kind} {100 * share:.0f} % {way}':<18} {' '.join(columns)}")


if __name__ == "__main__":
    main()
