"""Unusable indexes and labels."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from llp_files import (
    pack_tiny,
    write_official,
)

from avvp_dist.errors import DataError
from avvp_dist.shards.index import Index, LeftOut, read_labels


@pytest.fixture
def official(tmp_path) -> Path:
    """Seven training, two validation and three test videos."""
    return write_official(tmp_path / "llp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no index.json here, not a packed data set"),
        ("{", "not valid JSON"),
        ("[]", "not the index of a packed data set"),
        ('{"schema_version": 3}', "schema version 3, but this avvp_dist reads at most 2; install a newer one"),
        ('{"schema_version": 1, "dataset": "llp"}', "shards: Field required"),
    ],
)
def test_unusable_indexes(tmp_path, text, message):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=message):
        Index.load(str(tmp_path))


def test_an_index_cannot_refer_to_files_outside_its_folder(official, tmp_path):
    content = json.loads(pack_tiny(official, tmp_path / "out").to_json())
    del content["checksum"]
    content["shards"][0]["name"] = "../../train-000000.tar"
    with pytest.raises(DataError, match=r"shards\.0\.name"):
        Index.from_json(json.dumps(content))


def test_labels_that_do_not_match_the_index(official, tmp_path):
    out = tmp_path / "out"
    index = replace(pack_tiny(official, out), labels=None)  # as packed before the hash was recorded
    path = out / "labels.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(DataError, match=r"train-000000\.tar: 2 videos, but 3 in the index"):
        read_labels(str(out), index)
    backwards = pa.array(range(11, -1, -1), pa.int32())
    pq.write_table(table.set_column(4, table.schema.field(4), backwards), path)
    with pytest.raises(DataError, match=r"train-000000\.tar: its videos are not in order"):
        read_labels(str(out), index)
    pq.write_table(table.drop_columns("name"), path)
    with pytest.raises(DataError, match="does not have the columns of schema version 2"):
        read_labels(str(out), index)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_labels(str(out), index)
    path.unlink()
    with pytest.raises(DataError, match=r"labels\.parquet: missing; run the pack command again"):
        read_labels(str(out), index)
    pq.write_table(table, path)
    with pytest.raises(DataError, match="byte ranges that do not match"):
        read_labels(str(out), replace(index, segments=9))
    with pytest.raises(DataError, match=r"weak labels outside 0\.\.3"):
        read_labels(str(out), replace(index, classes=index.classes[:4]))


def test_an_index_keeps_left_out_videos(official, tmp_path):
    index = replace(pack_tiny(official, tmp_path / "out"), left_out=(LeftOut("a", "val", "why"),))
    assert Index.from_json(index.to_json()) == index
