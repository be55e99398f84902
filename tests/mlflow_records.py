"""What MLflow has of a run, and run folders to bring to it."""

from typing import Any

import yaml

from specvit.run_folder.folder import RunFolder
from specvit.tracking.mlflow import Server


def runs_of(server: Server, experiment: str = "specvit") -> list[Any]:
    found = server.client.get_experiment_by_name(experiment)
    return server.client.search_runs([found.experiment_id]) if found else []


def only_run(server: Server) -> Any:
    (only,) = runs_of(server)
    return only


def points_of(server: Server, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in server.client.get_metric_history(run_id, name)]


def cut_after(folder: RunFolder, epochs: int) -> None:
    """Make a run look as it did after some epochs, killed."""
    for name in ("metrics.jsonl", "timing.jsonl"):
        lines = folder.file(name).read_text().splitlines(keepends=True)
        folder.file(name).write_text("".join(lines[:epochs]))
    folder.file("summary.json").unlink(missing_ok=True)
    folder.set_status("running")


def tracked(folder: RunFolder, **settings: Any) -> None:
    """Give a run other settings of its record."""
    config = yaml.safe_load(folder.file("config.yaml").read_text())
    config["tracking"] |= settings
    folder.file("config.yaml").write_text(yaml.safe_dump(config))
