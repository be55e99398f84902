"""Where MLflow's database or server is: the default, sqlite paths made absolute, and what cannot be one."""

import re
from pathlib import Path

from specvit.errors import ConfigError
from specvit.urls import holds_secret

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"


def check_uri(uri: str | None) -> None:
    """Raise `ConfigError` for a URI that MLflow cannot use, or that would write a password into every record."""
    if uri is None:
        return
    if holds_secret(uri):
        remedy = (
            "leave it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
        )
        remedy += "in the environment; of a database PGPASSWORD, or use ~/.pgpass"
        what = "holds a password or token, which would stand in every run's record"
        raise ConfigError(what, where="tracking.uri", remedy=remedy)
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    if ":" not in uri or scheme not in SCHEMES:
        remedy = f"use sqlite:///FILE, http://HOST:PORT or another of {', '.join(SCHEMES)}"
        raise ConfigError(f"{uri!r} is no MLflow database or server", where="tracking.uri", remedy=remedy)
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
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", experiment)
    return (file.parent / ARTIFACTS / safe).as_uri()
