"""Why ridge and trees score higher here than on the reference set: python benchmarks/published_gap.py [PART...].

Parts: rows (ridge by training rows, by S/N and by kind of star, beside the published scores), switches (one thing at a
time made as it may have been there: noise, scaling, penalty, labels, lines, test rows, ...), clean (ridge on spectra
without noise by its penalty, which only the spectra and the labels decide), noise (ridge by noise level), trees
(LightGBM with the published settings and with ours). Without any: all. Differences are paired: the same stars and the
same noise but for the switch; `--seeds` draws both anew. Ridge is solved on all 4096 pixels;
near-Bayes is the mean of the labels of all clean training spectra, weighted by likelihood. The result is printed as a
table; `--json FILE` saves it.

Published settings and scores: github.com/ViskaWei/Physics_Informed_AI, logg/scaling/exp (ml_ceiling_20251222,
ridge_alpha_extended_20251222, oracle_moe_noise1_20251223), logg/scaling/card/card_ridge_1m_optimal_20251227 and
logg/ridge/exp (alpha_sweep_20251127, 100k_noise_sweep_20251205); of the data: data/bosz50k/z0/mag205_225_lowT_1M.md.

Shape suffixes: N rows, P pixels, A penalties.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from gap_switches import BASE, PENALTIES, SWITCHES, Spectra, Switch, noise_in, noise_level, plain, simulated
from paired import interval
from torch import Tensor

from specvit.physics.instrument import wavelength
from specvit.physics.population import STAR_COLUMNS
from specvit.utils.seeding import torch_rng

LOG_G, T_EFF, M_H = (STAR_COLUMNS.index(name) for name in ("log_g", "T_eff", "M_H"))
PUBLISHED_RIDGE = {10_000: 0.3807, 20_000: 0.3802, 50_000: 0.4419, 100_000: 0.4753, 200_000: 0.4738, 500_000: 0.4898}
"""Test R2 by training rows, 500 test rows; with 1M rows .4957 on 10,000 test rows and .494 on the training rows."""
PUBLISHED_SNR = (3.81, 4.78, 5.90, 7.37, 9.13, 11.31, 13.85, 16.82)
"""Medians of eight bins with as many stars each, and below the R2 there of ridge with 1M rows."""
PUBLISHED_BY_SNR = (0.195, 0.386, 0.466, 0.518, 0.556, 0.592, 0.611, 0.647)
BOXES = {
    f"{t} {m}": (i, j) for i, t in enumerate(("cool", "mid", "hot")) for j, m in enumerate(("poor", "solar", "rich"))
}
BOX_EDGES = ((3750.0, 4500.0, 5250.0, 6001.0), (-2.0, -1.0, 0.0, 0.501))
PUBLISHED_BY_BOX = (0.3505, 0.6496, 0.7626, 0.1376, 0.5453, 0.7716, 0.2762, 0.5466, 0.6745)
"""By T_eff (cut at 4500 and 5250 K) and [M/H] (-2 to -1, to 0, to 0.5), ridge with 1M rows, 1,000 test rows."""
PUBLISHED_BY_NOISE = {0.1: 0.909, 0.2: 0.8264, 0.5: 0.655, 1.0: 0.458, 2.0: 0.221}
"""32k training rows, the best penalty of a grid."""
PUBLISHED_CLEAN = {1e-4: 0.9606, 3.1e-4: 0.9301, 1e-3: 0.8727, 3.1e-3: 0.7943, 1e-2: 0.6583, 3.1e-2: 0.4720}
"""Without noise, pixels not standardised, by penalty over training rows (32k and 100k); 512 or 1,000 test rows."""
PUBLISHED_TREES = {10_000: 0.4127, 20_000: 0.4593, 50_000: 0.4879}
TREES = {
    "published": {"num_leaves": 63, "min_data_in_leaf": 20, "feature_fraction": 0.8, "max_bin": 255},
    "ours": {"num_leaves": 15, "min_data_in_leaf": 200, "feature_fraction": 0.05, "max_bin": 63},
}
"""Settings of LightGBM; both learn at .05 and stop after 50 trees without gain on the validation rows."""
VAL_ROWS, TEST_ROWS, TEMPLATE_TESTS = 1000, 10_000, 1000
CHUNK_ROWS = 4000
STEPS = 100


class Ridge:
    """Solutions for all penalties of a switch, from training rows (N, P) and their labels."""

    def __init__(self, seen_NP: Tensor, label_N: np.ndarray, switch: Switch) -> None:
        """Centre, scale and solve; consumes `seen_NP`."""
        self.mean_P = seen_NP.mean(0) if switch.centred else torch.zeros(seen_NP.shape[1])
        self.middle = float(label_N.mean()) if switch.centred else 0.0
        target_N = torch.from_numpy(label_N - self.middle).to(seen_NP.dtype)
        scaled_NP = seen_NP.sub_(self.mean_P)
        wave_P = wavelength()
        weight_P = torch.ones(len(wave_P))
        for low, high in switch.without:
            weight_P[torch.from_numpy((wave_P >= low) & (wave_P <= high))] = 0.0
        if switch.standardised:
            weight_P /= torch.linalg.vector_norm(scaled_NP, dim=0) / len(scaled_NP) ** 0.5
        scaled_NP *= weight_P
        self.weight_PA = solved(scaled_NP, target_N, switch.penalties) * weight_P[:, None]

    def predict(self, seen_NP: Tensor) -> np.ndarray:
        """Return predictions (N, A)."""
        return ((seen_NP - self.mean_P) @ self.weight_PA).double().numpy() + self.middle


def solved(x_NP: Tensor, y_N: Tensor, penalties: Sequence[float]) -> Tensor:
    """Return (x'x + penalty)^-1 x'y for all penalties (P, A), in the space of `STEPS` steps from x'y.

    It agrees with a decomposition in float64 to six digits of R2 where the penalty is 500 or more (5,000 rows).
    """
    right_P = x_NP.T @ y_N
    basis_KP = torch.zeros(STEPS, len(right_P))
    basis_KP[0] = right_P / right_P.norm()
    inner_KK = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    for step in range(STEPS):
        next_P = x_NP.T @ (x_NP @ basis_KP[step])
        for _ in range(2):  # against rounding
            along_K = basis_KP[: step + 1] @ next_P
            inner_KK[: step + 1, step] += along_K.double()
            next_P -= along_K @ basis_KP[: step + 1]
        if step + 1 < STEPS:
            inner_KK[step + 1, step] = float(next_P.norm())
            basis_KP[step + 1] = next_P / next_P.norm()
    start_K = torch.zeros(STEPS, dtype=torch.float64)
    start_K[0] = float(right_P.norm())
    inner_KK = (inner_KK + inner_KK.T) / 2
    unit_KK = torch.eye(STEPS, dtype=torch.float64)
    place_KA = torch.stack([torch.linalg.solve(inner_KK + penalty * unit_KK, start_K) for penalty in penalties], 1)
    return basis_KP.T @ place_KA.float()


def r2(label_N: np.ndarray, guess_N: np.ndarray) -> float:
    """Return 1 - mean squared error / variance."""
    return float(1 - np.square(guess_N - label_N).mean() / label_N.var())


def near_bayes(train: Spectra, test: Spectra, switch: Switch) -> float:
    """Return R2 of the posterior mean over the clean training spectra, errors known."""
    test = test.first(TEMPLATE_TESTS)
    seen_TP, weight_TP, middle_P = switch.seen(test, "test"), test.error_NP**-2, train.flux_NP.mean(0)
    seen_TP, parts = seen_TP - middle_P, []
    for flux_BP in train.flux_NP.split(CHUNK_ROWS):
        apart_BP = flux_BP - middle_P
        parts.append((seen_TP * weight_TP) @ apart_BP.T - 0.5 * weight_TP @ apart_BP.square().T)
    share_TN = torch.softmax(torch.cat(parts, 1).double(), 1).numpy()
    return r2(test.log_g_N, share_TN @ train.log_g_N)


def fitted(seed: int, rows: int, switch: Switch, *, train: Spectra, val: Spectra, test: Spectra) -> dict[str, Any]:
    """Return the scores of a ridge on `rows` training rows."""
    train = train.first(rows)
    seen_NP, label_N = switch.seen(train, "train"), train.log_g_N
    if switch.twice:
        again_NP = torch.randn(train.noise_NP.shape, generator=torch_rng(seed, "noise", "again"))
        seen_NP = torch.cat((seen_NP, switch.seen(replace(train, noise_NP=again_NP), "train")))
        label_N = np.tile(label_N, 2)
    ridge = Ridge(seen_NP, label_N, switch)
    on_val_NA, on_test_NA = (ridge.predict(switch.seen(part, split)) for part, split in ((val, "val"), (test, "test")))
    best = int(np.argmax([r2(val.log_g_N, guess_N) for guess_N in on_val_NA.T]))
    guess_N = on_test_NA[:, best]
    scores: dict[str, Any] = {"seed": seed, "rows": rows, "r2": r2(test.log_g_N, guess_N)}
    scores |= {"penalty": switch.penalties[best], "r2_first_500": r2(test.log_g_N[:500], guess_N[:500])}
    scores["by_penalty"] = {
        f"{p:g}": r2(test.log_g_N, guess) for p, guess in zip(switch.penalties, on_test_NA.T, strict=True)
    }
    order_8N = np.array_split(np.argsort(test.snr_N), len(PUBLISHED_SNR))
    scores["by_snr"] = [r2(test.log_g_N[part_N], guess_N[part_N]) for part_N in order_8N]
    t_N, m_N = (
        np.digitize(test.stars_NS[:, column], edges) - 1 for column, edges in zip((T_EFF, M_H), BOX_EDGES, strict=True)
    )
    boxes = {name: (t_N == i) & (m_N == j) for name, (i, j) in BOXES.items()}
    scores["by_box"] = {name: r2(test.log_g_N[in_N], guess_N[in_N]) for name, in_N in boxes.items()}
    scores["sd_500_rows"] = float(
        np.std([r2(test.log_g_N[p], guess_N[p]) for p in np.array_split(np.arange(TEST_ROWS), 20)])
    )
    return scores


def three(seed: int, rows: int, switch: Switch) -> dict[str, Spectra]:
    """Return training, validation and test spectra."""
    sizes = {"train": rows, "val": VAL_ROWS, "test": TEST_ROWS}
    return {split: simulated(seed, split, size, switch) for split, size in sizes.items()}


def rows(options: argparse.Namespace) -> dict[str, Any]:
    """Ridge by training rows, and the same for all but the largest size with labels as published."""
    found: dict[str, Any] = {}
    for switch, sizes in ((BASE, options.sizes), (SWITCHES[0], options.sizes[:-1])):
        for seed in options.seeds if sizes else ():
            spectra = three(seed, max(sizes), switch)
            scores = [said(switch, fitted(seed, size, switch, **spectra)) for size in sizes]
            found.setdefault(switch.name, []).extend(scores)
    return found


def switches(options: argparse.Namespace) -> dict[str, Any]:
    """Each switch against the base, seed by seed."""
    found: dict[str, Any] = {switch.name: [] for switch in (BASE, *SWITCHES)}
    wanted = [switch for switch in SWITCHES if options.only is None or options.only in switch.name]
    for seed in options.seeds:
        kept = three(seed, options.rows, BASE)
        for switch in (BASE, *wanted):
            spectra = three(seed, options.rows, switch) if switch.changes_spectra else kept
            scores = fitted(seed, options.rows, switch, **spectra)
            if switch.bayes:
                scores["near_bayes"] = near_bayes(spectra["train"], spectra["test"], switch)
            found[switch.name].append(said(switch, scores))
    return {name: scores for name, scores in found.items() if scores}


def noise(options: argparse.Namespace) -> dict[str, Any]:
    """Ridge on twice as many rows by noise level; the published scores are with 32k rows."""
    found: dict[str, Any] = {}
    for seed in options.seeds:
        spectra = three(seed, 2 * options.rows, BASE)
        for level in PUBLISHED_BY_NOISE:
            penalties = tuple(penalty * min(level, 1.0) ** 2 for penalty in PENALTIES[2:])
            switch = replace(BASE, name=f"noise {level:g}", seen=noise_level(level), penalties=penalties)
            found.setdefault(switch.name, []).append(said(switch, fitted(seed, 2 * options.rows, switch, **spectra)))
    return found


def clean(options: argparse.Namespace) -> dict[str, Any]:
    """Ridge on spectra without noise by penalty over rows, with the best of none."""
    found: dict[str, Any] = {}
    penalties = tuple(ratio * options.rows for ratio in PUBLISHED_CLEAN)
    shown = ("as here", "labels at nodes", "without the sodium", "lines to the power 0.7")
    for switch in (switch for switch in (BASE, *SWITCHES) if switch.name.startswith(shown)):
        raw = {"seen": noise_in(), "penalties": penalties, "standardised": False}
        without = replace(switch, name=f"without noise, {switch.name}", **raw)
        for seed in options.seeds:
            scores = fitted(seed, options.rows, without, **three(seed, options.rows, without))
            by_ratio = dict(zip(PUBLISHED_CLEAN, scores["by_penalty"].values(), strict=True))
            found.setdefault(without.name, []).append({**said(without, scores), "by_ratio": by_ratio})
    return found


def trees(options: argparse.Namespace) -> dict[str, Any]:
    """LightGBM with both settings, and with ours on labels as published."""
    found: dict[str, Any] = {}
    for seed in options.seeds:
        for labels, names in ((BASE, ("published", "ours")), (SWITCHES[0], ("ours",))):
            spectra = three(seed, options.tree_rows, labels)
            for name in names:
                cell = Switch(f"trees, {name} settings, labels {'as here' if labels is BASE else 'at nodes'}")
                found.setdefault(cell.name, []).append(said(cell, grown(seed, TREES[name], spectra)))
    return found


def grown(seed: int, settings: dict[str, Any], spectra: dict[str, Spectra]) -> dict[str, Any]:
    """Return the scores of trees that stop by 500 validation rows."""
    import lightgbm

    seen = {split: plain(part, split).numpy() for split, part in spectra.items()}
    params = {**settings, "objective": "regression", "learning_rate": 0.05, "verbosity": -1, "seed": seed}
    params |= {"num_threads": torch.get_num_threads(), "force_col_wise": True, "metric": "l2"}
    train = lightgbm.Dataset(seen["train"], spectra["train"].log_g_N, params=params)
    val = lightgbm.Dataset(seen["val"][:500], spectra["val"].log_g_N[:500], reference=train)
    model = lightgbm.train(
        params, train, 5000, valid_sets=[val], callbacks=[lightgbm.early_stopping(50, verbose=False)]
    )
    guess_N, test = np.asarray(model.predict(seen["test"])), spectra["test"]
    scores = {"r2": r2(test.log_g_N, guess_N), "r2_first_500": r2(test.log_g_N[:500], guess_N[:500])}
    return {"seed": seed, "rows": len(seen["train"]), **scores, "trees": model.best_iteration}


def said(switch: Switch, scores: dict[str, Any]) -> dict[str, Any]:
    """Print a line of progress and return the scores, rounded."""
    scores = json.loads(json.dumps(scores), parse_float=lambda text: float(f"{float(text):.4g}"))
    short = {name: value for name, value in scores.items() if not isinstance(value, dict | list)}
    print(f"{switch.name}: {short}", file=sys.stderr, flush=True)
    return scores


def print_switches(found: dict[str, Any]) -> None:
    """Print each switch with its paired differences."""
    base = found[BASE.name]
    print(f"{'switch':<52} {'R2':>6} {'difference':>16} {'near-Bayes':>16}  ruled out")
    for name, scores in found.items():
        ruled_out = next((switch.ruled_out for switch in SWITCHES if switch.name == name), "")
        by = [one["r2"] - two["r2"] for one, two in zip(scores, base, strict=True)]
        bayes = [
            one["near_bayes"] - two["near_bayes"] for one, two in zip(scores, base, strict=True) if "near_bayes" in one
        ]
        line = f"{name:<52} {np.mean([one['r2'] for one in scores]):6.3f} {interval(by):>16}"
        print(f"{line} {interval(bayes) if bayes else '':>16}  {ruled_out}")


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    part.__name__: part for part in (rows, switches, clean, noise, trees)
}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of stars and noise")
    parser.add_argument("--rows", type=int, default=10_000, help="training rows of switches and clean")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 20_000, 50_000], help="training rows of part rows"
    )
    parser.add_argument("--tree-rows", type=int, default=10_000, help="training rows of the trees")
    parser.add_argument("--only", default=None, metavar="TEXT", help="switches with this text in their name")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the result there")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    result: dict[str, Any] = machine.facts(torch.device("cpu"), ("torch", "numpy", "lightgbm"))
    result["published"] = {"ridge": PUBLISHED_RIDGE, "by_snr": PUBLISHED_BY_SNR, "by_box": PUBLISHED_BY_BOX}
    result["published"] |= {"by_noise": PUBLISHED_BY_NOISE, "trees": PUBLISHED_TREES}
    for part in options.parts or PARTS:
        result[part] = PARTS[part](options)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    if "switches" in result:
        print_switches(result["switches"])
    for part in ("rows", "noise", "trees"):
        for name, scores in result.get(part, {}).items():
            for size in sorted({one["rows"] for one in scores}):
                values = [one["r2"] for one in scores if one["rows"] == size]
                print(f"{part} {name:<40} {size:>7,} {np.mean(values):.3f} {np.std(values):.3f}")


if __name__ == "__main__":
    main()
