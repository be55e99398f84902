"""The URI of MLflow's database or server, and the names that MLflow accepts."""

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from specvit.utils.errors import ConfigError
from specvit.utils.text import holds_secret

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
STUDY_TAG = "specvit.study"
"""The key of the study that made the run; its name is in the tag `study`."""
OWN_TAGS = ("attempts", "cause", "commit", "data", "device", "folder", "host", "labels", "model", "remedy", "rows")
OWN_TAGS += ("seed", "signature", "size", "slurm_job", "state", "superseded", "tokenizer")
"""Names of the tags that specvit gives each run in MLflow."""
NAME_CHARACTERS, KEY_CHARACTERS = 256, 250
"""MLflow's limits of an experiment's name and a tag's, as its tables have them."""


def check_names(experiment: str, tags: Iterable[str]) -> None:
    """Raise `ConfigError` for a user's experiment or tags that MLflow would refuse, or that specvit sets."""
    if not experiment.strip() or len(experiment) > NAME_CHARACTERS:
        what = f"has {len(experiment)} characters" if experiment.strip() else "is empty"
        remedy = f"give a name of 1 to {NAME_CHARACTERS} characters, or leave it out"
        raise ConfigError(what, where="tracking.experiment", remedy=remedy)
    for name in tags:
        where = f"tracking.tags.{name[:60]}"
        if name in OWN_TAGS or (name.startswith(("specvit.", "mlflow.")) and name != STUDY_TAG):
            raise ConfigError("is a name that specvit or MLflow sets itself", where=where, remedy="choose another")
        if len(name) > KEY_CHARACTERS:
            what, remedy = f"has {len(name)} characters", f"MLflow accepts {KEY_CHARACTERS}"
            raise ConfigError(what, where=where, remedy=remedy)
        is_path = posixpath.normpath(name) == name and not name.startswith(("/", "..")) and name != "."
        if not re.fullmatch(r"[/\w.\- :]+", name) or not is_path:
            remedy = "use letters, digits, spaces and _ . - : / (not at an end)"
            raise ConfigError("is a name that MLflow does not accept", where=where, remedy=remedy)


def check_uri(uri: str | None) -> None:
    """Raise `ConfigError` for a URI that MLflow cannot use, or that would write a password into every record."""
    if uri is None:
        return
    if holds_secret(uri):
        remedy = (
            "leave it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
        )
        remedy += "in the environment; of a database PGPASSWORD, or use ~/.pgpass"
        what = "holds a password or token, which every run's record would show"
        raise ConfigError(what, where="tracking.uri", remedy=remedy)
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    if ":" not in uri or scheme not in SCHEMES:
        remedy = f"use sqlite:///FILE, http://HOST:PORT or another of {', '.join(SCHEMES)}"
        raise ConfigError(f"{uri!r} is not an MLflow database or server", where="tracking.uri", remedy=remedy)
    if scheme == "sqlite" and not re.match(r"sqlite(\+\w+)?:///.", uri):
        raise ConfigError(f"{uri!r} names no file", where="tracking.uri", remedy="write sqlite:///FILE")


def resolve_uri(uri: str | None, run: Path) -> str:
    """Return the URI for a run folder; null is `mlflow.db` beside the folder of runs, where relative paths begin.

    Raises `ConfigError` for a database whose path no URL can hold.
    """
    base = run.resolve().parent.parent
    file = Path(DATABASE) if uri is None else sqlite_file(uri)
    if file is None:
        return str(uri)
    place = base / file.expanduser()
    if misread := re.search(r"[?]|%[0-9A-Fa-f]{2}", str(place)):
        what = f"would be {place}, of which a database's URL misreads {misread[0]!r}"
        remedy = "rename that folder, or set tracking.uri=sqlite:////FOLDER/mlflow.db to a file elsewhere"
        raise ConfigError(what, where="tracking.uri", remedy=remedy)
    return f"sqlite:///{place}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite URI, None for any other."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(found[1]) if found else None


def artifact_folder(uri: str, experiment: str) -> str | None:
    """Return where an experiment's files go with a sqlite database: beside it; a server decides for itself (None)."""
    file = sqlite_file(uri)
    if file is None:
        return None
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", experiment)[:200]  # what a folder can be called
    return (file.parent / ARTIFACTS / safe).as_uri()
