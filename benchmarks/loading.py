"""Samples per second and memory of several ways to read a training split.

    python -m benchmarks.loading [--videos 1024,4096] [--s3 [--link 100]] [--out benchmarks/results/loading.json]

All readers return shuffled batches of 128 videos as float32 tensors, from the same float16 values of LLP's shape (53.8 kB
per video) on this disk, which are in the page cache after the first epoch (not counted). Every reader runs in a separate
process; its memory is the peak of the proportional set size of the process and its children (shared memory counts once).

    loose files        three .npy files per video through a torch DataLoader, one permutation per epoch
    three members      shards with one member per stream through plain webdataset: shards shuffled, batched in order
    one member         avvp_dist's shards through plain webdataset, likewise
    streaming          avvp_dist's shards through `data.streaming`, shuffled over 16 streams with a window of 256
    raw GET, S3        the bytes of avvp_dist's shards by boto3 only, from an S3 server on loopback (moto, with --s3) behind
                       a link of --link MB/s, since loopback is faster than any network
    fetching, S3       streaming from that server with an empty cache before every epoch: shards are fetched, checked against
                       their hashes, stored on this disk and read
    streaming, S3      streaming from that server; later epochs find all shards in the cache
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil

from benchmarks.slow_link import slow_link

BATCH, STREAMS, WINDOW = 128, 16, 256
READERS = ("loose files", "three members", "one member", "streaming")
READERS_S3 = ("raw GET, S3", "fetching, S3", "streaming, S3")
WORKERS = (0, 2)


class RandomFeatures:
    """Random features, which are fast to generate: a `FeatureSource`."""

    def fingerprint(self, records: Sequence) -> str:
        """See `FeatureSource`."""
        return "random"

    def examine(self, record):
        """See `FeatureSource`."""
        from avvp_dist.shards.feature_source import FeatureReport

        return FeatureReport()

    def read(self, record) -> np.ndarray:
        """See `FeatureSource`."""
        return np.random.default_rng(int(record.id[1:])).random((10, 2688), np.float32).astype(np.float16)


def make(folder: Path, videos: int) -> None:
    """Write the same videos in the three layouts."""
    from avvp_dist.datasets.catalog import LLP
    from avvp_dist.shards import pack as packing
    from avvp_dist.types import VideoRecord

    source = RandomFeatures()
    records = [VideoRecord(f"v{number:08d}", f"v{number:08d}", "train", (number % 25,)) for number in range(videos)]
    packing.pack(LLP, records, source, str(folder / "one"), provenance={}, workers=1)
    bounds = np.cumsum([stream.dim for stream in LLP.streams])[:-1]
    for name in ("loose", "three"):
        (folder / name).mkdir()
    for start in range(0, videos, 256):
        with tarfile.open(folder / "three" / f"train-{start // 256:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for record in records[start : start + 256]:
                for stream, values in zip(LLP.streams, np.split(source.read(record), bounds, axis=1), strict=True):
                    values = np.ascontiguousarray(values)
                    np.save(folder / "loose" / f"{record.id}.{stream.name}.npy", values)
                    buffer = io.BytesIO()
                    np.save(buffer, values)
                    _add(tar, f"{record.id}.{stream.name}.npy", buffer.getvalue())
                _add(tar, f"{record.id}.json", json.dumps({"id": record.id, "weak": list(record.weak)}).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def epochs(reader: str, folder: str, workers: int) -> Callable[[int], Iterator[int]]:
    """Return a function that reads one epoch and yields the size of each batch once its tensors are available."""
    if reader.startswith(("streaming", "fetching")):
        return _streaming(folder, workers)
    if reader.startswith("raw GET"):
        return _raw_get(folder, workers)
    if reader == "loose files":
        return _loose(Path(folder) / "loose", workers)
    return _plain(
        Path(folder),
        ("three", "audio.npy visual.npy motion.npy") if reader == "three members" else ("one", "features.npy"),
        workers,
    )


def _streaming(folder: str, workers: int) -> Callable[[int], Iterator[int]]:
    import torch

    from avvp_dist import storage
    from avvp_dist.loading.split import DataConfig, open_split
    from avvp_dist.shards.index import Index, read_labels

    url = storage.join(folder, "one")
    index = Index.load(url)
    config = DataConfig(url=url, mode="streaming", streams=STREAMS, window=WINDOW, workers=workers)
    split = open_split(config, index, read_labels(url, index)["train"], torch.device("cpu"), torch.float32)

    def epoch(number: int) -> Iterator[int]:
        with closing(split.epoch(split.plan(BATCH, 0, number), 0, 0, 1)) as batches:
            for batch in batches:
                yield len(batch.index)

    return epoch


def _raw_get(folder: str, workers: int) -> Callable[[int], Iterator[int]]:
    from avvp_dist import storage
    from avvp_dist.shards.index import Index

    shards = Index.load(storage.join(folder, "one")).shards
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    keys = [f"{prefix}/one/{shard.name}" for shard in shards]
    pool = multiprocessing.get_context("spawn").Pool(workers)
    pool.map(_get, [(bucket, [])] * workers)  # so that all processes have imported boto3

    def epoch(number: int) -> Iterator[int]:
        parts = [(bucket, keys[worker::workers]) for worker in range(workers)]
        assert sum(pool.map(_get, parts, chunksize=1)) == sum(shard.bytes for shard in shards)
        yield sum(shard.samples for shard in shards)

    return epoch


def _get(job: tuple[str, list[str]]) -> int:
    """Fetch objects of a bucket one after the other; return their size in bytes."""
    import boto3

    bucket, keys = job
    client = boto3.client("s3")
    return sum(len(client.get_object(Bucket=bucket, Key=key)["Body"].read()) for key in keys)


def _loose(folder: Path, workers: int) -> Callable[[int], Iterator[int]]:
    import torch

    class Videos(torch.utils.data.Dataset):
        names = sorted({path.name.split(".")[0] for path in folder.iterdir()})

        def __len__(self) -> int:
            return len(self.names)

        def __getitem__(self, number: int) -> list[torch.Tensor]:
            streams = ("audio", "visual", "motion")
            return [torch.from_numpy(np.load(folder / f"{self.names[number]}.{name}.npy")) for name in streams]

    loader = torch.utils.data.DataLoader(Videos(), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def epoch(number: int) -> Iterator[int]:
        for streams in loader:
            tensors = [values.float() for values in streams]
            yield len(tensors[0])

    return epoch


def _plain(folder: Path, layout: tuple[str, str], workers: int) -> Callable[[int], Iterator[int]]:
    import torch
    import webdataset as wds

    urls = [str(path) for path in sorted((folder / layout[0]).glob("*.tar"))]
    data = wds.WebDataset(urls, shardshuffle=len(urls)).decode().to_tuple(*layout[1].split()).batched(BATCH)
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    def epoch(number: int) -> Iterator[int]:
        for streams in loader:
            tensors = [torch.as_tensor(values).float() for values in streams]
            yield len(tensors[0])

    return epoch


def measure(reader: str, folder: str, workers: int, seconds: float) -> dict[str, float]:
    """Read epochs in this process until ``seconds`` have passed; the first epoch is reported separately."""
    import torch

    torch.set_num_threads(1)
    epoch, videos = epochs(reader, folder, workers), 0
    started = time.perf_counter()
    first = sum(epoch(0))
    first_seconds = time.perf_counter() - started
    spent, number = 0.0, 1
    while spent < seconds:
        if reader.startswith("fetching"):
            _empty_cache()
        started = time.perf_counter()
        read = sum(epoch(number))
        spent += time.perf_counter() - started
        assert read == first, (read, first)
        videos, number = videos + read, number + 1
    return {
        "samples_per_second": videos / spent,
        "first_epoch_samples_per_second": first / first_seconds,
    }


def _empty_cache() -> None:
    from avvp_dist.shards.cache import ShardCache

    left = ShardCache().clear()
    assert not left.entries, left


def measure_in_process(reader: str, folder: str, workers: int, seconds: float) -> dict[str, float]:
    """Measure a reader in a new process, with its peak memory."""
    command = [sys.executable, "-m", "benchmarks.loading", "--reader", reader, "--folder", folder]
    command += ["--workers", str(workers), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                peak = max(peak, _proportional(child.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        output, _ = child.communicate()
        done.set()
        watcher.join()
    if child.returncode:
        raise SystemExit(f"{reader} failed")
    return json.loads(output.splitlines()[-1]) | {"peak_mb": round(peak / 1e6, 1)}


def _proportional(pid: int) -> int:
    """Return the proportional set size of a process and its children, in bytes."""
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with open(f"/proc/{process.pid}/smaps_rollup") as lines:
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, psutil.Error):
        return 0  # a process has just ended
    return total


@contextmanager
def s3_server(megabytes_per_second: float) -> Iterator[None]:
    """Start an in-memory S3 server behind a slow link, and set the environment for this process and its children."""
    import fsspec

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        fsspec.filesystem("s3").mkdir("benchmark")
        with slow_link(port, megabytes_per_second) as linked:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{linked}"
            yield
    finally:
        server.terminate()
        server.wait()


def upload(folder: Path, url: str) -> None:
    from avvp_dist import storage

    for path in folder.iterdir():
        storage.write_bytes(storage.join(url, path.name), path.read_bytes())


def compare(sizes: Sequence[int], seconds: float, with_s3: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Measure every reader on every size: ``{size: {reader: figures}}``."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AVVP_CACHE"] = f"{scratch}/cache"
        for videos in sizes:
            folder = Path(scratch) / str(videos)
            folder.mkdir()
            make(folder, videos)
            rows = found[str(videos)] = {}
            readers = [
                (f"{reader}, {workers} workers", reader, str(folder), workers) for reader in READERS for workers in WORKERS
            ]
            if with_s3:
                url = f"s3://benchmark/{videos}"
                upload(folder / "one", f"{url}/one")
                readers += [(f"{reader}, 2 workers", reader, url, 2) for reader in READERS_S3]
            print(f"{videos} videos, {videos * 53760 / 1e6:.0f} MB of features")
            for name, reader, url, workers in readers:
                rows[name] = measure_in_process(reader, url, workers, seconds)
                against = rows[name]["samples_per_second"] / _three_members(rows) if _three_members(rows) else float("nan")
                print(
                    f"  {name:26} {rows[name]['samples_per_second']:9.0f} samples/s  {against:6.2f} x three members"
                    f"  first epoch {rows[name]['first_epoch_samples_per_second']:7.0f}/s"
                    f"  peak {rows[name]['peak_mb']:6.0f} MB",
                    flush=True,
                )
    return found


def _three_members(rows: dict[str, dict[str, float]]) -> float:
    """Return the best speed of plain webdataset with one member per stream; 0 before it has run."""
    return max((row["samples_per_second"] for name, row in rows.items() if name.startswith("three members")), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", default="1024,4096", help="sizes of the split, in videos")
    parser.add_argument("--seconds", type=float, default=3.0, help="minimum reading time of each reader")
    parser.add_argument("--s3", action="store_true", help="read from an S3 server (moto) as well")
    parser.add_argument("--link", type=float, default=100.0, help="MB/s of the link to that server (100: gigabit Ethernet)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        print(json.dumps(measure(arguments.reader, arguments.folder, arguments.workers, arguments.seconds)))
        return
    sizes = [int(size) for size in arguments.videos.split(",")]
    if arguments.s3:
        with s3_server(arguments.link):
            found = compare(sizes, arguments.seconds, with_s3=True)
    else:
        found = compare(sizes, arguments.seconds, with_s3=False)
    small, large = (found[str(size)] for size in (sizes[0], sizes[-1]))
    report = {
        "what": f"float32 batches of {BATCH} from shards on disk; LLP's shape, random values",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "videos": sizes,
        "results": found,
        "ratio_to_three_members": {name: row["samples_per_second"] / _three_members(large) for name, row in large.items()},
        "memory_growth_mb": {name: large[name]["peak_mb"] - small[name]["peak_mb"] for name in large},
    }
    if arguments.s3:
        fetching, raw = (large[f"{reader}, S3, 2 workers"]["samples_per_second"] for reader in ("fetching", "raw GET"))
        report |= {"link_megabytes_per_second": arguments.link, "fetching_to_raw_get": fetching / raw}
        print(f"  streaming with fetching reaches {fetching / raw:.0%} of the speed of raw GETs")
    for name, growth in report["memory_growth_mb"].items():
        print(f"  {name:26} {growth:+7.0f} MB from {sizes[0]} to {sizes[-1]} videos")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
