"""Locks beside the data: real processes, on a disk and in a bucket, that hold locks, die with them, or wait for them."""

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
with locks.lock_folder(sys.argv[1]) if sys.argv[2] == "folder" else locks.lock_stage(sys.argv[1], "0123"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def lock_holder(place, what="folder", host="", **environment):
    """Another process that holds the lock, and releases it when its stdin is closed."""
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
def short_waits(monkeypatch):
    """Waiting times that suit a test."""
    monkeypatch.setattr(locks, "_WAIT_FOR_RUNNING", 0.5)
    monkeypatch.setattr(locks, "_STALE_AFTER", 3.0)
    monkeypatch.setattr(locks._ObjectLock, "poll", 0.2)


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path, short_waits):
    """A folder that does not exist yet."""
    return str(tmp_path / "a" / "b") if request.param == "disk" else f"{request.getfixturevalue('s3')}/a/b"


def acquire_within(seconds, place):
    """Acquire and release the lock; fails if that takes longer."""
    started = time.monotonic()
    with locks.lock_folder(place):
        assert time.monotonic() - started < seconds


def test_releasing_a_lock_leaves_nothing(place):
    with locks.lock_folder(place):
        assert storage.names(place) == []  # never listed as data
    acquire_within(5, place)
    assert not storage.exists(place)


def test_releasing_a_lock_removes_only_the_empty_folders_that_it_created(tmp_path):
    (tmp_path / "outputs").mkdir()
    with locks.lock_folder(str(tmp_path / "outputs" / "sweeps" / "rates")):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "outputs"]
    assert not list((tmp_path / "outputs").iterdir())


def test_releasing_a_lock_keeps_what_was_written(place):
    with locks.lock_folder(place):
        storage.write_text(storage.join(place, "result"), "1")
    assert storage.names(place) == ["result"]


def test_the_error_of_a_second_process_names_the_owner(tmp_path, short_waits):
    """Even with another temporary folder, and from another node (simulated) that shares the disk."""
    (tmp_path / "tmp").mkdir()
    with lock_holder(tmp_path / "run", host="node-b", TMPDIR=str(tmp_path / "tmp")) as process:
        with pytest.raises(ConfigError, match=rf"run: in use by process {process.pid} of .+ on node-b since 2") as caught:
            acquire_within(1, tmp_path / "run")
        assert "choose another output" in str(caught.value)
        assert list((tmp_path / "tmp").iterdir()) == []


def test_an_owner_that_renews_its_lock_in_a_bucket_counts_as_running(s3, short_waits, monkeypatch):
    monkeypatch.setattr(locks, "_RENEW_INTERVAL", 0.3)
    with locks.lock_folder(s3), pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} of"):
        acquire_within(1, s3)


def test_the_lock_of_a_killed_process_is_free_immediately(place):
    with lock_holder(place) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        acquire_within(2.5, place)  # before it would count as stale
    assert not storage.exists(storage.join(place, storage.LOCK))


@pytest.mark.slow
def test_the_lock_of_a_killed_process_of_another_machine_becomes_stale(place):
    """Its kernel lock and its process cannot be checked from here; that nothing renews the lock can."""
    with lock_holder(place, host="node-b") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        started = time.monotonic()
        acquire_within(30, place)
        assert time.monotonic() - started > 3.0


def test_an_owner_that_is_about_to_end_is_waited_for(place, monkeypatch):
    monkeypatch.setattr(locks, "_WAIT_FOR_RUNNING", 30.0)
    with lock_holder(place) as process:
        threading.Timer(1.0, process.stdin.close).start()
        started = time.monotonic()
        acquire_within(25, place)
        assert time.monotonic() - started > 0.9
        assert process.wait(10) == 0
    assert not storage.exists(storage.join(place, storage.LOCK))


def test_waiting_for_a_stage_has_no_limit_and_the_log_names_the_owner(place, caplog):
    with lock_holder(place, "stage") as process, caplog.at_level("INFO"):
        threading.Timer(1.5, process.stdin.close).start()
        with locks.lock_stage(place, "0123"):
            pass
        with locks.lock_stage(place, "4567"):  # another stage of the store
            pass
    assert f"stage 0123 of {place}: waiting for process {process.pid}" in caplog.text


def test_waiting_ends_when_a_stop_is_requested(place):
    stop = threading.Event()
    with lock_holder(place, "stage"):
        threading.Timer(0.7, stop.set).start()
        lock = locks.lock_stage(place, "0123", stop_requested=stop.is_set)
        with pytest.raises(Preempted, match="stop requested while waiting for process"):
            lock.__enter__()


def test_replacement_workers_take_over_the_lock_of_their_group(place):
    url = storage.join(place, f"{storage.LOCK}-0123")
    dead = locks.Owner("node-b", "another-machine", 1, "me", "avvp", "2026", group="run 7")
    storage.write_bytes(url, dead.to_bytes())
    started = time.monotonic()
    with locks.lock_stage(place, "0123", group="run 7"):
        assert time.monotonic() - started < 2.5
        assert json.loads(storage.read_bytes(url))["pid"] == os.getpid()


def test_only_one_of_several_threads_holds_the_lock(place):
    """Their order is left to chance; no two may overlap."""
    inside, most = [], []

    def work():
        with locks.lock_stage(place, "0123"):
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


def test_a_damaged_lock_file_has_no_owner(place):
    url = storage.join(place, storage.LOCK)
    storage.write_bytes(url, b"\0half of it")
    assert locks.Owner.parse(storage.read_bytes(url)) is None
    acquire_within(2.5, place)
    assert not storage.exists(url)


def test_a_lock_file_contains_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["avvp", "train", "han", "tracking.uri=http://me:hunter2@server", "http://me:hunter2@b"]
    )
    with locks.lock_folder(str(tmp_path)):
        text = (tmp_path / storage.LOCK).read_text()
    assert "train han" in text
    assert "hunter2" not in text


@pytest.mark.parametrize("layout", ["shards", "official"])
def test_a_second_pack_into_the_same_folder_is_refused(tmp_path, short_waits, layout):
    with lock_holder(tmp_path / "out") as process:
        command = ["data", "synth", str(tmp_path / "out"), "--videos", "20", "--layout", layout, "--workers", "1"]
        done = CliRunner().invoke(cli.app, command)
        assert isinstance(done.exception, ConfigError)
        assert f"out: in use by process {process.pid}" in str(done.exception)
        assert storage.names(str(tmp_path / "out")) == []


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["ignored", "501"])
def test_a_store_without_conditional_writes(s3, s3_server, short_waits, monkeypatch, answer):
    """The lock is looked up before it is written; only two processes at the same moment may both get it."""
    monkeypatch.setattr(locks, "_RENEW_INTERVAL", 0.3)
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
        with locks.lock_folder(s3), pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} of"):
            acquire_within(1, s3)
        acquire_within(5, s3)
        dead = locks.Owner("node-b", "another-machine", 1, "me", "avvp", "2026", group="run 7")
        storage.write_bytes(storage.join(s3, storage.LOCK), dead.to_bytes())
        acquire_within(60, s3)


def test_temporary_files_of_writers_that_may_be_running_are_kept(tmp_path):
    with lock_holder(tmp_path / "lock") as process:
        alive = f".aside-{processes.machine()}-{process.pid}-1"
        own = f".aside-{processes.machine()}-{os.getpid()}-2"
        dead = f".aside-{processes.machine()}-{2**22 + 7}-3"  # greater than any process id
        elsewhere, old = ".aside-0000000000000000-1-4", ".aside-0000000000000000-1-5"
        for name in (alive, own, dead, elsewhere, old):
            (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / old, (0, time.time() - 2 * 86400))
        assert storage.remove_abandoned(tmp_path) == 2
        assert sorted(path.name for path in tmp_path.glob(".aside*")) == sorted([alive, own, elsewhere])
        process.kill()
        process.wait()
        assert storage.remove_abandoned(tmp_path) == 1


def test_a_temporary_file_is_named_after_its_writer(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(os, "fsync", lambda _: names.extend(path.name for path in tmp_path.iterdir()))
    storage.write_bytes(tmp_path / "a", b"1")
    assert names[0].startswith(f".aside-{processes.machine()}-{os.getpid()}-")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["a"]
