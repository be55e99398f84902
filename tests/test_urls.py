"""No password or token in a URL: refused where it is typed, hidden where an older record has one."""

from pathlib import Path

import pytest

from specvit.commands.train import main
from specvit.config.build import build_config
from specvit.study.options import split_options
from specvit.utils.errors import ConfigError, TrackingError
from specvit.utils.text import hide_secrets, holds_secret

BUILTIN = {"data": {"kind": "builtin", "num_samples": 640, "val_samples": 64, "test_samples": 64}}
SECRETS = (
    "postgresql+psycopg://user:SECRET@host/db",
    "postgresql://user:SEC RET'@host/db",
    "postgresql://user:SE/C?R#ET@host/db",
    "postgresql://user%3ASECRET@host/db",
    "postgresql://user:p@SECRET@host/db",
    "mysql+pymysql://host/db?passwd=SECRET",
    "https://SECRET@host",
    "http://user:SECRET@host:5000",
    "https://host/?access_token=SECRET",
    "https://host/?a=b&api_key=SECRET",
    "https://host/?x=1&API-KEY=SECRET",
    "https://host/#access_token=SECRET",
    "postgresql://user@host/db?sslpassword=SECRET",
    "postgresql://user@host/db?PASSWORD=SECRET",
    "postgresql://user@host/db?password",
    "postgresql://user@host/db?p%61ssword=SECRET",
    "postgresql://user@host/db?p%2561ssword=SECRET",
    "postgresql:///db?host=/run&password=SECRET",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Du%3BPWD%3DSECRET",
    "sqlite:////data/optuna.db?password=SECRET",
)
FINE = (
    "sqlite:////data/a:b@c/mlflow.db",
    "sqlite:////data/password/optuna.db",
    "http://localhost:5000",
    "https://host:5000/token/path?x=1",
    "postgresql+psycopg://user@host:5432/db",
    "postgresql://user@host1:5432,host2:5432/db?target_session_attrs=any",
    "postgresql:///db?host=/run/postgresql&passfile=/home/a/.pgpass&sslkey=/home/a/key.pem",
    "mysql+pymysql://user@host/db?read_default_file=~/.my.cnf",
    "databricks://profile",
)


def test_a_url_with_a_password_or_token_in_any_part_is_refused_and_not_repeated() -> None:
    for url in SECRETS:
        assert holds_secret(url), url
        for refused in (
            lambda url=url: split_options([f"sweep.storage={url}"]),
            lambda url=url: build_config({**BUILTIN, "tracking": {"uri": url}}),
        ):
            with pytest.raises(ConfigError, match="holds a password or token") as refusal:
                refused()
            assert "SECRET" not in str(refusal.value) and "pgpass" in str(refusal.value)


def test_a_url_without_one_is_left_as_it_is() -> None:
    for url in FINE:
        assert not holds_secret(url), url
        assert hide_secrets(f"({url}) and model/tokenizer=sw") == f"({url}) and model/tokenizer=sw"


def test_where_an_older_record_or_a_driver_quotes_one_it_is_hidden() -> None:
    for url in SECRETS:
        shown = hide_secrets(f'see "{url}", a file')
        assert "SECRET" not in shown and "RET" not in shown, url
        assert "SECRET" not in str(TrackingError(f"did not answer (OperationalError: {url})", where=url)), url


@pytest.mark.slow
def test_a_token_in_the_environment_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://SECRET@host")
    for words in (["data=builtin"], ["data=builtin", "-m", "train.seed=1,2"]):
        assert main([*words, "data.num_samples=640"]) == 2
        said = capsys.readouterr()
        assert "tracking.uri: holds a password or token" in said.err and "SECRET" not in said.err + said.out
    assert not list(tmp_path.iterdir())
