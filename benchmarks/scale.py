"""Beyond one machine: cost of planning, memory and network traffic for 10 million videos and up to 1,024 ranks.

    python -m benchmarks.scale [--videos 10000000] [--worlds 8,64,256,1024] [--out FILE.json] [--markdown FILE.md]

No rank trains. An index and a labels.parquet of that many videos (LLP's shape, 256 per shard, val and test 1 % each) are
created and processed by the code that every rank runs before and between epochs. For every number of ranks W, the plans of
two epochs determine which rank opens which shard. A Collective that only counts replaces W ranks where JoMoLD's code
exchanges losses, sums and noise ratios. The batch has 16 videos per rank; a node has 8 ranks and a cache of 50 GB.
Checkpoints and the driver of a pack are measured for up to 100,000 videos and extrapolated linearly. Seconds are CPU
seconds of one core; memory is the growth of this process, and its peak: other load on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from avvp_dist import storage
from avvp_dist.datasets.catalog import LLP
from avvp_dist.dist.partition import split_sizes
from avvp_dist.loading.batches import BatchBuilder
from avvp_dist.loading.plan import EpochPlan, StreamPlan
from avvp_dist.loading.split import DataConfig
from avvp_dist.loading.streaming import _RankLayout, _RankReads
from avvp_dist.shards import index as indexes
from avvp_dist.shards import label_rows
from avvp_dist.shards import pack as packing
from avvp_dist.shards.cache import DEFAULT_GB, GB
from avvp_dist.shards.index import Index, Labels, ShardInfo
from avvp_dist.types import Event, VideoRecord
from benchmarks.loading import RandomFeatures
from benchmarks.scale_exchange import CLASSES, MEASURED_VIDEOS, PER_RANK, Exchange, measured
from benchmarks.scale_prototypes import prototypes

SHARD = 256  # videos
NODE = 8  # ranks
EPOCHS = 2


def one_shard(folder: Path) -> tuple[ShardInfo, NDArray[np.int64]]:
    """Pack one full shard; return its index entry and the offsets of its videos."""
    records = [VideoRecord(_name(number), f"{_name(number)}_0_10", "train", (0, 1)) for number in range(SHARD)]
    index = packing.pack(LLP, records, RandomFeatures(), str(folder), provenance={}, workers=1, shard_videos=SHARD)
    return index.shards[0], indexes.read_labels(str(folder), index)["train"].offset


def _name(number: int) -> str:
    return f"v{number:010d}"


def make(videos: int, packed: ShardInfo, offsets: NDArray[np.int64]) -> tuple[Index, pa.Table]:
    """Return index and labels of ``videos`` videos in shards like ``packed``; random labels, events only in val and test."""
    annotated = max(1, videos // 100)
    infos, tables, first = [], [], 0
    for split, count in (("train", videos - 2 * annotated), ("val", annotated), ("test", annotated)):
        tables.append(_rows(split, count, first, len(infos), offsets))
        first += count
        for number, start in enumerate(range(0, count, SHARD)):
            digest = f"{len(infos):064x}"
            samples = min(SHARD, count - start)
            infos.append(ShardInfo(f"{split}-{number:06d}.tar", split, samples, packed.bytes, digest, digest))
    streams = packing._streams(LLP)
    index = Index(
        dataset=LLP.name,
        task=LLP.task,
        segments=LLP.segments,
        segment_seconds=LLP.segment_seconds,
        tracks=LLP.tracks,
        classes=LLP.classes,
        streams=streams,
        shards=tuple(infos),
        left_out=(),
        provenance={"synthetic": True},
    )
    return index, pa.concat_tables(tables)


def _rows(split: str, count: int, first: int, shard: int, offsets: NDArray[np.int64]) -> pa.Table:
    rng = np.random.default_rng(first)
    number = np.arange(count)
    ids = pa.array(np.char.add("v", np.char.zfill((first + number).astype(str), 10)))
    many = 1 + (rng.random(count) < 0.3)  # labels per video, 1.3 on average as in LLP
    starts = np.concatenate([[0], np.cumsum(many)]).astype(np.int32)
    label = rng.integers(CLASSES, size=starts[-1])
    label[starts[:-1][many == 2] + 1] = (label[starts[:-1][many == 2]] + 1) % CLASSES
    columns = {
        "id": ids,
        "name": pa.compute.binary_join_element_wise(ids, "0", "10", "_"),
        "split": pa.array([split]).take(pa.array(np.zeros(count, np.int32))),
        "shard": pa.array((shard + number // SHARD).astype(np.int32)),
        "position": pa.array((number % SHARD).astype(np.int32)),
        "offset": pa.array(offsets[number % SHARD]),
        "nbytes": pa.array(np.full(count, LLP.segments * LLP.width * 2)),
        "weak": pa.ListArray.from_arrays(pa.array(starts), pa.array(label.astype(np.int16))),
    }
    schema = label_rows.schema(indexes.SCHEMA_VERSION, LLP.tracks)
    for track in LLP.tracks:
        events = [[Event(int(row % CLASSES), 0, 5)._asdict()] for row in number] if split != "train" else [None] * count
        columns[f"{track}_events"] = pa.array(events, schema.field(f"{track}_events").type)
    return pa.table({field.name: columns[field.name].cast(field.type) for field in schema}).cast(schema)


def startup_costs(url: str, index: Index, table: pa.Table) -> tuple[dict[str, Any], Labels]:
    """Return the costs of the data set's files for every process that reads them, and the training labels."""
    content, packed = measured(lambda: indexes.labels_bytes([table]))
    index = replace(index, labels=indexes.labels_info(content))
    text, written = measured(index.to_json)
    storage.write_text(storage.join(url, indexes.INDEX_FILE), text)
    storage.write_bytes(storage.join(url, indexes.LABELS_FILE), content)
    files = {"index_mb": len(text) / 1e6, "labels_mb": len(content) / 1e6}
    del content
    loaded, parsed = measured(lambda: Index.load(url))
    assert loaded == index
    labels, read = measured(lambda: indexes.read_labels(url, index))
    _, hashed = measured(lambda: index.fingerprint)
    _, tabled = measured(lambda: BatchBuilder.for_split(index, labels["train"], torch.device("cpu"), torch.float32))
    videos = len(table)
    _, permuted = measured(lambda: EpochPlan(videos, 128, 0, 0).order())
    costs = {
        "write index.json": written,
        "write labels.parquet": packed,
        "read index.json": parsed,
        "read and check labels.parquet": read,
        "fingerprint": hashed,
        "weak labels on the device": tabled,
        "order of an epoch in memory": permuted,
    }
    sizes = {"shards": len(index.shards), "features_gb": sum(shard.bytes for shard in index.shards) / 1e9, **files}
    return {**sizes, "costs": {name: asdict(cost) for name, cost in costs.items()}}, labels["train"]


def plan(index: Index, labels: Labels, world: int) -> dict[str, Any]:
    """Return the cost of the plan of an epoch for each rank, and what ranks and nodes fetch as a result."""
    batch, streams = PER_RANK * world, max(DataConfig().streams, world)
    epochs = [StreamPlan(labels.shard, batch, streams, DataConfig().window, 0, epoch) for epoch in range(EPOCHS)]
    share, cost = measured(
        lambda: _RankReads(index, labels, epochs[0], 0, _RankLayout(0, world, DataConfig().workers), 0, "disjoint")
    )
    some = min(50, epochs[0].steps)
    tasks = measured(lambda: [share.tasks(step, 0) for step in range(some)])[1]
    sizes = np.array([shard.bytes for shard in index.shards])
    by_rank, opened = fetched(epochs[0], labels, world, sizes)
    nodes = -(-world // NODE)
    by_node = np.bincount(np.unique(opened[0] // NODE * len(sizes) + opened[1]) // len(sizes), minlength=nodes)
    again = _misses([_opened_by_node_0(epoch, labels, world) for epoch in epochs], sizes)
    return {
        "world": world,
        "nodes": nodes,
        "batch": batch,
        "streams": streams,
        "steps": epochs[0].steps,
        "plan": asdict(cost),
        "task_ms": 1e3 * tasks.seconds / some,
        "fetched_by_rank_gb": float(by_rank.max()) / 1e9,
        "fetched_by_node_gb": float(by_node.max()) * float(sizes.mean()) / 1e9,
        "fetched_by_all_gb": float(by_node.sum()) * float(sizes.mean()) / 1e9,
        "second_epoch_from_cache": 1 - again[1] / max(1, again[0]),
    }


def fetched(
    epoch: StreamPlan, labels: Labels, world: int, sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the bytes of the shards that each rank opens, and the unique pairs of rank and shard."""
    pairs = np.unique(_ranks(epoch, world) * len(sizes) + labels.shard[epoch.order()])
    ranks, opened = pairs // len(sizes), pairs % len(sizes)
    return np.bincount(ranks, weights=sizes[opened], minlength=world), (ranks, opened)


def _ranks(epoch: StreamPlan, world: int) -> NDArray[np.int64]:
    """Return the rank of each video in the epoch's order."""
    steps = [split_sizes(epoch.batch_size, world), split_sizes(epoch.total(epoch.steps - 1), world)]
    whole = np.tile(np.repeat(np.arange(world), steps[0]), epoch.steps - 1)
    return np.concatenate([whole, np.repeat(np.arange(world), steps[1])])


def _opened_by_node_0(epoch: StreamPlan, labels: Labels, world: int) -> NDArray[np.int64]:
    """Return the shards that the first node opens, in order of first use."""
    used = labels.shard[epoch.order()[_ranks(epoch, world) < NODE]]
    shard, first = np.unique(used, return_index=True)
    return shard[np.argsort(first)]


def _misses(epochs: Sequence[NDArray[np.int64]], sizes: NDArray[np.int64]) -> list[int]:
    """Return the bytes that each epoch fetches through a least-recently-used cache of the default size."""
    held: OrderedDict[int, int] = OrderedDict()
    free, missed = int(DEFAULT_GB * GB), []
    for opened in epochs:
        missed.append(0)
        for shard in opened.tolist():
            if shard in held:
                held.move_to_end(shard)
                continue
            held[shard] = int(sizes[shard])
            missed[-1] += held[shard]
            free -= held[shard]
            while free < 0:
                free += held.popitem(last=False)[1]
    return missed


def driver_of_a_pack(videos: int) -> dict[str, float]:
    """Return the cost of the process that plans a pack, without reading annotations and checking files."""
    few = min(videos, MEASURED_VIDEOS)
    records, held = measured(
        lambda: [VideoRecord(_name(n), f"{_name(n)}_0_10", "train", (n % CLASSES,)) for n in range(few)]
    )
    source = RandomFeatures()

    def plan() -> list[Any]:
        packing._check_records(LLP, records)
        packing._inputs(LLP, records, source, SHARD)
        return packing._plan(LLP, records, source, "out", SHARD, set(), None)

    _, planned = measured(plan)
    return {
        "driver_seconds": planned.seconds / few * videos,
        "driver_mb": (held.grew_mb + planned.grew_mb) / few * videos,
    }


def measure(videos: int, worlds: Sequence[int]) -> dict[str, Any]:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as folder:
        index, table = make(videos, *one_shard(Path(folder) / "shard"))
        report, labels = startup_costs(str(Path(folder) / "set"), index, table)
    del table
    report["costs"] |= prototypes(videos)
    exchange = Exchange(labels)
    by_world = []
    for world in worlds:
        by_world.append({**plan(index, labels, world), **exchange.step(world)})
        print(f"W={world}: plan {by_world[-1]['plan']['seconds']:.1f} s", flush=True)
    return {
        "what": f"{videos:,} videos of LLP's shape, {SHARD} per shard; {PER_RANK} videos per rank and batch, "
        f"{NODE} ranks per node",
        "machine": f"{platform.processor() or platform.machine()}, one core",
        "torch": torch.__version__,
        "videos": videos,
        **report,
        "between": exchange.between(),
        "packing": driver_of_a_pack(videos),
        "worlds": by_world,
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the results as two Markdown tables."""
    between = report["between"]
    lines = [
        f"{report['what']}; {report['shards']:,} shards, {report['features_gb']:.0f} GB.",
        "",
        "| each process, once | s | growth, MB | peak, MB |",
        "|---|---|---|---|",
    ]
    sizes = {"index.json": report["index_mb"], "labels.parquet": report["labels_mb"]}
    for name, cost in report["costs"].items():
        size = next((f" ({mb:.0f} MB)" for file, mb in sizes.items() if file in name and "write" in name), "")
        lines.append(f"| {name}{size} | {cost['seconds']:.1f} | {cost['grew_mb']:,.0f} | {cost['peak_mb']:,.0f} |")
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "nodes of 8 ranks": lambda row: f"{row['nodes']}",
        "global batch": lambda row: f"{row['batch']:,}",
        "steps per epoch": lambda row: f"{row['steps']:,}",
        "plan of an epoch per rank, s": lambda row: f"{row['plan']['seconds']:.1f}",
        "... memory, MB (peak)": lambda row: f"{row['plan']['grew_mb']:,.0f} ({row['plan']['peak_mb']:,.0f})",
        "tasks of a step, ms": lambda row: f"{row['task_ms']:.2f}",
        "read by a rank per epoch, GB": lambda row: f"{row['fetched_by_rank_gb']:.2f}",
        "fetched by a node per epoch, GB": lambda row: f"{row['fetched_by_node_gb']:.1f}",
        "fetched by all nodes per epoch, GB": lambda row: f"{row['fetched_by_all_gb']:.0f}",
        "second epoch from the cache": lambda row: f"{row['second_epoch_from_cache']:.1%}",
        "index and labels read by all ranks at the start, GB": lambda row: (
            f"{row['world'] * (report['index_mb'] + report['labels_mb']) / 1e3:.1f}"
        ),
        "ranking, MB per rank and step": lambda row: f"{row['ranking_mb']:.2f}",
        "... ms": lambda row: f"{row['ranking_ms']:.1f}",
        "gradients, MB per rank and step": lambda row: f"{row['gradients_mb']:.1f}",
    }
    worlds = report["worlds"]
    lines += ["", f"| ranks | {' | '.join(str(row['world']) for row in worlds)} |", f"|---|{'---|' * len(worlds)}"]
    lines += [f"| {name} | {' | '.join(map(show, worlds))} |" for name, show in rows.items()]
    lines += [
        "",
        f"For every W: {between['meter_mb']:,.0f} MB are summed over ranks at an epoch's end (losses and removed labels "
        f"of all videos), and {between['finite_bytes']} bytes for each check that the loss is finite; every rank gathers "
        f"{between['ratios_gb']:.1f} GB for the noise ratios; a checkpoint has {between['checkpoint_mb']:.0f} MB, and "
        f"{between['checkpoint_all_videos_mb']:,.0f} MB with the state of every video. The process that plans a pack "
        f"needs {report['packing']['driver_seconds']:,.0f} s and {report['packing']['driver_mb'] / 1e3:.1f} GB.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=10_000_000)
    parser.add_argument("--worlds", default="8,64,256,1024", help="numbers of ranks")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report = measure(options.videos, [int(world) for world in options.worlds.split(",")])
    text = markdown(report)
    print(text)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
