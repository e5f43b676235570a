"""The node's cache of shards: fetched once, whole or not at all, evicted by use, whatever is killed or damaged."""

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
    """A remote data set, as far as this process and its forks can see."""
    where = "memory://bucket/cached"
    storage.remove(where)
    for number, shard in enumerate(SHARDS):
        storage.write_bytes(storage.join(where, shard.name), content_of(number))
    return where


class Server(ThreadingHTTPServer):
    """Serves shards in chunks on loopback, counts requests, and waits for the test where it says so."""

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
    """Names of the entries, each seen to hold what its name says."""
    paths = list((folder / "shards").glob("*"))
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in paths)
    return {path.name for path in paths}


def test_processes_at_once_fetch_a_shard_once_and_later_ones_not_at_all(server, tmp_path):
    server.allowed = 0
    first = [reader(tmp_path / "cache", server.url, SHARDS[0]) for _ in range(3)]
    assert [process.stdout.readline() for process in first] == ["ready\n"] * 3
    wait_for(lambda: server.requests)
    server.allowed = 1000
    said = [process.communicate(timeout=240)[0].strip() for process in first]
    assert said == [SHARDS[0].sha256] * 3
    server_url = server.url.replace("/data", "/same-shards-elsewhere")
    assert reader(tmp_path / "cache", server_url, SHARDS[0]).communicate(timeout=240)[0].split()[1] == SHARDS[0].sha256
    assert server.requests == {SHARDS[0].name: 1}


def test_a_process_killed_at_any_chunk_makes_room_for_the_one_that_waits(server, tmp_path):
    folder = tmp_path / "cache"
    for number, chunks in enumerate((0, 3, 7)):
        shard, asked = SHARDS[number], sum(server.requests.values())
        server.allowed = server.sent + chunks
        victim = reader(folder, server.url, shard)
        wait_for(lambda asked=asked: sum(server.requests.values()) > asked)
        wait_for(lambda: server.sent == server.allowed)
        waiting = reader(folder, server.url, shard)
        assert waiting.stdout.readline() == "ready\n"
        victim.kill()
        victim.communicate()
        server.allowed = 1000
        assert waiting.communicate(timeout=240)[0].strip() == shard.sha256
    assert kept(folder) == {shard.sha256 for shard in SHARDS[:3]}
    assert max(server.requests.values()) == 2


def die_at(moment: int, events: set[str], tell: int) -> None:
    """This process will be killed right before the ``moment``-th of the system's ``events``; ``tell`` is told which."""
    left = moment

    def hook(event, _arguments):
        nonlocal left
        left -= event in events
        if event in events and not left:
            os.write(tell, event.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_killed_before_each_thing_it_does_to_the_disk(url, tmp_path):
    finished, moment = False, 0
    events = {"open", "os.rename", "os.remove", "os.utime", "os.mkdir", "fcntl.flock"}
    seen: Counter[str] = Counter()
    while not finished:
        moment += 1
        folder = tmp_path / str(moment)
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            cache = ShardCache(folder, 3 * SIZE)
            die_at(moment, events, tell)
            for shard in SHARDS[:4]:  # the fourth evicts the first
                read(cache, url, shard)
            os._exit(0)
        os.close(tell)
        finished = os.waitpid(child, 0)[1] == 0
        seen[os.read(told, 100).decode()] += 1
        os.close(told)
        kept(folder)
        cache = ShardCache(folder, 3 * SIZE)
        for number in (4, 3):
            assert read(cache, url, SHARDS[number]) == content_of(number)
        assert not list((folder / "partial").iterdir())
        assert {SHARDS[3].sha256, SHARDS[4].sha256} <= kept(folder)
        assert cache.usage().bytes <= 3 * SIZE
    assert all(seen[event] for event in events)
    assert moment > 20


def test_what_a_killed_writer_left_is_swept_and_never_served(url, tmp_path):
    left = tmp_path / "partial" / ("ab" * 16)
    left.parent.mkdir()
    for sweep in (lambda: read(ShardCache(tmp_path), url, SHARDS[0]), ShardCache(tmp_path).clear):
        left.write_bytes(content_of(0)[:1000])
        sweep()
        assert not left.exists()


def test_the_least_recently_used_goes_first(url, tmp_path):
    cache = ShardCache(tmp_path, 3 * SIZE)
    for number in (0, 1, 2, 0, 3):  # 0 was used again, so 1 is the oldest
        read(cache, url, SHARDS[number])
    assert kept(tmp_path) == {SHARDS[number].sha256 for number in (0, 2, 3)}
    read(ShardCache(tmp_path, 3 * SIZE), url, SHARDS[2])  # used by another
    read(cache, url, SHARDS[4])
    assert kept(tmp_path) == {SHARDS[number].sha256 for number in (2, 3, 4)}
    assert cache.usage() == (3, 3 * SIZE)
    read(ShardCache(tmp_path, SIZE), url, SHARDS[5])
    assert kept(tmp_path) == {SHARDS[5].sha256}


def test_what_is_being_read_stays(url, tmp_path, caplog):
    cache = ShardCache(tmp_path, 2 * SIZE)
    with cache.open(url, SHARDS[0]) as handle:
        other = cache.open(url, SHARDS[1])
        assert read(cache, url, SHARDS[2]) == content_of(2)  # from memory, as there is no room
        assert "all that is there is being read" in caplog.text
        assert kept(tmp_path) == {SHARDS[0].sha256, SHARDS[1].sha256}
        assert ShardCache(tmp_path).clear() == (2, 2 * SIZE)
        for path in (tmp_path / "shards").iterdir():
            path.unlink()  # and even where somebody deletes them, their readers go on
        assert handle.read() == content_of(0)
    assert other.read() == content_of(1)


def test_many_threads_under_a_small_limit_read_what_is_right(url, tmp_path):
    caches = [ShardCache(tmp_path, 2 * SIZE) for _ in range(2)]

    def work(number: int) -> bool:
        return read(caches[number % 2], url, SHARDS[number % 6]) == content_of(number % 6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(120)))
    kept(tmp_path)
    assert caches[0].usage().bytes <= 2 * SIZE


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rot(path: Path) -> None:
    """A flipped bit that no clock tells of."""
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "damage", [flip, rot, lambda path: os.truncate(path, SIZE // 2), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_entry_is_noticed_and_fetched_again(url, tmp_path, caplog, damage):
    cache = ShardCache(tmp_path)
    read(cache, url, SHARDS[0])
    damage(tmp_path / "shards" / SHARDS[0].sha256)
    again = ShardCache(tmp_path) if damage is rot else cache  # a process looks at bytes that seem unchanged but once
    assert read(again, url, SHARDS[0]) == content_of(0)
    assert "is damaged; fetched again" in caplog.text
    assert kept(tmp_path) == {SHARDS[0].sha256}


def test_wrong_bytes_are_asked_for_again(server, tmp_path):
    server.wrong = 2
    assert read(ShardCache(tmp_path), server.url, SHARDS[0]) == content_of(0)
    assert server.requests == {SHARDS[0].name: 3}


def test_a_remote_that_stays_wrong_or_away_is_an_error_that_says_how_often(server, tmp_path):
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
    """Writing beyond fails, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_told_once_and_survived(url, tmp_path, caplog):
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
    assert kept(tmp_path / "cache") == {SHARDS[0].sha256}  # as soon as there is room


def test_a_folder_that_cannot_be_used_is_survived_too(url, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert read(ShardCache(tmp_path / "file"), url, SHARDS[0]) == content_of(0)
    assert "Going on without it" in caplog.text


def test_a_shard_beyond_the_limit_evicts_nothing(url, tmp_path, caplog):
    read(ShardCache(tmp_path), url, SHARDS[0])
    assert read(ShardCache(tmp_path, SIZE - 1), url, SHARDS[1]) == content_of(1)
    assert "larger than the limit" in caplog.text
    assert kept(tmp_path) == {SHARDS[0].sha256}


def test_local_shards_are_checked_where_they_lie(tmp_path):
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


def test_a_strange_hash_does_not_become_a_path(url, tmp_path):
    bad = ShardInfo("train-000000.tar", "train", 1, SIZE, "../../up", "")
    with pytest.raises(DataError, match="no sha256"):
        ShardCache(tmp_path / "cache").open(url, bad)


def test_other_peoples_files_are_left_alone(url, tmp_path):
    mine = [tmp_path / "shards" / "train-000000.tar", tmp_path / "partial" / "notes.txt"]
    for path in mine:
        path.parent.mkdir()
        path.write_bytes(content_of(7))
    cache = ShardCache(tmp_path, SIZE)
    read(cache, url, SHARDS[0])
    read(cache, url, SHARDS[1])
    cache.clear()
    assert all(path.read_bytes() == content_of(7) for path in mine)
    assert cache.usage() == (0, 0)


def test_the_commands(url, tmp_path, monkeypatch):
    monkeypatch.setenv("AVVP_CACHE", str(tmp_path / "own"))
    read(ShardCache(), url, SHARDS[0])
    read(ShardCache(), url, SHARDS[1])
    told = CliRunner().invoke(cache_commands, ["info"])
    assert told.output.splitlines()[:3] == [f"folder: {tmp_path / 'own'}", "shards: 2", "bytes: 160,000"]
    assert "limit: 50 GB" in told.output
    with ShardCache().open(url, SHARDS[0]):
        told = CliRunner().invoke(cache_commands, ["clear"])
    assert told.output.splitlines()[1:] == [
        "shards deleted: 1",
        "bytes deleted: 80,000",
        "shards kept because they are being read: 1",
    ]
    assert "shards: 0" in CliRunner().invoke(cache_commands, ["info", "--cache", str(tmp_path / "none")]).output
    assert not (tmp_path / "none").exists()
