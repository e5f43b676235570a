"""Locks lie where the data are: real processes, on a disk and in a bucket, that hold them, die with them, or share them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from avvp_dist import storage
from avvp_dist.cli import main as cli
from avvp_dist.errors import ConfigError, Preempted
from avvp_dist.storage import locks, processes
from avvp_dist.storage.config import StorageConfig
from benchmarks.fault_proxy import FaultProxy

HOLD = """
import socket, sys, time
if sys.argv[3]:
    socket.gethostname = lambda: sys.argv[3]
from avvp_dist.storage import locks
with locks.hold_folder(sys.argv[1]) if sys.argv[2] == "folder" else locks.lease_stage(sys.argv[1], "0123"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(place, what="folder", host="", **environment):
    """Another process that has the lock; it gives it back when its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place), what, host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def quick(monkeypatch):
    """Waits that a test can wait for."""
    monkeypatch.setattr(locks, "_PATIENCE", 0.5)
    monkeypatch.setattr(locks, "_STALE", 3.0)
    monkeypatch.setattr(locks._InStore, "poll", 0.2)


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path, quick):
    """A folder that does not exist yet."""
    return str(tmp_path / "a" / "b") if request.param == "disk" else f"{request.getfixturevalue('s3')}/a/b"


def taken_within(seconds, place):
    started = time.monotonic()
    with locks.hold_folder(place):
        assert time.monotonic() - started < seconds


def test_a_lock_leaves_nothing_when_it_is_released(place):
    with locks.hold_folder(place):
        assert storage.names(place) == []  # never taken for data
    taken_within(5, place)
    assert not storage.exists(place)


def test_what_was_written_under_a_lock_stays(place):
    with locks.hold_folder(place):
        storage.write_text(storage.join(place, "result"), "1")
    assert storage.names(place) == ["result"]


def test_the_second_one_says_who_holds_it(tmp_path, quick):
    """Also with a temporary folder of its own, and from what looks like another node of the same disk."""
    (tmp_path / "tmp").mkdir()
    with holder(tmp_path / "run", host="node-b", TMPDIR=str(tmp_path / "tmp")) as process:
        with pytest.raises(ConfigError, match=rf"run: in use by process {process.pid} of .+ on node-b since 2") as caught:
            taken_within(1, tmp_path / "run")
        assert "choose another output" in str(caught.value)
        assert list((tmp_path / "tmp").iterdir()) == []


def test_a_holder_in_a_bucket_that_renews_is_alive(s3, quick, monkeypatch):
    monkeypatch.setattr(locks, "_RENEW", 0.3)
    with locks.hold_folder(s3), pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} of"):
        taken_within(1, s3)


def test_a_killed_holder_blocks_nobody(place):
    with holder(place) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        taken_within(2.5, place)  # before it would count as stale
    assert not storage.exists(storage.join(place, storage.LOCK))


def test_a_killed_holder_of_another_machine_is_waited_for(place):
    """Its kernel's lock and its process cannot be seen from here; that nothing renews the lock can."""
    with holder(place, host="node-b") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        started = time.monotonic()
        taken_within(30, place)
        assert time.monotonic() - started > 3.0


def test_a_holder_that_is_about_to_end_is_waited_for(place, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 30.0)
    with holder(place) as process:
        threading.Timer(1.0, process.stdin.close).start()
        taken_within(25, place)


def test_a_stage_is_waited_for_however_long_and_whose_it_is_is_told(place, caplog):
    with holder(place, "stage") as process, caplog.at_level("INFO"):
        threading.Timer(1.5, process.stdin.close).start()
        with locks.lease_stage(place, "0123"):
            pass
        with locks.lease_stage(place, "4567"):  # another stage of the store
            pass
    assert f"stage 0123 of {place}: waiting for process {process.pid}" in caplog.text


def test_who_waits_can_be_told_to_stop(place):
    asked = threading.Event()
    with holder(place, "stage"):
        threading.Timer(0.7, asked.set).start()
        claim = locks.lease_stage(place, "0123", stopped=asked.is_set)
        with pytest.raises(Preempted, match="asked to stop while waiting for process"):
            claim.__enter__()


def test_workers_that_replace_others_take_over_their_lock(place):
    url = storage.join(place, f"{storage.LOCK}-0123")
    dead = locks.Owner("node-b", "another-machine", 1, "me", "avvp", "2026", group="run 7")
    storage.write_bytes(url, dead.to_bytes())
    started = time.monotonic()
    with locks.lease_stage(place, "0123", group="run 7"):
        assert time.monotonic() - started < 2.5
        assert json.loads(storage.read_bytes(url))["pid"] == os.getpid()


def test_of_many_at_once_one_gets_it(place):
    """The order of who tries is left to chance; that no two overlap is not."""
    inside, most = [], []

    def work():
        with locks.lease_stage(place, "0123"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert most == [1] * 4


def test_a_lock_that_is_no_json_is_nobodys(place):
    storage.write_bytes(storage.join(place, storage.LOCK), b"\0half of it")
    taken_within(2.5, place)


def test_a_lock_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["avvp", "train", "han", "tracking.uri=http://me:hunter2@server", "http://me:hunter2@b"]
    )
    with locks.hold_folder(str(tmp_path)):
        text = (tmp_path / storage.LOCK).read_text()
    assert "train han" in text
    assert "hunter2" not in text


@pytest.mark.parametrize("layout", ["shards", "official"])
def test_two_packs_into_one_target(tmp_path, quick, layout):
    with holder(tmp_path / "out") as process:
        command = ["data", "synth", str(tmp_path / "out"), "--videos", "20", "--layout", layout, "--workers", "1"]
        done = CliRunner().invoke(cli.app, command)
        assert isinstance(done.exception, ConfigError)
        assert f"out: in use by process {process.pid}" in str(done.exception)
        assert storage.names(str(tmp_path / "out")) == []


@pytest.mark.parametrize("answer", ["ignored", "501"])
def test_a_store_that_knows_no_conditions(s3, s3_server, quick, monkeypatch, answer):
    """Then it is asked before it is told; only two in one moment may both get a lock."""
    monkeypatch.setattr(locks, "_RENEW", 0.3)
    with FaultProxy(s3_server) as proxy:
        handler = proxy._server.RequestHandlerClass

        def put(request):
            conditions = [name for name in ("If-None-Match", "If-Match") if name in request.headers]
            if conditions and answer == "501":
                request._body()
                request.respond(501, [], b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>")
                return
            for name in conditions:
                del request.headers[name]
            request._forward()

        monkeypatch.setattr(handler, "do_PUT", put)
        storage.configure(StorageConfig(endpoint=proxy.url))
        with locks.hold_folder(s3), pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} of"):
            taken_within(1, s3)
        taken_within(5, s3)
        dead = locks.Owner("node-b", "another-machine", 1, "me", "avvp", "2026", group="run 7")
        storage.write_bytes(storage.join(s3, storage.LOCK), dead.to_bytes())
        taken_within(60, s3)


def test_sweeping_leaves_what_a_writer_may_still_write(tmp_path):
    with holder(tmp_path / "lock") as process:
        alive = f".aside-{processes.machine()}-{process.pid}-1"
        ours = f".aside-{processes.machine()}-{os.getpid()}-2"
        process_of_old = f".aside-{processes.machine()}-{2**22 + 7}-3"  # beyond the largest number of a process
        elsewhere, old = ".aside-0000000000000000-1-4", ".aside-0000000000000000-1-5"
        for name in (alive, ours, process_of_old, elsewhere, old):
            (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / old, (0, time.time() - 2 * 86400))
        assert storage.sweep(tmp_path) == 2
        assert sorted(path.name for path in tmp_path.glob(".aside*")) == sorted([alive, ours, elsewhere])
        process.kill()
        process.wait()
        assert storage.sweep(tmp_path) == 1


def test_a_written_file_is_aside_under_its_writers_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.extend(path.name for path in tmp_path.iterdir()))
    storage.write_bytes(tmp_path / "a", b"1")
    assert seen[0].startswith(f".aside-{processes.machine()}-{os.getpid()}-")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["a"]
