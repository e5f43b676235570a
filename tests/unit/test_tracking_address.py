"""Addresses of tracking servers that can never work are refused before anything runs; servers that are away are not."""

import sqlite3

import pytest

from avvp_dist.cli.main import main
from avvp_dist.errors import ConfigError
from avvp_dist.tracking.address import check_address
from avvp_dist.tracking.base import TrackingConfig

HOPELESS = [
    ("foo://bar", "MLflow knows no scheme 'foo'"),
    ("htp://host:5000", "did you mean 'http'?"),
    ("uc:catalog", "MLflow knows no scheme 'uc'"),
    ("./mlruns", "MLflow keeps no runs in folders any more"),
    ("file:///tmp/mlruns", "MLflow keeps no runs in folders any more"),
    ("''", "MLflow keeps no runs in folders any more"),
    ("http:///x", "names no host"),
    ("http://host:many", "host and port cannot be read"),
    ("http://host/x?a=b", "a server's address has no query"),
    ("sqlite://x.db", "a path follows after three slashes"),
    ("sqlite:///{tmp}", "is no file, so no SQLite database"),
    ("sqlite:///{tmp}/text.db", "is no SQLite database"),
    ("sqlite:///{tmp}/text.db/x.db", "is no folder"),
    ("sqlite:////proc/nowhere/x.db", "cannot be used"),
    ("sqlite:///{tmp}/" + 300 * "x", "cannot be used"),
    ("postgresql+nope://host/x", "SQLAlchemy knows no driver 'nope'"),
    ("mysql+pymysql://host/x", "its driver is missing"),
    ("mysql+a+b://host/x", "SQLAlchemy knows no driver"),
]


@pytest.fixture
def tmp(tmp_path):
    (tmp_path / "text.db").write_text("no database, but long enough to be one")
    return tmp_path


@pytest.mark.parametrize(("uri", "message"), HOPELESS)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_what_can_never_work_is_refused_with_one_message(command, uri, message, packed, tmp, capsys):
    setting = f"tracking.uri={uri.format(tmp=tmp)}"
    place = [f"output={tmp / 'out'}"] if command == "train" else ["--output", str(tmp / "out")]
    if uri.startswith("mysql+pymysql"):
        pytest.importorskip("mlflow")
    with pytest.raises(SystemExit) as caught:
        main([command, "han" if command == "train" else "jomold-denoising", f"data={packed}", setting, *place])
    told = capsys.readouterr()
    assert caught.value.code == 2
    first, *rest = told.err.splitlines()
    assert not rest or (len(rest) == 1 and rest[0].startswith("full message: "))  # the path alone may be too long for a line
    assert "tracking.uri=" in first
    assert message in told.err
    assert not (tmp / "out").exists()


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_a_table_and_a_dry_run_refuse_it_before_any_data_are_made(options, tmp_path, capsys):
    command = ["sweep", "jomold-denoising", "data=x", "tracking.uri=foo://bar"] if options else None
    command = command or ["table", "main", "--set", "tracking.uri=foo://bar"]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--output", str(tmp_path / "out"), *options])
    assert caught.value.code == 2
    assert "knows no scheme 'foo'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_may_work_passes(tmp, monkeypatch):
    sqlite3.connect(tmp / "real.db").execute("create table a (b)").connection.close()
    (tmp / "empty.db").touch()
    for uri in (
        "http://127.0.0.1:9",
        "https://[::1]:5000/mlflow",
        "databricks",
        "databricks://profile",
        "sqlite:///:memory:",
        f"sqlite:///{tmp}/real.db",
        f"sqlite:///{tmp}/empty.db",
        f"sqlite:///{tmp}/new/folder/x.db",
    ):
        check_address(TrackingConfig(uri=uri))
    check_address(TrackingConfig(name="none", uri="foo://bar"))
    assert not (tmp / "new").exists(), "looking leaves nothing"
    with pytest.raises(ConfigError, match="no runs in folders"):
        check_address(TrackingConfig(uri="./mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_address(TrackingConfig(uri="./mlruns"))


def test_a_server_asked_for_needs_mlflow(monkeypatch):
    from avvp_dist.tracking import address

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(address.util, "find_spec", lambda name: None)  # as where it is not installed
    check_address(TrackingConfig(uri=address.absolute_uri(TrackingConfig().uri)))  # asked for by nobody: a warning, as ever
    for uri in ("http://127.0.0.1:9", "postgresql://host/x"):
        with pytest.raises(ConfigError, match="MLflow is not installed; pip install"):
            check_address(TrackingConfig(uri=uri))
