"""Data sets that were packed before the index recorded task, tracks and shapes (schema version 1)."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from llp_files import IDS, TINY, pack_tiny, write_official

from avvp_dist.datasets import synthetic
from avvp_dist.datasets.catalog import FEATURE_SETS
from avvp_dist.datasets.synthetic import SyntheticFeatures
from avvp_dist.datasets.synthetic_evidence import VERSIONS
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment
from avvp_dist.shards import pack as packing
from avvp_dist.shards.index import INDEX_FILE, LABELS_FILE, Index, labels_bytes, labels_info, read_labels
from avvp_dist.shards.verify import verify


@pytest.fixture
def earlier(golden, tmp_path) -> str:
    """A copy of a data set of schema version 1, as that version packed it."""
    return shutil.copytree(golden / "schema1", tmp_path / "earlier").as_posix()


@pytest.fixture(scope="module")
def recorded(golden) -> dict:
    """Fingerprints and hashes of what that version wrote."""
    return json.loads((golden / "earlier_packs.json").read_text())


def test_it_opens_with_the_properties_that_its_version_implied(earlier, recorded):
    index = Index.load(earlier)
    assert (index.schema_version, index.task, index.tracks, index.segment_seconds) == (1, "parsing", ("audio", "visual"), 1)
    assert index.shapes == {"audio": (3,), "visual": (5,), "motion": (2,)}
    assert index.fingerprint == recorded["fingerprint"]
    labels = read_labels(earlier, index)
    assert labels["train"].truth is None
    assert labels["test"].ids == tuple(IDS[9:])
    np.testing.assert_array_equal(labels["test"].truth["audio"][2].sum(axis=0)[[0, 12]], [2, 4])
    assert labels["test"].truth["visual"].sum() == 1 + 10 + 9


def test_it_is_verified_and_keeps_its_version(earlier, recorded):
    for record in (False, True):
        report = verify(earlier, processes=1, record=record)
        assert (report.problems, report.fingerprint) == ((), recorded["fingerprint"])
    before = Path(earlier, INDEX_FILE).read_bytes()
    assert Index.load(earlier).to_json().encode() == before
    rows = pq.ParquetFile(Path(earlier, LABELS_FILE)).read().to_pylist()
    rows[9]["audio_events"][1]["offset"] = 7
    index = Index.load(earlier)
    content = labels_bytes([pa.Table.from_pylist(rows, schema=index.labels_schema)])
    Path(earlier, LABELS_FILE).write_bytes(content)
    Path(earlier, INDEX_FILE).write_text(replace(index, labels=labels_info(content)).to_json())
    (problem,) = verify(earlier, processes=1).problems
    assert f'{IDS[9]}.json: "audio_events" is' in problem


def test_it_trains(earlier, recorded, tmp_path):
    settings = {"data.url": earlier, "train.epochs": 1, "train.batch_size": 4, "output": tmp_path / "run"}
    config = load("han", [f"{name}={value}" for name, value in settings.items()])
    assert run_experiment(config, LocalRuntime(config.output, "cpu"))["data"]["fingerprint"] == recorded["fingerprint"]


def test_packing_the_same_inputs_again_leaves_it_unchanged(tmp_path):
    records, source = synthetic.records(None, (3, 1, 1), 0), SyntheticFeatures(0)
    out = tmp_path / "packed"
    packing.pack(FEATURE_SETS["vggish-resnet"], records, source, str(out), provenance={}, workers=1)
    downgrade(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    index = packing.pack(FEATURE_SETS["vggish-resnet"], records, source, str(out), provenance={}, workers=1)
    assert index.schema_version == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def downgrade(folder: Path) -> None:
    """Rewrite index.json and labels.parquet as schema version 1."""
    index = Index.load(str(folder))
    rows = pq.ParquetFile(folder / LABELS_FILE).read().to_pylist()
    index = replace(index, schema_version=1)
    for row in rows:
        for events in (row["audio_events"], row["visual_events"]):
            for event in events or ():
                event |= {name: int(event[name]) for name in ("onset", "offset")}
    content = labels_bytes([pa.Table.from_pylist(rows, schema=index.labels_schema)])
    (folder / LABELS_FILE).write_bytes(content)
    (folder / INDEX_FILE).write_text(replace(index, labels=labels_info(content)).to_json())


@pytest.mark.parametrize(
    ("name", "streams", "splits"), [("shards", "vggish-resnet", (6, 2, 2)), ("clip", "clip-clap", (3, 1, 1))]
)
def test_synthetic_shards_are_byte_identical(recorded, tmp_path, name, streams, splits):
    options = {"videos": None, "seed": 5, "layout": "shards", "streams": streams, "splits": splits, "evidence": VERSIONS[1]}
    synthetic.write(str(tmp_path), **options, workers=1, shard_videos=4)
    index, expected = Index.load(str(tmp_path)), recorded[name]
    assert {shard.name: shard.sha256 for shard in index.shards} == expected["shards"]
    assert index.source == expected["source"]
    assert index.schema_version == 2
    rows = pq.ParquetFile(tmp_path / LABELS_FILE).read().to_pylist()
    for row in rows:
        for track in index.tracks:
            for event in row[f"{track}_events"]:
                assert isinstance(event["onset"], float)
                event |= {key: int(event[key]) for key in ("onset", "offset")}
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == expected["rows"]


def test_synthetic_official_files_are_byte_identical(recorded, tmp_path):
    synthetic.write(str(tmp_path), videos=None, seed=5, layout="official", splits=(3, 1, 1), workers=1, evidence=VERSIONS[1])
    for name, digest in recorded["official"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest, name


def test_the_fingerprint_covers_task_tracks_shapes_and_seconds(tmp_path):
    index = pack_tiny(write_official(tmp_path / "official"), tmp_path / "out")
    assert (index.schema_version, index.task, index.tracks) == (2, TINY.task, TINY.tracks)
    streams = (replace(index.streams[0], shape=(3, 1)), *index.streams[1:])
    others = [{"task": "localization"}, {"tracks": ("event", "visual")}, {"segment_seconds": 0.64}, {"streams": streams}]
    assert len({index.fingerprint, *(replace(index, **other).fingerprint for other in others)}) == 5
