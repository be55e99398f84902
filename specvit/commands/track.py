"""`python -m specvit.track sync [FOLDER ...]`: send MLflow the records that it lacks from run folders."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from specvit.commands.entry import Parser, user_facing
from specvit.config.tracking_uri import check_uri, resolve_uri
from specvit.run_folder.folder import RunFolder
from specvit.study.find import find_folder_of_runs
from specvit.study.mlflow_sync import follow_study
from specvit.study.store import StudyFolder
from specvit.tracking.mlflow_sync import Change, SyncLoop, follow_run
from specvit.tracking.run_record import fingerprint_of
from specvit.utils.errors import FolderError
from specvit.utils.files import read_json, read_yaml

OUTCOMES = ("sent", "up to date", "left alone", "failed")


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Send MLflow the records of run folders. It can be repeated at any time; nothing is sent twice."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.command == "study":
        return follow_study(StudyFolder(options.folder.resolve()), _write_report)
    check_uri(options.uri)
    if options.command == "follow":
        return follow_run(_run(options.folder), options.uri)
    folders = [find_folder_of_runs(name) for name in options.folder]
    return _FolderSync(folders, options.uri).send_all(watch=options.watch)


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="specvit track", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync", help="send what MLflow lacks")
    sync.add_argument(
        "folder", nargs="*", default=["outputs"], help="runs (folder, name or hash), studies, or folders of runs"
    )
    sync.add_argument("--uri", help="another MLflow than the runs' own tracking.uri")
    sync.add_argument("--watch", action="store_true", help="continue until Ctrl-C, also with new runs")
    mlflow_sync = commands.add_parser(
        "follow", help="synchronise one run during training, until it has ended (a run starts this itself)"
    )
    mlflow_sync.add_argument("folder", type=Path)
    mlflow_sync.add_argument("--uri", required=True)
    study = commands.add_parser("study", help="synchronise a study until it has ended (a study starts this itself)")
    study.add_argument("folder", type=Path)
    return parser


class _FolderSync(SyncLoop):
    """Brings MLflow up to date with the runs in folders, each at its own server or all at `uri`."""

    poll_seconds = 5.0

    def __init__(self, folders: list[Path], uri: str | None) -> None:
        super().__init__()
        self.folders, self.uri = folders, uri

    def exists(self) -> bool:
        return True

    def is_active(self) -> bool:
        return True

    def changes(self) -> Iterator[Change]:
        for run in runs_in(self.folders):
            uri = partial(self._uri, run)
            yield Change(str(run.path), fingerprint_of(run), uri, lambda server, own=run: server.sync(own))

    def report(self, name: str, problem: Exception) -> None:
        print(f"specvit: {problem}", file=sys.stderr)

    def send_all(self, *, watch: bool) -> int:
        """Send all runs, once or until Ctrl-C; return the exit code."""
        if not any(True for _ in runs_in(self.folders)):
            self.open(resolve_uri(self.uri, self.folders[0] / "run"))  # a UI needs a database to open
        while True:
            counts = self.round()
            counts["failed"] += counts.pop("refused", 0)
            if not watch or counts["sent"] or counts["failed"]:
                words = [f"{counts[what]} {what}" for what in OUTCOMES if counts[what]]
                print(", ".join(words) or "no runs found", flush=True)
            if not watch:
                return 1 if counts["failed"] else 0
            time.sleep(self.poll_seconds)

    def _uri(self, run: RunFolder) -> str:
        own = None if self.uri else read_yaml(run.file("config.yaml"))["tracking"].get("uri")
        return resolve_uri(self.uri or own, run.path)


def _write_report(study: StudyFolder, out: Path) -> None:
    """Write report.html and report.md of a study."""
    from specvit.analysis.records import metric_of, read_runs
    from specvit.analysis.study_report import write_study_report

    runs, _ = read_runs([study.path])
    write_study_report(study, runs, metric_of([study.path]), "log_g", out, None)


def runs_in(folders: list[Path]) -> Iterator[RunFolder]:
    """Yield the given run folders, and those inside the other given folders; raises `FolderError`."""
    for folder in folders:
        if not folder.is_dir():
            remedy = "name a run folder, or a folder of runs"
            raise FolderError("is not a folder", where=str(folder), remedy=remedy)
        if (folder / "run.json").exists():
            yield _run(folder)
            continue
        of_study = folder / "runs" if (folder / "study.json").exists() else folder
        for inner in sorted(of_study.iterdir()):
            if "run_id" in (read_json(inner / "run.json") or {}):
                yield _run(inner)


def _run(path: Path) -> RunFolder:
    about = read_json(path / "run.json") or {}
    if "run_id" not in about:
        raise FolderError("is not a run folder (no run.json)", where=str(path), remedy="name a folder in outputs/")
    return RunFolder(path.resolve(), about["run_id"])
