"""Packing with Ray tasks: the same bytes as a local pack, even if tasks or the driver die."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from llp_files import TINY, DeadlyFeatures, DyingOnceFeatures, contents, video_id, write_annotations, write_features
from typer.testing import CliRunner

from avvp_dist import storage
from avvp_dist.cli.main import app as commands
from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.llp import OfficialFeatures, read_annotations
from avvp_dist.errors import AvvpError, ConfigError, DataError
from avvp_dist.launch.start import pack_pool
from avvp_dist.shards.index import Index
from avvp_dist.shards.pack import pack
from avvp_dist.storage.config import StorageConfig
from avvp_dist.text.plural import plural

ray = pytest.importorskip("ray")
TESTS = Path(__file__).parents[1]
PATH = os.pathsep.join([str(TESTS), str(TESTS.parent)])
IDS = [video_id(number) for number in range(12)]


@pytest.fixture
def official(tmp_path) -> Path:
    """Seven training, two validation and three test videos."""
    write_annotations(tmp_path / "llp")
    write_features(tmp_path / "llp", IDS)
    return tmp_path / "llp"


def pack_tiny(official, out, on="ray", source=OfficialFeatures, workers=None):
    records = read_annotations(official).records
    features = source(official, TINY)
    how = {"workers": workers, "shard_videos": 3, "open_pool": pack_pool(on)}
    return pack(TINY, records, features, str(out), provenance={"from": "test"}, **how)


@pytest.mark.parametrize("workers", [None, 1])
def test_any_number_of_tasks_writes_the_same_bytes(joined, official, tmp_path, caplog, workers):
    with caplog.at_level("INFO"):
        index = pack_tiny(official, tmp_path / "ray", workers=workers)
    assert "packing: 5 of 5 shards, 12 of 12 videos" in caplog.text
    assert pack_tiny(official, tmp_path / "local", on="local", workers=1) == index
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert "5 shards written, 0 were already complete" in caplog.text


def test_a_task_that_dies_is_retried(joined, official, tmp_path):
    pack_tiny(official, tmp_path / "ray", source=DyingOnceFeatures)
    assert (official / "died").exists()
    pack_tiny(official, tmp_path / "local", on="local", workers=1)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")  # hidden files too: nothing half-written is left


def test_a_task_that_always_dies_is_one_clear_error(joined, official, tmp_path):
    with pytest.raises(AvvpError, match=r"Ray lost a task 4 times, .* it resumes") as caught:
        pack_tiny(official, tmp_path / "out", source=DeadlyFeatures)
    assert caught.value.exit_code == 1


def test_bad_features_of_all_tasks_are_reported_together(joined, official, tmp_path):
    (official / "feats" / "vggish" / f"{IDS[1]}.npy").unlink()
    np.save(official / "feats" / "res152" / f"{IDS[10]}.npy", np.zeros((79, 5), np.float32))
    with pytest.raises(DataError, match="2 of 12 videos have bad features; nothing was packed") as caught:
        pack_tiny(official, tmp_path / "out")
    assert caught.value.problems == [
        f"train {IDS[1]}: vggish/{IDS[1]}.npy: missing",
        f"test {IDS[10]}: res152/{IDS[10]}.npy: shape [79, 5], expected [80, 5]",
    ]
    assert not (tmp_path / "out").exists()


DRIVER = """
import sys
from pathlib import Path
from llp_files import SlowFeatures
from integration.test_pack_on_ray import pack_tiny
pack_tiny(Path(sys.argv[1]), sys.argv[2], source=SlowFeatures)
"""


def test_tasks_end_with_a_killed_driver_and_packing_resumes(joined, official, tmp_path, caplog):
    out = tmp_path / "out"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, official, out], env=os.environ | {"RAY_ADDRESS": joined.address, "PYTHONPATH": PATH}
    )
    wait_for(lambda: (out / "_parts" / "train-000000.tar.json").exists() or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert not (out / "index.json").exists()
    wait_for(lambda: not tasks_under_way())
    there = len(list((out / "_parts").glob("*.tar.json")))
    first = (out / "train-000000.tar").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        pack_tiny(official, out)
    pack_tiny(official, tmp_path / "whole", on="local", workers=1)
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "train-000000.tar").stat().st_mtime_ns == first
    assert f"{there} of 5 shards exist" in caplog.text
    assert f"{5 - there} shards written, {there} {plural(there, 'was', 'were')} already complete" in caplog.text


def tasks_under_way() -> list[psutil.Process]:
    """Ray's workers that are at a task; Ray names them so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended, and may not have been reaped
            found += [process] if "ray::call_in_task" in " ".join(process.cmdline()) else []
    return found


def test_from_and_to_a_bucket_that_only_the_setting_names(joined, s3, s3_server, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    write_annotations(tmp_path / "llp", (2, 1, 1))
    write_features(tmp_path / "llp", IDS[:4], LLP)
    raw, url, setting = f"{s3}/raw", f"{s3}/llp", f"endpoint={s3_server}"
    storage.configure(StorageConfig(endpoint=s3_server))
    for name, content in contents(tmp_path / "llp").items():
        storage.write_bytes(f"{raw}/{name}", content)
    done = command("--annotations", raw, "--features", raw, "--out", url, "launch=ray", "--storage", setting)
    assert "4 videos in 4 shards" in done.output
    again = command("--annotations", raw, "--features", raw, "--out", url, "launch=ray", "--storage", setting)
    assert again.output == done.output
    there = {name: storage.read_bytes(f"{url}/{name}") for name in storage.names(url)}
    monkeypatch.chdir(tmp_path)
    command("--annotations", "llp", "--features", "llp", "--out", "here", "launch=ray")  # a relative path, from its folder
    here = dict(contents(tmp_path / "here"))
    ours, theirs = (Index.from_json(found.pop("index.json")) for found in (here, there))
    assert here == there
    assert ours.fingerprint == theirs.fingerprint


def command(*words):
    done = CliRunner().invoke(commands, ["data", "pack", "llp", "--shard-videos", "1", *words])
    assert not done.exception, done.output
    return done


def test_other_settings_are_refused(official):
    words = ["data", "pack", "llp", "--annotations", official, "--features", official, "--out", "out"]
    done = CliRunner().invoke(commands, list(map(str, [*words, "launch=slurm", "lunch=ray"])))
    assert isinstance(done.exception, ConfigError)
    assert len(done.exception.problems) == 2
    assert "launch.name: Input should be 'local' or 'ray', got 'slurm'" in done.exception.problems


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
