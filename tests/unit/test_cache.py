"""The shard cache of a node: fetches once, stores complete shards only, evicts by last use, survives kills and damage."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from damage import flip
from typer.testing import CliRunner

from avvp_dist import storage
from avvp_dist.cli.cache import cache as cache_commands
from avvp_dist.errors import DataError, StorageError
from avvp_dist.shards.cache import ShardCache
from avvp_dist.shards.index import ShardInfo
from avvp_dist.storage.config import StorageConfig

SIZE = 80_000
READER = """
import sys, hashlib
from types import SimpleNamespace  # importing pyarrow for the real ShardInfo takes longer than the test
from avvp_dist.shards.cache import ShardCache
folder, url, name, size, sha256 = sys.argv[1:]
shard = SimpleNamespace(name=name, bytes=int(size), sha256=sha256)
print("ready", flush=True)
with ShardCache(folder).open(url, shard) as handle:
    print(hashlib.sha256(handle.read()).hexdigest())
"""


def content_of(number: int, size: int = SIZE) -> bytes:
    return hashlib.shake_128(str(number).encode()).digest(size)


def info(number: int, size: int = SIZE) -> ShardInfo:
    sha256 = hashlib.sha256(content_of(number, size)).hexdigest()
    return ShardInfo(f"train-{number:06d}.tar", "train", 1, size, sha256, "")


SHARDS = [info(number) for number in range(6)]


@pytest.fixture
def url() -> str:
    """A data set that is remote for this process and its forks."""
    where = "memory://bucket/cached"
    storage.remove(where)
    for number, shard in enumerate(SHARDS):
        storage.write_bytes(storage.join(where, shard.name), content_of(number))
    return where


class Server(ThreadingHTTPServer):
    """Serves shards in chunks on loopback, counts requests, and sends no more chunks than the test allows."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/data"
        self.requests = Counter()
        self.wrong = 0
        self.sent = 0
        self.allowed = 1000
        self.daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.requests[name] += 1
        number = int(name[6:12])
        if number >= len(SHARDS):
            self.send_error(404)
            return
        content = content_of(number)
        if self.server.wrong:
            self.server.wrong -= 1
            content = content[::-1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content), len(content) // 8):
            wait_for(lambda: self.server.sent < self.server.allowed)
            try:
                self.wfile.write(content[start : start + len(content) // 8])
            except ConnectionError:
                return
            self.server.sent += 1

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.allowed = 1000
    server.shutdown()
    server.server_close()


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def reader(folder: Path, url: str, shard: ShardInfo) -> subprocess.Popen:
    """Another process that reads a shard and prints its hash."""
    arguments = [str(folder), url, shard.name, str(shard.bytes), shard.sha256]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", READER, *arguments], stdout=subprocess.PIPE, text=True, env=environment)


def read(cache: ShardCache, url: str, shard: ShardInfo) -> bytes:
    with cache.open(url, shard) as handle:
        return handle.read()


def kept(folder: Path) -> set[str]:
    """Names of the entries, after comparing each with its content."""
    paths = list((folder / "shards").glob("*"))
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in paths)
    return {path.name for path in paths}


def test_concurrent_processes_fetch_a_shard_once_and_later_ones_use_the_cache(server, tmp_path):
    server.allowed = 0
    first = [reader(tmp_path / "cache", server.url, SHARDS[0]) for _ in range(3)]
    assert [process.stdout.readline() for process in first] == ["ready\n"] * 3
    wait_for(lambda: server.requests)
    server.allowed = 1000
    outputs = [process.communicate(timeout=240)[0].strip() for process in first]
    assert outputs == [SHARDS[0].sha256] * 3
    server_url = server.url.replace("/data", "/same-shards-elsewhere")
    assert reader(tmp_path / "cache", server_url, SHARDS[0]).communicate(timeout=240)[0].split()[1] == SHARDS[0].sha256
    assert server.requests == {SHARDS[0].name: 1}


def test_a_waiting_process_takes_over_from_one_killed_while_fetching(server, tmp_path):
    folder = tmp_path / "cache"
    for number, chunks in enumerate((0, 3, 7)):
        shard, requests = SHARDS[number], sum(server.requests.values())
        server.allowed = server.sent + chunks
        victim = reader(folder, server.url, shard)
        wait_for(lambda requests=requests: sum(server.requests.values()) > requests)
        wait_for(lambda: server.sent == server.allowed)
        waiting = reader(folder, server.url, shard)
        assert waiting.stdout.readline() == "ready\n"
        victim.kill()
        victim.communicate()
        server.allowed = 1000
        assert waiting.communicate(timeout=240)[0].strip() == shard.sha256
    assert kept(folder) == {shard.sha256 for shard in SHARDS[:3]}
    assert max(server.requests.values()) == 2


def die_at(moment: int, events: set[str], report: int) -> None:
    """Kill this process right before the ``moment``-th of the audit ``events``, after writing its name to ``report``."""
    left = moment

    def hook(event, _arguments):
        nonlocal left
        left -= event in events
        if event in events and not left:
            os.write(report, event.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.slow
def test_a_process_killed_before_any_disk_operation_leaves_a_valid_cache(url, tmp_path):
    finished, moment = False, 0
    events = {"open", "os.rename", "os.remove", "os.utime", "os.mkdir", "fcntl.flock"}
    counts: Counter[str] = Counter()
    while not finished:
        moment += 1
        folder = tmp_path / str(moment)
        reported, report = os.pipe()
        child = os.fork()
        if not child:
            cache = ShardCache(folder, 3 * SIZE)
            die_at(moment, events, report)
            for shard in SHARDS[:4]:  # the fourth evicts the first
                read(cache, url, shard)
            os._exit(0)
        os.close(report)
        finished = os.waitpid(child, 0)[1] == 0
        counts[os.read(reported, 100).decode()] += 1
        os.close(reported)
        kept(folder)
        cache = ShardCache(folder, 3 * SIZE)
        for number in (4, 3):
            assert read(cache, url, SHARDS[number]) == content_of(number)
        assert not list((folder / "partial").iterdir())
        assert {SHARDS[3].sha256, SHARDS[4].sha256} <= kept(folder)
        assert cache.usage().bytes <= 3 * SIZE
    assert all(counts[event] for event in events)
    assert moment > 20


def test_partial_files_of_killed_writers_are_removed_and_never_served(url, tmp_path):
    left = tmp_path / "partial" / ("ab" * 16)
    left.parent.mkdir()
    for cleanup in (lambda: read(ShardCache(tmp_path), url, SHARDS[0]), ShardCache(tmp_path).clear):
        left.write_bytes(content_of(0)[:1000])
        cleanup()
        assert not left.exists()


def test_the_least_recently_used_entry_is_evicted_first(url, tmp_path):
    cache = ShardCache(tmp_path, 3 * SIZE)
    for number in (0, 1, 2, 0, 3):  # 0 was used again, so 1 is the oldest
        read(cache, url, SHARDS[number])
    assert kept(tmp_path) == {SHARDS[number].sha256 for number in (0, 2, 3)}
    read(ShardCache(tmp_path, 3 * SIZE), url, SHARDS[2])  # used by another cache object
    read(cache, url, SHARDS[4])
    assert kept(tmp_path) == {SHARDS[number].sha256 for number in (2, 3, 4)}
    assert cache.usage() == (3, 3 * SIZE)
    read(ShardCache(tmp_path, SIZE), url, SHARDS[5])
    assert kept(tmp_path) == {SHARDS[5].sha256}


def test_entries_being_read_are_not_evicted(url, tmp_path, caplog):
    cache = ShardCache(tmp_path, 2 * SIZE)
    with cache.open(url, SHARDS[0]) as handle:
        other = cache.open(url, SHARDS[1])
        assert read(cache, url, SHARDS[2]) == content_of(2)  # from memory, as nothing can be evicted
        assert "all entries are being read" in caplog.text
        assert kept(tmp_path) == {SHARDS[0].sha256, SHARDS[1].sha256}
        assert ShardCache(tmp_path).clear() == (2, 2 * SIZE)
        for path in (tmp_path / "shards").iterdir():
            path.unlink()  # even deleted files remain readable while open
        assert handle.read() == content_of(0)
    assert other.read() == content_of(1)


def test_threads_under_a_small_limit_read_correct_data(url, tmp_path):
    caches = [ShardCache(tmp_path, 2 * SIZE) for _ in range(2)]

    def work(number: int) -> bool:
        return read(caches[number % 2], url, SHARDS[number % 6]) == content_of(number % 6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(120)))
    kept(tmp_path)
    assert caches[0].usage().bytes <= 2 * SIZE


def flip_and_touch(path: Path) -> None:
    flip(path)
    path.touch()


@pytest.mark.parametrize(
    "damage", [flip_and_touch, flip, lambda path: os.truncate(path, SIZE // 2), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_entry_is_detected_and_fetched_again(url, tmp_path, caplog, damage):
    cache = ShardCache(tmp_path)
    read(cache, url, SHARDS[0])
    damage(tmp_path / "shards" / SHARDS[0].sha256)
    again = ShardCache(tmp_path) if damage is flip else cache  # a process hashes a seemingly unchanged file only once
    assert read(again, url, SHARDS[0]) == content_of(0)
    assert "is damaged, fetching it again" in caplog.text
    assert kept(tmp_path) == {SHARDS[0].sha256}


def test_wrong_content_is_fetched_again(server, tmp_path):
    server.wrong = 2
    assert read(ShardCache(tmp_path), server.url, SHARDS[0]) == content_of(0)
    assert server.requests == {SHARDS[0].name: 3}


def test_permanently_wrong_or_missing_content_is_an_error_with_the_number_of_attempts(server, tmp_path):
    cache = ShardCache(tmp_path)
    server.wrong = 100
    with pytest.raises(DataError, match=r"train-000000\.tar: content differs from what the index recorded, 4 times"):
        cache.open(server.url, SHARDS[0])
    assert server.requests == {SHARDS[0].name: 4}
    with pytest.raises(DataError, match=r"train-000009\.tar: missing; pack again"):
        cache.open(server.url, info(9))
    assert server.requests["train-000009.tar"] == 1
    assert not kept(tmp_path)
    storage.configure(StorageConfig(retries=1))
    try:
        with pytest.raises(StorageError, match=r"(?s)train-000000\.tar: gave up trying to read it after 2 attempts"):
            cache.open("http://127.0.0.1:9/data", SHARDS[0])
    finally:
        storage.configure(StorageConfig())


@contextmanager
def files_no_larger_than(size: int):
    """Makes writes beyond this size fail, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_logged_once_and_survived(url, tmp_path, caplog):
    cache = ShardCache(tmp_path / "cache", 10**9)
    with files_no_larger_than(SIZE // 2):
        assert read(cache, url, SHARDS[0]) == content_of(0)
        assert read(cache, url, SHARDS[1]) == content_of(1)
    (warning,) = [record.getMessage() for record in caplog.records]
    for part in (SHARDS[0].name, "File too large", str(tmp_path / "cache"), "limit 1 GB", "data.cache_gb", "data.cache to"):
        assert part in warning
    assert not kept(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "partial").iterdir())
    read(cache, url, SHARDS[0])
    assert kept(tmp_path / "cache") == {SHARDS[0].sha256}  # once there is space


def test_an_unusable_folder_is_survived(url, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert read(ShardCache(tmp_path / "file"), url, SHARDS[0]) == content_of(0)
    assert "Continuing without it" in caplog.text


def test_a_shard_beyond_the_limit_evicts_nothing(url, tmp_path, caplog):
    read(ShardCache(tmp_path), url, SHARDS[0])
    assert read(ShardCache(tmp_path, SIZE - 1), url, SHARDS[1]) == content_of(1)
    assert "larger than the limit" in caplog.text
    assert kept(tmp_path) == {SHARDS[0].sha256}


def test_local_shards_are_verified_in_place(tmp_path):
    cache = ShardCache(tmp_path / "cache")
    data = tmp_path / "data"
    data.mkdir()
    path = data / SHARDS[0].name
    path.write_bytes(content_of(0))
    with cache.open(str(data), SHARDS[0]) as handle:
        assert handle.read() == content_of(0)
        assert handle.name == str(path)
    flip(path)
    with pytest.raises(DataError, match=r"train-000000\.tar: content differs .* delete it and pack again"):
        cache.open(str(data), SHARDS[0])
    with pytest.raises(DataError, match=r"train-000001\.tar: missing"):
        cache.open(data.as_uri(), SHARDS[1])
    assert not (tmp_path / "cache").exists()


def test_an_invalid_hash_does_not_become_a_path(url, tmp_path):
    bad = ShardInfo("train-000000.tar", "train", 1, SIZE, "../../up", "")
    with pytest.raises(DataError, match="instead of a sha256"):
        ShardCache(tmp_path / "cache").open(url, bad)


def test_foreign_files_are_not_deleted(url, tmp_path):
    foreign = [tmp_path / "shards" / "train-000000.tar", tmp_path / "partial" / "notes.txt"]
    for path in foreign:
        path.parent.mkdir()
        path.write_bytes(content_of(7))
    cache = ShardCache(tmp_path, SIZE)
    read(cache, url, SHARDS[0])
    read(cache, url, SHARDS[1])
    cache.clear()
    assert all(path.read_bytes() == content_of(7) for path in foreign)
    assert cache.usage() == (0, 0)


def test_the_commands(url, tmp_path, monkeypatch):
    monkeypatch.setenv("AVVP_CACHE", str(tmp_path / "own"))
    read(ShardCache(), url, SHARDS[0])
    read(ShardCache(), url, SHARDS[1])
    result = CliRunner().invoke(cache_commands, ["info"])
    assert result.output.splitlines()[:3] == [f"folder: {tmp_path / 'own'}", "shards: 2", "bytes: 160,000"]
    assert "limit: 50 GB" in result.output
    with ShardCache().open(url, SHARDS[0]):
        told = CliRunner().invoke(cache_commands, ["clear"])
    assert told.output.splitlines()[1:] == [
        "shards deleted: 1",
        "bytes deleted: 80,000",
        "shards kept because they are being read: 1",
    ]
    assert "shards: 0" in CliRunner().invoke(cache_commands, ["info", "--cache", str(tmp_path / "none")]).output
    assert not (tmp_path / "none").exists()
