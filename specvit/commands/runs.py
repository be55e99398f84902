"""`specvit runs [FOLDER]`: the runs in a folder, by time. Reads run folders alone."""

import shutil
import sys

from specvit.commands.entry import Parser, user_facing
from specvit.study.find import RUNS, find_folder_of_runs, find_runs
from specvit.study.listing import run_list


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """List runs, the latest last: hash, state, best validation and test score, and the settings in which they differ.

    Settings that more than half of the runs share are left out. Lines are cut on a terminal, never in a pipe.
    """
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    is_default = options.folder == str(RUNS)
    runs = [] if is_default and not RUNS.is_dir() else find_runs(find_folder_of_runs(options.folder))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    remedy = "; `specvit train` makes one" if is_default else ""
    for line in run_list(runs) or [f"no run in {options.folder} yet{remedy}"]:
        print(line if width is None or len(line) <= width else f"{line[: width - 1]}…")
    return 0


def parser() -> Parser:
    """Return the parser of the command."""
    own = Parser(prog="specvit runs", description=main.__doc__)
    about = "a folder of runs, or a study (default: outputs)"
    own.add_argument("folder", nargs="?", default=str(RUNS), help=about)
    return own
