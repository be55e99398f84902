"""`specvit import FILE`: another program's configuration, sweep file or table of runs, in our words."""

import re
import sys
from pathlib import Path

from specvit.commands.entry import Parser, user_facing
from specvit.utils.errors import ConfigError

FILE_NAME = re.compile(r"(?!(?i:null|none)\.)[A-Za-z0-9][A-Za-z0-9_-]*\.yaml")
"""Names that a command line can choose; `experiment=null` is the run without an experiment."""


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Import a configuration (YAML, JSON) as an experiment, a W&B sweep as a study, a CSV table of runs for `ablation`.

    Each key is taken over, dropped with the reason, or asked for. The exit code is 1 if the file has keys that are not
    known here.
    """
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.out is not None and options.out.is_dir():
        raise ConfigError("is a folder", where=str(options.out), remedy="name a file in it")
    if options.file.suffix.lower() in (".csv", ".tsv"):
        return _import_table(options.file, options.out)
    return _import_configuration(options.file, options.out)


def parser() -> Parser:
    """Return the parser of the command."""
    own = Parser(prog="specvit import", description=main.__doc__)
    own.add_argument("file", type=Path, metavar="FILE", help="YAML, JSON or CSV of another program or an older version")
    where = "file to write (default: conf/experiment/NAME.yaml, of a sweep sweeps/NAME.yaml, of a table none)"
    own.add_argument("--out", type=Path, metavar="FILE", help=where)
    return own


def _import_configuration(file: Path, out: Path | None) -> int:
    from specvit.importing.experiment import HOME, import_configuration
    from specvit.importing.read_file import read_file
    from specvit.importing.sweep_file import SWEEPS, import_sweep, is_sweep
    from specvit.importing.translation import UNKNOWN

    plain = read_file(file)
    convert, folder = (import_sweep, SWEEPS) if is_sweep(plain) else (import_configuration, HOME)
    target = out or Path(folder, re.sub(r"[^A-Za-z0-9_-]+", "_", file.stem) + ".yaml")
    if not FILE_NAME.fullmatch(target.name):
        what = f"cannot be the file of {'a study' if convert is import_sweep else 'an experiment'}"
        raise ConfigError(what, where=str(target), remedy=f"write, say, --out {folder}/mine.yaml")
    found = convert(plain, file.name, target, lambda text: print(text, flush=True))
    return 1 if found.lines[UNKNOWN] else 0


def _import_table(file: Path, out: Path | None) -> int:
    from specvit.importing.experiment import write_new
    from specvit.importing.run_table import as_csv, read_run_table, summary

    table = read_run_table(file)
    print("\n".join([f"{file}: {summary(table)}", *table.notes]))
    if out is not None:
        write_new(out, as_csv(table), print)
    print(f"beside your runs:  specvit analysis ablation outputs --table {out or file}")
    return 0
