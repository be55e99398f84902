"""`specvit analysis ceiling|scaling|ablation|folds|errors|curves|attention|report|archive ...`.

Tables and figures from runs. Each command imports what it needs, so that help and refusals load neither torch nor
matplotlib.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from specvit.analysis.published_points import PUBLISHED, Point, read_reference
from specvit.commands.entry import Parser, user_facing
from specvit.study.find import find_folder_of_runs, find_study
from specvit.utils.errors import ConfigError, DataError, FolderError
from specvit.utils.text import counted, nearest, read_count

if TYPE_CHECKING:
    from specvit.analysis.grouping import TestSet
    from specvit.analysis.records import Runs

MOST_ROWS = 10_000
"""Default of `ceiling --rows`: more stars do not change a printed digit."""
ROWS = functools.partial(read_count, least=2)


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Turn run folders into tables and figures. Never trains."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if "folder" in options:
        options.folder = [find_folder_of_runs(name) for name in options.folder]
    options.run(options)
    return 0


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="specvit analysis", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(run.__name__.removeprefix("_"), help=about)
        command.set_defaults(run=run)
        return command

    ceiling = add(_ceiling, "R² by S/N under the Cramér-Rao and van Trees bounds")
    _add_label(ceiling, "snr")
    ceiling.add_argument("--rows", type=ROWS, metavar="N", help="first test rows only (default: at most 10,000)")
    scaling = add(_scaling, "scores by training rows, with laws and crossovers")
    _add_label(scaling, "rows")
    written = "what `analysis ceiling` wrote (default: ceiling/ceiling.json in the folders named)"
    scaling.add_argument("--ceilings", type=Path, metavar="FILE", help=written)
    form = "full: R² and MAE with laws and bounds; single: R² alone, in the published study's form (default: full)"
    scaling.add_argument("--style", choices=("full", "single"), default="full", help=form)
    ablation = add(_ablation, "what each factor of a study does, and how its runs ended")
    _add_folders(ablation)
    metric = "of a run's summary or tested epoch, or escape_step (default: that of the study's table, else test_r2)"
    ablation.add_argument("--metric", help=metric)
    others = "runs of another program beside them: a CSV table of W&B or MLflow (may be repeated)"
    ablation.add_argument("--table", type=Path, action="append", default=[], metavar="FILE", help=others)
    _add_folders(add(_folds, "scores of a cross-validation, all folds together, with intervals over stars"))
    errors = add(_errors, "error bars against errors: by S/N, by label, their distribution, the worst rows")
    _add_folders(errors)
    errors.add_argument("--label", default="log_g", help="a label that the runs predict (default: log_g)")
    errors.add_argument("--ceilings", type=Path, metavar="FILE", help=written)
    errors.set_defaults(reference=None)
    _add_folders(add(_curves, "training curves of many runs in one figure"))
    attention = add(_attention, "where trained models look: attention and saliency by wavelength")
    _add_folders(attention)
    attention.add_argument("--label", default="log_g", help="a label that the runs predict (default: log_g)")
    attention.add_argument("--rows", type=ROWS, default=500, metavar="N", help="first test rows (default: 500)")
    attention.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    report = add(_report, "one page on a study: question, findings, figures, failures, cost")
    report.add_argument("study", help="a study's folder, or its name in multirun/")
    report.add_argument("--out", type=Path, metavar="DIR", help="folder to write into (default: report/ in the study)")
    page = "your own page, whose {{ names }} are filled in, or 'owner_zh': goal, design, figures, insights in Chinese"
    report.add_argument("--template", metavar="FILE", help=page)
    report.add_argument("--metric", help=metric)
    report.add_argument("--label", default="log_g", help="the label of the scaling figure (default: log_g)")
    archive = add(_archive, "a study's records and predictions in one small file")
    archive.add_argument("study", help="a study's folder, or its name in multirun/")
    archive.add_argument("file", type=Path, help="what to write, NAME.tar.xz")
    return parser


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="+", help="runs (folder, name or hash), studies, or folders of runs")
    where = "folder to write into (default: one named after the command, in the one folder that is named, else here)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=where)


def _add_label(parser: argparse.ArgumentParser, x: str) -> None:
    """Add the options of the commands about a label; `x` is the abscissa of published points."""
    _add_folders(parser)
    points = f"points to draw: 'published' (those of the reference set), or CSV or JSON of name, {x}, r2"
    parser.add_argument("--reference", metavar="FILE", help=points)
    parser.add_argument("--label", default="log_g", help="a label that the runs predict (default: log_g)")


def _say(text: str) -> None:
    print(text, flush=True)


def _out(options: argparse.Namespace) -> Path:
    """Return the folder to write into."""
    return options.out or (options.folder[0] if len(options.folder) == 1 else Path()) / options.command


def _test_sets(options: argparse.Namespace, *, noiseless: bool = False) -> "tuple[Runs, list[TestSet]]":
    """Return all runs, and the tested ones by test set, with folds pooled; print these, and what was left out."""
    from specvit.analysis.grouping import by_test_set
    from specvit.analysis.pooled_folds import pool_folds
    from specvit.analysis.records import read_runs, with_predictions

    runs, notes = read_runs(options.folder)
    tested, omitted = with_predictions(runs, options.label, noiseless=noiseless)
    pooled, incomplete = pool_folds(tested, options.label)
    sets = by_test_set(pooled)
    notes += [
        *omitted,
        *incomplete,
        *(f"test set: {one.description}, {counted(one.num_trained, 'run')}" for one in sets),
    ]
    if options.reference == PUBLISHED and any(one.facts(options.label)["noise_level"] != 1 for one in sets):
        notes.append("note: the published scores are those at noise level 1")
    _say("\n".join(notes))
    return runs, sets


def _reference(options: argparse.Namespace, x: str) -> list[Point]:
    """Return the points of `--reference`; raises `ConfigError` for published ones under another label."""
    if options.reference == PUBLISHED and options.label != "log_g":
        what = f"has scores of log_g, not of {options.label}"
        raise ConfigError(what, where=f"--reference {PUBLISHED}", remedy="leave it out, or name a file of your own")
    return read_reference(options.reference, x) if options.reference else []


def _ceiling(options: argparse.Namespace) -> None:
    """Compute, write and draw the bounds of each test set."""
    from specvit.physics.population import STAR_COLUMNS

    labels = STAR_COLUMNS[:6]  # those that the built-in model turns into a spectrum
    if options.label not in labels:
        remedy = f"{nearest(options.label, labels)}there are {', '.join(labels)}"
        raise ConfigError(f"no ceilings for {options.label!r}", where="--label", remedy=remedy)
    reference = _reference(options, "snr")
    (_, sets), out = _test_sets(options), _out(options)
    if len(sets) > 1:
        _say(f"ceilings differ between test sets and noise, so each of the {len(sets)} has its own folder in {out}")
    refused = 0
    for test_set in sets:
        try:
            _ceiling_of(test_set, options, reference, out / test_set.short if len(sets) > 1 else out)
        except (ConfigError, DataError) as problem:
            refused += 1
            if refused == len(sets):
                raise
            _say(f"note: no ceilings for {test_set.description}: {problem}")


def _ceiling_of(test_set: "TestSet", options: argparse.Namespace, reference: list[Point], out: Path) -> None:
    from specvit.analysis.bounds.inputs import open_stars
    from specvit.analysis.bounds.r2_bounds import check_labels_agree, r2_bounds
    from specvit.analysis.bounds.report import BoundsReport, model_rows, write_bounds
    from specvit.analysis.figures import draw_bounds, save_figures

    first, label = test_set.runs[0], options.label
    names = first.star_N if test_set.is_pooled else None
    stars = open_stars(first.config, options.rows or MOST_ROWS, names)
    if label not in stars.names:
        what = f"{label} is 0 in every star of {test_set.description}"
        raise DataError(what, where="--label", remedy=f"there are {', '.join(stars.names)}")
    for run in test_set.runs:
        check_labels_agree(stars, label, run.true_N, str(run.folder / "predictions.csv"))
    bounds = r2_bounds(stars, label, first.snr_N[: len(stars)], lambda text: _say(f"{text} ..."))
    models = [(setting, model_rows(setting, bounds.rows, len(stars))) for setting in test_set.settings]
    report = BoundsReport(label, test_set, bounds, models, reference)
    write_bounds(report, out)
    save_figures(out, {"ceiling": lambda: draw_bounds(report)})
    row = bounds.rows[0]
    van_trees = "" if row["van_trees"] is None else f"{row['van_trees_r2']:.3f} for any estimator (van Trees), "
    unbiased = f"{row['crlb_median_r2']:.3f} for the median star and {row['crlb_mean_r2']:.3f} in the mean, unbiased"
    _say(f"best R² of {label}, {row['rows']:,} stars: {van_trees}{unbiased} (Cramér-Rao)")
    _say(f"written: {out} ({bounds.seconds:.0f} s)")


def _scaling(options: argparse.Namespace) -> None:
    """Score, compare, write and draw the runs of each test set."""
    from specvit.analysis.bounds.report import read_bounds
    from specvit.analysis.figures import draw_scaling, save_figures
    from specvit.analysis.grouping import add_missing, series_of
    from specvit.analysis.scaling import pair_sentence, scaling_of, slope_sentence, write_scaling
    from specvit.analysis.single_panel import draw_single

    reference = _reference(options, "rows")
    (runs, sets), out = _test_sets(options, noiseless=True), _out(options)
    if len(sets) > 1:
        _say(f"scores on different test sets are not compared: each of the {len(sets)} has its own folder in {out}")
    for test_set in sets:
        series = series_of(test_set)
        if len(sets) == 1:
            add_missing(series, runs)
        bounds = read_bounds(test_set, options.label, options.folder, options.ceilings)
        if not bounds:
            _say(f"note: no ceilings for {test_set.description}; `specvit analysis ceiling` computes them")
        scaling = scaling_of(options.label, test_set, series, bounds.get("van_trees", 1.0))
        place = out / test_set.short if len(sets) > 1 else out
        write_scaling(scaling, reference, place)
        draw = functools.partial(draw_scaling, scaling, reference, bounds)
        if options.style == "single":
            draw = functools.partial(draw_single, scaling, reference)
        save_figures(place, {"scaling": draw})
        sentences = [*map(pair_sentence, scaling.pairs), *map(slope_sentence, scaling.pairs)]
        _say("\n".join([*sentences, f"written: {place}"]))


def _ablation(options: argparse.Namespace) -> None:
    """Count, score, compare, write and draw."""
    from specvit.analysis.ablation_report import ablation_of, write_ablation
    from specvit.analysis.figures import draw_ablation, save_figures
    from specvit.analysis.fit_verdict import bounds_of
    from specvit.analysis.other_runs import read_other_runs
    from specvit.analysis.records import check_metric, directions_of, is_search, metric_of, read_runs
    from specvit.study.trial_queue import group_counts

    runs, notes = read_runs(options.folder)
    metric = options.metric or metric_of(options.folder)
    check_metric(runs, metric)
    others = [read_other_runs(file, metric) for file in options.table]
    where, out = ", ".join(folder.name for folder in options.folder), _out(options)
    bounds = bounds_of(options.folder, runs)
    asked = directions_of(options.folder)
    ablation = ablation_of(runs, metric, where, bounds, search=is_search(options.folder), asked=asked)
    write_ablation(ablation, out, [other for other, _ in others])
    save_figures(out, {"ablation": lambda: draw_ablation(ablation)})
    counts = group_counts(runs.state)
    beside = [line for other, lines in others for line in (*lines, *other.sentences)]
    _say("\n".join([*notes, counts, *ablation.sentences, *beside, f"written: {out}"]))


def _folds(options: argparse.Namespace) -> None:
    """Pool the folds of each setting, score, compare and write."""
    from specvit.analysis.folds import cross_validated, labels_of, settings_of, write_folds
    from specvit.analysis.records import read_runs

    runs, notes = read_runs(options.folder)
    runs, settings, refused = cross_validated(runs), [], []
    for label in labels_of(runs):
        try:
            found, more = settings_of(runs, label)
        except FolderError as problem:  # of this label: runs of another one may have finished
            refused.append(problem)
            continue
        settings += found
        notes += more
    if not settings:
        raise refused[0]
    notes += [f"note: {problem.what}" for problem in refused]
    where, out = ", ".join(folder.name for folder in options.folder), _out(options)
    sentences = write_folds(settings, where, out)
    _say("\n".join([*dict.fromkeys(notes), *sentences, f"written: {out}"]))


def _errors(options: argparse.Namespace) -> None:
    """Compare, write and draw the errors and error bars of each test set."""
    from specvit.analysis.bounds.report import read_bins
    from specvit.analysis.error_figures import figures_of
    from specvit.analysis.error_report import error_report, sentence, write_errors
    from specvit.analysis.figures import save_figures

    (_, sets), out = _test_sets(options, noiseless=True), _out(options)
    refused = list[FolderError]()
    for test_set in sets:
        bounds = read_bins(test_set, options.label, options.folder, options.ceilings)
        try:
            report, notes = error_report(test_set, options.label, bounds)
        except FolderError as problem:
            refused.append(problem)
            continue
        place = out / test_set.short if len(sets) > 1 else out
        if not bounds and "builtin" in test_set.runs[0].identity["data"]["test"]:
            notes.append(f"note: no van Trees bound of {test_set.description}; `specvit analysis ceiling` computes it")
        write_errors(report, place)
        save_figures(place, figures_of(report))
        sentences = [sentence(one, options.label) for one in report.settings]
        _say("\n".join([*notes, *sentences, f"written: {place}"]))
    if len(refused) == len(sets):
        raise refused[0]
    for problem in refused:
        _say(f"note: left out: {problem}")


def _curves(options: argparse.Namespace) -> None:
    """Draw the curves of the runs."""
    from specvit.analysis.figures import draw_curves, save_figures
    from specvit.analysis.records import read_runs

    runs, notes = read_runs(options.folder)
    if not any(outcome.rows for outcome in runs.outcome):
        where = ", ".join(map(str, options.folder))
        raise FolderError("has no run with an epoch to draw", where=where, remedy="wait for the first epochs")
    save_figures(_out(options), {"curves": lambda: draw_curves(runs)})
    _say("\n".join([*notes, f"written: {_out(options)}"]))


def _attention(options: argparse.Namespace) -> None:
    """Attribute the predictions of each test set's runs to pixels, write and draw."""
    from specvit.analysis.attribution_report import with_slopes, write_attention
    from specvit.analysis.grouping import by_test_set
    from specvit.analysis.records import read_runs, with_predictions

    runs, notes = read_runs(options.folder)
    tested, untested = with_predictions(runs, options.label, noiseless=True)
    usable, omitted = with_slopes(tested)
    for note in [*notes, *untested, *omitted]:
        _say(note)
    if usable.empty:
        where = ", ".join(map(str, options.folder))
        remedy = "name networks or ridge with their checkpoints; an archive has records only"
        raise FolderError("has no run to look into", where=where, remedy=remedy)

    from specvit.analysis.attribution import attributions_of  # torch, which a refusal does not need
    from specvit.analysis.attribution_figure import draw_attention
    from specvit.analysis.figures import save_figures

    sets = by_test_set(usable)
    for test_set in sets:
        report = attributions_of(test_set, options.label, options.rows, options.device, _say)
        out = _out(options) / test_set.short if len(sets) > 1 else _out(options)
        drawings = [lambda own=one, whole=report: draw_attention(whole, own) for one in report.settings]
        save_figures(out, dict(zip(report.figure_names(), drawings, strict=True)))
        write_attention(report, out)
        _say(f"written: {out}")


def _report(options: argparse.Namespace) -> None:
    """Write report.html and report.md of a study, and the user's own page if there is one."""
    from specvit.analysis.records import check_metric, metric_of, read_runs
    from specvit.analysis.study_report import write_study_report

    study = find_study(options.study)
    metric = options.metric or metric_of([study.path])
    runs, notes = read_runs([study.path])
    check_metric(runs, metric)
    out = options.out or study.path / "report"
    status, pages = write_study_report(study, runs, metric, options.label, out, options.template)
    _say("\n".join([*notes, status, *(f"written: {page}" for page in pages)]))


def _archive(options: argparse.Namespace) -> None:
    """Write the archive of a study."""
    from specvit.analysis.archive import pack

    runs, size = pack(find_study(options.study).path, options.file)
    _say(f"written: {options.file}, {counted(runs, 'run')}, {size / 1e6:.1f} MB")
