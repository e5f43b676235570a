"""Addresses of tracking servers that can never work are rejected before a run starts; unavailable servers are not."""

import sqlite3

import pytest

from avvp_dist.cli.main import main
from avvp_dist.errors import ConfigError
from avvp_dist.tracking.address import check_address
from avvp_dist.tracking.base import TrackingConfig

INVALID = [
    ("foo://bar", "MLflow does not support the scheme 'foo'"),
    ("htp://host:5000", "did you mean 'http'?"),
    ("uc:catalog", "MLflow does not support the scheme 'uc'"),
    ("./mlruns", "MLflow no longer stores runs in folders"),
    ("file:///tmp/mlruns", "MLflow no longer stores runs in folders"),
    ("''", "MLflow no longer stores runs in folders"),
    ("http:///x", "has no host"),
    ("http://host:many", "host and port cannot be read"),
    ("http://host/x?a=b", "a server's address has no query"),
    ("sqlite://x.db", "the path must follow three slashes"),
    ("sqlite:///{tmp}", "is not a file, and so not a SQLite database"),
    ("sqlite:///{tmp}/text.db", "is not a SQLite database"),
    ("sqlite:///{tmp}/text.db/x.db", "is not a folder"),
    ("sqlite:////proc/nowhere/x.db", "cannot be used"),
    ("sqlite:///{tmp}/" + 300 * "x", "cannot be used"),
    ("postgresql+nope://host/x", "SQLAlchemy has no driver 'nope'"),
    ("mysql+pymysql://host/x", "its driver is missing"),
    ("mysql+a+b://host/x", "SQLAlchemy has no driver"),
]


@pytest.fixture
def tmp(tmp_path):
    (tmp_path / "text.db").write_text("no database, but long enough to be one")
    return tmp_path


@pytest.mark.parametrize(("uri", "message"), INVALID)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_addresses_that_can_never_work_are_rejected_with_one_message(command, uri, message, packed, tmp, capsys):
    setting = f"tracking.uri={uri.format(tmp=tmp)}"
    target = [f"output={tmp / 'out'}"] if command == "train" else ["--output", str(tmp / "out")]
    if uri.startswith("mysql+pymysql"):
        pytest.importorskip("mlflow")
    with pytest.raises(SystemExit) as caught:
        main([command, "han" if command == "train" else "jomold-denoising", f"data={packed}", setting, *target])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    first, *rest = captured.err.splitlines()
    assert not rest or (len(rest) == 1 and rest[0].startswith("full message: "))  # the path alone can be too long for a line
    assert "tracking.uri=" in first
    assert message in captured.err
    assert not (tmp / "out").exists()


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_tables_and_dry_runs_reject_an_address_before_data_are_generated(options, tmp_path, capsys):
    command = ["sweep", "jomold-denoising", "data=x", "tracking.uri=foo://bar"] if options else None
    command = command or ["table", "main", "--set", "tracking.uri=foo://bar"]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--output", str(tmp_path / "out"), *options])
    assert caught.value.code == 2
    assert "does not support the scheme 'foo'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_addresses_that_can_work_are_accepted(tmp, monkeypatch):
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
    assert not (tmp / "new").exists(), "the check leaves no files"
    with pytest.raises(ConfigError, match="no longer stores runs in folders"):
        check_address(TrackingConfig(uri="./mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_address(TrackingConfig(uri="./mlruns"))


def test_a_configured_server_requires_mlflow(monkeypatch):
    from avvp_dist.tracking import address

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(address.util, "find_spec", lambda name: None)  # as if it was not installed
    check_address(TrackingConfig(uri=address.absolute_uri(TrackingConfig().uri)))  # the default: only a warning
    for uri in ("http://127.0.0.1:9", "postgresql://host/x"):
        with pytest.raises(ConfigError, match="MLflow is not installed; pip install"):
            check_address(TrackingConfig(uri=uri))
