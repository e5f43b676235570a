"""Repeated, interrupted and conflicting packs: only missing or damaged files are written, and no data are mixed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from llp_files import (
    IDS,
    TINY,
    contents,
    modification_times,
    pack_tiny,
    write_annotations,
    write_official,
)

from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.errors import AvvpError, DataError
from avvp_dist.shards.index import Index
from avvp_dist.shards.pack import pack
from avvp_dist.types import VideoRecord

TESTS = Path(__file__).parents[1]
NAMES = ["index.json", "labels.parquet", "test-000000.tar", *(f"train-00000{n}.tar" for n in range(3)), "val-000000.tar"]


@pytest.fixture
def official(tmp_path) -> Path:
    """Seven training, two validation and three test videos."""
    return write_official(tmp_path / "llp")


def as_earlier(record) -> dict:
    """A record as it was before events had tracks and seconds were floats."""
    facts = {name: getattr(record, name) for name in ("id", "name", "split", "weak")}
    for track in ("audio", "visual"):
        events = record.events_of(track)
        found = None if events is None else [(event.label, int(event.onset), int(event.offset)) for event in events]
        facts[f"{track}_events"] = found
    return facts


def test_inputs_are_recognized_across_versions_and_include_the_reduction(official, tmp_path):
    """Packs made before streams named their reduction are complete; one with another reduction has other inputs."""
    index = pack_tiny(official, tmp_path / "out")
    records = read_annotations(official).records
    facts = {
        "name": TINY.name,
        "classes": TINY.classes,
        "streams": [{name: getattr(stream, name) for name in ("name", "dim", "folder", "rows")} for stream in TINY.streams],
        "segments": 10,
    }
    content = [facts, 3, [as_earlier(record) for record in records], OfficialFeatures(official, TINY).fingerprint(records)]
    assert index.source == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    other = replace(TINY, streams=(replace(TINY.streams[0], reduction="clap-map"), *TINY.streams[1:]))
    with pytest.raises(DataError, match="from other inputs"):
        pack(
            other, records, OfficialFeatures(official, TINY), str(tmp_path / "out"), provenance={}, workers=1, shard_videos=3
        )


def test_a_repeated_pack_writes_nothing(official, tmp_path):
    index = pack_tiny(official, tmp_path / "out")
    before = modification_times(tmp_path / "out")
    time.sleep(0.01)
    assert pack_tiny(official, tmp_path / "out") == index
    assert modification_times(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["labels.parquet", "train-000001.tar"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_repeated_pack_repairs_only_damaged_files(official, tmp_path, name, damage):
    out = tmp_path / "out"
    pack_tiny(official, out)
    whole, before = contents(out), modification_times(out)
    content = whole[name]
    (out / name).unlink()
    if damage == "cut":
        (out / name).write_bytes(content[:-1])
    elif damage == "flipped":
        (out / name).write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    pack_tiny(official, out)
    assert contents(out) == whole
    assert {key for key, value in modification_times(out).items() if value != before[key]} == {name}


CRASHES = """
import os, signal, sys, traceback
from pathlib import Path
from avvp_dist import storage
from avvp_dist.storage import files
from avvp_dist.storage.processes import machine
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.shards.pack import pack
from llp_files import TINY
official, out = Path(sys.argv[1]), Path(sys.argv[2])

def run(folder, crash_at):
    calls = 0
    def crashing(function):
        def call(url, *content):
            nonlocal calls
            calls += 1
            if calls == crash_at:
                temporary = Path(url).parent / f".aside-{machine()}-{os.getpid()}-0"  # named as by `storage`
                temporary.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            function(url, *content)
        return call
    if crash_at:
        files.write_bytes = storage.write_bytes = crashing(files.write_bytes)
        files.remove = storage.remove = crashing(files.remove)
    pack(TINY, read_annotations(official).records, OfficialFeatures(official, TINY), str(folder), provenance={}, workers=1,
         shard_videos=3)

def child(folder, crash_at):  # each in a separate process
    process = os.fork()
    if not process:
        try:
            run(folder, crash_at)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

crash_at = 0
while True:
    crash_at += 1
    folder = out / str(crash_at)
    if child(folder, crash_at) == 0:
        break
    print(crash_at, (folder / "index.json").exists(), child(folder, 0))
"""


@pytest.mark.slow
def test_a_pack_killed_before_any_of_its_writes_resumes_with_the_same_result(official, tmp_path):
    """Kill a pack before its first, second, ... write, leaving a partial temporary file, then pack again."""
    done = run_script(CRASHES, official, tmp_path / "outs")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    # plan.json, five shards with their _parts entries, labels, index, and the removal of _parts
    assert [int(number) for number, _, _ in lines] == list(range(1, 15))
    assert [complete for _, complete, _ in lines] == ["False"] * 13 + ["True"]
    assert {code for _, _, code in lines} == {"0"}
    whole = contents(tmp_path / "outs" / "15")
    assert sorted(whole) == NAMES
    assert all(contents(tmp_path / "outs" / number) == whole for number, _, _ in lines)


SLOW = """
import sys
from pathlib import Path
from avvp_dist.datasets.llp import read_annotations
from avvp_dist.shards.pack import pack
from llp_files import TINY, SlowFeatures
if __name__ == "__main__":
    official, out = Path(sys.argv[1]), sys.argv[2]
    pack(TINY, read_annotations(official).records, SlowFeatures(official, TINY), out, provenance={"from": "test"}, workers=2,
         shard_videos=3)
"""


@pytest.mark.slow
def test_a_pack_killed_with_its_workers_resumes(official, tmp_path):
    out = tmp_path / "out"
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    packing = subprocess.Popen([sys.executable, script, official, out], env=environment())
    wait_for(lambda: (out / "_parts" / "train-000000.tar.json").exists() or packing.poll() is not None)
    workers = psutil.Process(packing.pid).children(recursive=True)
    packing.send_signal(signal.SIGKILL)
    assert packing.wait() == -signal.SIGKILL
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive  # a surviving worker would write into the next pack
    with pytest.raises(DataError, match="packing was interrupted; run the same pack command again"):
        Index.load(str(out))
    first = (out / "train-000000.tar").stat().st_mtime_ns
    pack_tiny(official, out)
    pack_tiny(official, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "train-000000.tar").stat().st_mtime_ns == first


@pytest.mark.parametrize("change", ["features", "labels", "shard_videos"])
def test_data_of_other_inputs_are_never_mixed(official, tmp_path, change):
    out = tmp_path / "out"
    pack_tiny(official, out)
    before = contents(out)
    options = {}
    if change == "features":
        np.save(official / "feats" / "vggish" / f"{IDS[0]}.npy", np.ones((10, 3), np.float32))
    elif change == "labels":
        write_annotations(official, (8, 1, 3))
    else:
        options = {"shard_videos": 4}
    with pytest.raises(
        DataError, match=r"contains a data set packed from other inputs .* Pack into another folder, or delete"
    ):
        pack_tiny(official, out, **options)
    (out / "index.json").rename(tmp_path / "index.json")
    with pytest.raises(DataError, match=r"contains labels\.parquet .* of unknown origin"):
        pack_tiny(official, out, **options)
    (tmp_path / "index.json").rename(out / "index.json")
    assert contents(out) == before


def test_an_interrupted_pack_of_other_inputs_is_not_changed(official, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(AvvpError):
        pack_tiny(official, out, source=BrokenFeatures(official, TINY))
    before = contents(out)
    assert "_parts/plan.json" in before
    with pytest.raises(DataError, match="contains an interrupted pack of other inputs"):
        pack_tiny(official, out, shard_videos=2)
    assert contents(out) == before


class BrokenFeatures(OfficialFeatures):
    """Features whose last file becomes unreadable after it was checked."""

    def read(self, record: VideoRecord) -> np.ndarray:
        if record.id == IDS[11]:
            raise DataError("disk is gone")
        return super().read(record)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}


def run_script(text: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
