"""Marked secrets in every key and variable that can hold one: no file and no output of a command contains them."""

import base64
import json
import shutil
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import forks
import pytest
from ports import free_port

from avvp_dist.text.credentials import TRACKING_VARIABLE
from avvp_dist.tracking.journal import read_run

MARK = "Leak42Mark"
VARIABLES = {
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/a+b",
    "AWS_SESSION_TOKEN": f"{MARK}session",
    "PGPASSWORD": f"{MARK} pg",
    "MYSQL_PWD": f"{MARK}my",
    "HF_TOKEN": f"hf_{MARK}",
    "WANDB_API_KEY": f"{MARK}wandb",
    "DATABASE_URL": f"postgresql://me:{MARK}db@host/x",
    "ANY_PROXY": f"http://me:{MARK}proxy@host:3128",
}
SMALL = ["model.width=8", "model.feedforward=8", "train.epochs=1", "train.batch_size=16", "train.device=cpu"]
FREE = [
    f"tracking.tags.note=http://me:{MARK}@h/x",
    f"tracking.run_name=run of {MARK}/a+b",
    f"tracking.tags.api_token={MARK}tag",
]


def avvp(*arguments, cwd, **variables):
    """A command in a process of its own, in an environment full of secrets; fails where it shows one."""
    given = VARIABLES | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"} | variables
    done = forks.avvp(*arguments, cwd=cwd, without=("MLFLOW_TRACKING_URI", TRACKING_VARIABLE), **given)
    assert MARK not in done.stdout + done.stderr, (arguments, done.stdout, done.stderr)
    return done


def leaks(*folders):
    """Files below the folders, names included, in which the mark stands."""
    marks = [MARK.encode(), MARK.encode("utf-16-le"), *(base64.b64encode(b"x" * n + MARK.encode())[4:12] for n in range(3))]
    paths = [path for folder in folders for path in Path(folder).rglob("*")]
    return [
        str(path)
        for path in paths
        if MARK in path.name or (path.is_file() and any(mark in path.read_bytes() for mark in marks))
    ]


class Locked(ThreadingHTTPServer):
    """A server that lets nobody in, and keeps what it was shown."""

    def __init__(self):
        self.shown = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.shown.append(self.headers["Authorization"])
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = f"no: {self.headers['Authorization']}".encode()
                self.send_response(401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def locked():
    server = Locked()
    yield server
    server.shutdown()
    server.server_close()


def test_a_run_with_a_tracking_server_that_requires_a_password(packed, tmp_path, locked):
    """train (tracking fails, training succeeds), sync without and with the password, evaluate, compare, config."""
    place = f"127.0.0.1:{locked.server_address[1]}"
    whole = f"http://me:p@{MARK}/w@{place}"
    run = tmp_path / "run"
    done = avvp(
        *["train", "han", f"data={packed}", f"output={run}", f"tracking.uri={whole}", "tracking.flush_timeout=10"],
        *SMALL,
        *FREE,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    login = "Basic " + base64.b64encode(f"me:p@{MARK}/w".encode()).decode()
    assert set(locked.shown) == {login}
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in done.stderr
    assert read_run(run / "tracking")["uri"] == f"http://{place}"
    assert json.loads((run / "result.json").read_text())["scores"]

    locked.shown.clear()
    done = avvp("sync", str(run), cwd=tmp_path)
    assert (done.returncode, "needs its password" in done.stderr, locked.shown) == (2, True, [])
    for variables, options, shown in (
        ({"MLFLOW_TRACKING_URI": whole}, [], login),
        ({"MLFLOW_TRACKING_TOKEN": f"{MARK}-1"}, [], f"Bearer {MARK}-1"),
        ({}, ["--uri", f"http://{MARK}-2@{place}"], f"Bearer {MARK}-2"),
    ):
        locked.shown.clear()
        done = avvp("sync", str(run), *options, cwd=tmp_path, **variables)
        assert done.returncode == 1
        assert set(locked.shown) == {shown}
    # the same command, and one with another spelling of the same address, go on with the run
    done = avvp("train", "han", f"data={packed}", f"output={run}", *SMALL, *FREE, cwd=tmp_path, MLFLOW_TRACKING_URI=whole)
    assert done.returncode == 0, done.stderr
    for command in (["evaluate", str(run)], ["compare", str(run)], ["config", str(run / "config.yaml"), *FREE]):
        done = avvp(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    done = avvp("sync", str(run), "--uri", f"sqlite:///{tmp_path}/mlflow.db", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not leaks(tmp_path)


def test_a_table_and_the_doctor(packed, tmp_path):
    uri = f"http://{MARK}@127.0.0.1:{free_port()}"
    (tmp_path / "mine.yaml").write_text(
        f"title: of http://me:{MARK}@h\nsource: {MARK}/a+b\nrows:\n"
        f"- {{label: one, recipe: han, view: joint, overrides: ['tracking.uri={uri}']}}\n"
    )
    wanted = [*SMALL[:2], *SMALL[3:], "tracking.flush_timeout=1", *FREE]
    settings = [word for setting in wanted for word in ("--set", setting)]
    done = avvp(
        *["table", "mine.yaml", "--data", packed, "--seeds", "1", "--epochs", "1", "--output", "out", *settings],
        *["--markdown", "table.md"],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "mine.yaml").unlink()
    done = avvp("doctor", f"data={packed}", f"tracking={uri}", "timeout=20", "--json", cwd=tmp_path)
    assert [check["check"] for check in json.loads(done.stdout)["checks"]].count("mlflow") == 1
    assert not leaks(tmp_path)


REFUSED = [
    ["train", "han", f"data=s3://KEY:{MARK}/x@bucket/data"],
    ["train", "han", "data=x", f"output=http://{MARK}@host/x"],
    ["train", "han", "data=x", f"store=https://host/x?anything={MARK}"],
    ["train", "han", "data=x", f"storage.secret={MARK}"],
    ["train", "han", "data=x", f"storage.endpoint=http://me:{MARK}@host"],
    ["train", "han", "data=x", f"tracking.uri=http://host/x?token={MARK}"],
    ["train", "han", "data=x", f"tracking.uri=mlflow://me:{MARK}@host"],
    ["train", "han", "data=x", f"tracking.uri=[http://me:{MARK}@host"],
    ["train", "han", "data=x", f"launch=http://me:{MARK}@host"],
    ["train", "han", "data=x", f"password={MARK}"],
    ["train", "han", "data=x", f"http://me:{MARK}@host"],
    ["train", f"http://me:{MARK}@host/mine.yaml"],
    ["train", "broken.yaml"],
    ["train", "han", "--token", f"http://{MARK}@host"],
    ["sweep", "jomold-denoising", f"data=s3://KEY:{MARK}@bucket/data"],
    ["sweep", "broken.yaml"],
    ["table", "main", "--set", f"method.ratios=s3://KEY:{MARK}@b/x", "--data", "x"],
    ["doctor", f"output=s3://KEY:{MARK}@b/x", f"secret={MARK}"],
    ["data", "inspect", f"s3://KEY:{MARK}@b/x"],
    ["compare", f"http://me:{MARK}@host/x"],
    ["evaluate", f"http://me:{MARK}@host/x"],
    ["sync", f"s3://KEY:{MARK}@b/x"],
]


@pytest.mark.parametrize("command", REFUSED, ids=[" ".join(command).replace(MARK, "SECRET") for command in REFUSED])
def test_a_refusal_repeats_no_secret(command, tmp_path, monkeypatch, capfd):
    from avvp_dist.cli.main import main

    monkeypatch.chdir(tmp_path)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "broken.yaml").write_text(f'tracking: {{uri: "http://me:{MARK}@host" x}}\n')
    with pytest.raises(SystemExit) as caught:
        main(command)
    shown = "".join(capfd.readouterr())
    (tmp_path / "broken.yaml").unlink()
    assert caught.value.code == 2, shown
    assert MARK not in shown
    assert not leaks(tmp_path)


SWEEP = f"""
title: about http://me:{MARK}@host
recipe: han
overrides: [{", ".join(SMALL)}, tracking.flush_timeout=2]
seeds: [1]
concurrency: 1
space:
  optim.lr: {{grid: [0.001, 1.0e+30]}}
"""


def test_a_sweep_on_ray(packed, tmp_path):
    """A trial that succeeds and one that fails, at a server that is away; `sync` and `compare`; Ray's own files too."""
    pytest.importorskip("ray")
    own = tempfile.mkdtemp(prefix="avvp-")  # short: it becomes part of sockets' names
    try:
        (tmp_path / "mine.yaml").write_text(SWEEP)
        uri = f"tracking.uri=http://me:p@{MARK}/w@127.0.0.1:{free_port()}"
        out = tmp_path / "sweep"
        command = ["sweep", str(tmp_path / "mine.yaml"), f"data={packed}", uri, *FREE, "--output", str(out)]
        places = {"RAY_TMPDIR": own, "TMPDIR": own}
        done = avvp(*command, cwd=tmp_path, RAY_AUTH_TOKEN=f"{MARK}ray", RAY_AUTH_MODE="disabled", **places)
        content = json.loads((out / "sweep.json").read_text())
        assert sorted(row["status"] for row in content["trials"]) == ["failed", "finished"], done.stderr
        assert done.returncode == 1
        assert avvp("sync", str(out), cwd=tmp_path).returncode == 2
        done = avvp("sync", str(out), "--uri", f"sqlite:///{tmp_path}/mlflow.db", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        done = avvp("compare", "--sweep", str(out), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (tmp_path / "mine.yaml").unlink()
        assert list(Path(own).rglob("*.out")), "Ray's own files were looked at"
        assert not leaks(tmp_path, own)
    finally:
        shutil.rmtree(own, ignore_errors=True)
