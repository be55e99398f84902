"""`specvit analysis ceiling|scaling|ablation|curves|attention|report|archive ...`: tables and figures from runs."""

import argparse
import sys
from pathlib import Path

from specvit.commands.entry import Parser, user_facing


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Turn run folders into tables and figures. Never trains."""
    parser = Parser(prog="specvit analysis", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ceiling = commands.add_parser("ceiling", help="R² by S/N under the Cramér-Rao and van Trees bounds")
    _takes_label(ceiling, "snr")
    ceiling.add_argument("--rows", type=_count, metavar="N", help="first test rows only (default: at most 10,000)")
    scaling = commands.add_parser("scaling", help="scores by training rows, with laws, and who overtakes whom")
    _takes_label(scaling, "rows")
    said = "what `analysis ceiling` wrote (default: ceiling/ceiling.json in the folders named)"
    scaling.add_argument("--ceilings", type=Path, metavar="FILE", help=said)
    ablation = commands.add_parser("ablation", help="what each factor of a study does, and how its runs ended")
    _takes_folders(ablation)
    metric = "of a run's summary or tested epoch, or escape_step (default: that of the study's table, else test_r2)"
    ablation.add_argument("--metric", help=metric)
    curves = commands.add_parser("curves", help="training curves of many runs in one figure")
    _takes_folders(curves)
    attention = commands.add_parser(
        "attention", help="what trained models look at: attention and saliency by wavelength"
    )
    _takes_folders(attention)
    attention.add_argument("--label", default="log_g", help="a label that the runs predict (default: log_g)")
    attention.add_argument("--rows", type=_count, default=500, metavar="N", help="first test rows (default: 500)")
    attention.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    report = commands.add_parser("report", help="one page on a study: question, findings, figures, failures, cost")
    report.add_argument("study", help="a study's folder, or its name in multirun/")
    report.add_argument("--out", type=Path, metavar="DIR", help="folder to write into (default: report/ in the study)")
    report.add_argument("--template", type=Path, metavar="FILE", help="a page of yours whose {{ names }} are filled")
    report.add_argument("--metric", help=metric)
    report.add_argument("--label", default="log_g", help="the label of the scaling figure (default: log_g)")
    archive = commands.add_parser("archive", help="a study's records and predictions in one small file")
    archive.add_argument("study", type=Path, help="a study's folder")
    archive.add_argument("file", type=Path, help="what to write, NAME.tar.xz")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.command == "scaling":
        from specvit.analysis.scaling_command import scaling as command
    elif options.command == "ablation":
        from specvit.analysis.ablation_command import ablation as command
    elif options.command == "curves":
        from specvit.analysis.curves import curves as command
    elif options.command == "attention":
        from specvit.analysis.attribution_command import attention as command
    elif options.command == "archive":
        from specvit.analysis.archive import archive as command
    elif options.command == "report":
        from specvit.analysis.report_command import report as command
    else:
        from specvit.analysis.bounds.command import ceiling as command
    return command(options)


def _takes_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="+", type=Path, help="run folders, studies, or folders of runs")
    where = "folder to write into (default: one named after the command, in the one folder that is named, else here)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=where)


def _takes_label(parser: argparse.ArgumentParser, x: str) -> None:
    """Add what those about a label take; `x` is what published points stand against."""
    _takes_folders(parser)
    parser.add_argument("--reference", type=Path, metavar="FILE", help=f"points to draw: CSV or JSON of name, {x}, r2")
    parser.add_argument("--label", default="log_g", help="a label that the runs predict (default: log_g)")


def _count(text: str) -> int:
    """Read 5000 or 5k."""
    try:
        number = int(text.removesuffix("k")) * (1000 if text.endswith("k") else 1)
    except ValueError:
        number = 0
    if number < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 2 or more, such as 500 or 5k")
    return number
