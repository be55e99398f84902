"""`python -m specvit.track sync [FOLDER ...]`: send MLflow the records that it lacks from run folders."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from specvit.commands.entry import Parser, user_facing
from specvit.config.tracking_uri import check_uri, resolve_uri
from specvit.run_folder.folder import RunFolder
from specvit.study.find import find_folder_of_runs
from specvit.study.mlflow_sync import follow_study
from specvit.study.store import StudyFolder
from specvit.tracking.mlflow import Server, explained
from specvit.tracking.mlflow_sync import follow
from specvit.tracking.run_record import fingerprint_of
from specvit.utils.errors import FolderError, TrackingError
from specvit.utils.files import read_json, read_yaml

WATCH_SECONDS = 5.0


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Send MLflow the records of run folders. It can be repeated at any time; nothing is sent twice."""
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
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.command == "study":
        return follow_study(StudyFolder(options.folder.resolve()))
    check_uri(options.uri)
    if options.command == "follow":
        return follow(_run(options.folder), options.uri)
    return _Sync(options.uri).send_all([find_folder_of_runs(name) for name in options.folder], watch=options.watch)


class _Sync:
    """Sends runs to their servers, each opened once; a server that fails is not asked again in the same round."""

    def __init__(self, uri: str | None) -> None:
        self.uri = uri
        self.servers: dict[str, Server] = {}
        self.sent: dict[Path, str] = {}

    def send_all(self, folders: list[Path], *, watch: bool) -> int:
        """Send all runs in `folders`, once or until Ctrl-C; return the exit code."""
        if not any(True for _ in runs_in(folders)):
            self._server(resolve_uri(self.uri, folders[0] / "run"))  # a UI needs a database to open
        while True:
            counts = {"sent": 0, "up to date": 0, "left alone": 0, "failed": 0}
            closed: set[str] = set()
            for run in runs_in(folders):
                counts[self._send(run, closed)] += 1
            if not watch or counts["sent"] or counts["failed"]:
                print(
                    ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no runs found",
                    flush=True,
                )
            if not watch:
                return 1 if counts["failed"] else 0
            time.sleep(WATCH_SECONDS)

    def _server(self, uri: str) -> Server:
        if uri not in self.servers:
            self.servers[uri] = Server(uri)
        return self.servers[uri]

    def _send(self, run: RunFolder, closed: set[str]) -> str:
        """Send one run and return the word for how it went."""
        fingerprint = fingerprint_of(run)
        if self.sent.get(run.path) == fingerprint:
            return "up to date"
        uri = str(run.path)
        try:
            with explained(str(run.path)):
                uri = resolve_uri(self.uri or _own_uri(run), run.path)
            if uri in closed:
                return "failed"
            closed.add(uri)  # until it has opened
            server = self._server(uri)
            closed.remove(uri)
            outcome = server.sync(run)
        except TrackingError as problem:
            self.servers.pop(uri, None)  # the fault may be the run's or the server's: the next run opens it again
            print(f"specvit: {problem}", file=sys.stderr)
            return "failed"
        self.sent[run.path] = fingerprint
        return outcome


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


def _own_uri(run: RunFolder) -> str | None:
    config = read_yaml(run.file("config.yaml"))
    return config["tracking"].get("uri")
