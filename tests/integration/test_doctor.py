"""`avvp doctor`: every check against real services, passing and failing."""

import json
import re
import socket
from pathlib import Path

import forks
import pytest
from ports import free_port
from s3_servers import ENVIRONMENT

from avvp_dist import storage
from avvp_dist.launch import doctor_checks
from avvp_dist.shards.index import Index
from avvp_dist.storage.config import StorageConfig

SLOW = "timeout=200"  # for a machine that others use too


def doctor(*arguments, cwd, **environment):
    return forks.avvp("doctor", *arguments, cwd=cwd, **environment)


def findings(done):
    return {row["check"]: row for row in json.loads(done.stdout)["checks"]}


@pytest.fixture
def packed_s3(packed, s3):
    for name in storage.names(packed):
        storage.write_bytes(storage.join(s3, "data", name), storage.read_bytes(storage.join(packed, name)))
    return storage.join(s3, "data")


@pytest.mark.slow
def test_all_checks_pass(packed_s3, s3, s3_server, tmp_path, monkeypatch):
    """From a setting, not the environment, all three must learn the endpoint: our storage, Ray's, and MLflow's."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    pytest.importorskip("mlflow").MlflowClient(uri).create_experiment("s3", artifact_location=f"{s3}/artifacts")
    settings = [
        f"data={packed_s3}",
        f"output={s3}/runs",
        f"tracking={uri}",
        "experiment=s3",
        f"storage.endpoint={s3_server}",
    ]
    done = doctor(*settings, SLOW, "--json", cwd=tmp_path)
    found = findings(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["ok"]
    assert {row["status"] for row in found.values()} <= {"ok", "warn"}
    assert re.search(r"gloo with 2: all_reduce of 4 MB in [\d.]+ ms", found["collective"]["figure"])
    assert re.search(r"Ray [\d.]+ starts in", found["ray"]["figure"])
    assert "90 videos, 6 shards" in found["data"]["figure"]
    assert "run and artifact (s3) written, read and deleted" in found["mlflow"]["figure"]
    for name in ("output", "output by ray"):
        assert "written, read and deleted" in found[name]["figure"]
    storage.configure(StorageConfig(endpoint=s3_server))
    assert storage.names(s3) == ["data"], "something was left behind"


def test_all_checks_fail(s3, tmp_path):
    port = free_port()
    uri = f"http://someone:hunter2@127.0.0.1:{port}"
    done = doctor(
        f"data={s3}/nothing", "output=s3://no-such-bucket/runs", f"tracking={uri}", SLOW,
        cwd=tmp_path, RAY_ADDRESS=f"127.0.0.1:{port}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = {line[6:20].strip(): line for line in done.stdout.splitlines()}
    assert "no such folder" in lines["data"]
    for name in ("output", "output by ray"):
        assert "there is no bucket 'no-such-bucket'; create it" in lines[name]
    assert f"RAY_ADDRESS=127.0.0.1:{port}: cannot connect (Connection refused); start the cluster" in lines["ray"]
    assert "start the server, or correct tracking=URI" in lines["mlflow"]
    for name in ("data", "output", "output by ray", "ray", "mlflow"):
        assert lines[name].startswith("fail  ")
    assert lines["collective"].startswith("ok    ")


def test_services_that_do_not_answer_time_out(tmp_path):
    with socket.socket() as silent:  # accepts, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = ["output=s3://bucket/runs", f"storage.endpoint=http://{address}", "storage.read_timeout=1000"]
        done = doctor(*settings, "tracking=none", "timeout=8", cwd=tmp_path, RAY_ADDRESS=address, **ENVIRONMENT)
    assert done.returncode == 1
    assert "no response in 8 s" in next(line for line in done.stdout.splitlines() if " output " in line)
    assert "mlflow" not in done.stdout


def test_configuration_mistakes_are_reported(tmp_path):
    done = doctor("dta=x", "storage.secret=hunter2", "timeout=-1", cwd=tmp_path)
    assert done.returncode == 2
    assert "dta: unknown key; did you mean 'data'?" in done.stderr
    assert "credentials do not belong in a config" in done.stderr
    assert "timeout" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_a_damaged_shard(packed, tmp_path):
    for name in storage.names(packed):
        storage.write_bytes(tmp_path / name, storage.read_bytes(storage.join(packed, name)))
    assert doctor_checks.data(str(tmp_path)).status == "ok"
    first = tmp_path / Index.load(str(tmp_path)).shards[0].name
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    finding = doctor_checks.data(str(tmp_path))
    assert (finding.status, finding.advice) == ("fail", "delete it and run the pack command again")


def test_checking_a_local_output_creates_no_folder(tmp_path):
    assert doctor_checks.output(str(tmp_path / "a" / "b")).status == "ok"
    assert doctor_checks.ray_output(str(tmp_path / "a" / "b")).status == "ok"
    assert not list(tmp_path.iterdir())


def test_installed_packages_are_compared_with_the_requirements(monkeypatch):
    assert doctor_checks.python().status in ("ok", "warn")
    requirements = ["torch>=99", "numpy>=1", "no-such-package>=1", 'nobody-has-ray>=2; extra == "ray"']
    monkeypatch.setattr(doctor_checks.metadata, "requires", lambda _: requirements)
    finding = doctor_checks.python()
    assert finding.status == "fail"
    assert "1 packages in the required versions" in finding.figure
    assert "required >=99; no-such-package missing; nobody-has-ray missing" in finding.figure
    monkeypatch.setattr(doctor_checks.metadata, "requires", lambda _: [requirements[1], requirements[3]])
    assert doctor_checks.python().status == "warn"


def test_an_mlflow_database_that_does_not_exist_yet(tmp_path):
    pytest.importorskip("mlflow")
    path = Path(tmp_path, "new", "mlflow.db")
    assert doctor_checks.mlflow(f"sqlite:///{path}", "avvp").figure == f"{path} is created by the first run"
    assert not path.parent.exists()
