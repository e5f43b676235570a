"""Readable files with invalid content: index, labels, ratios, segment-level labels, annotations, runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.robustness_cases.fixtures import Damage, Fixtures, array, arrays, edited, holding, remove, replace
from benchmarks.robustness_cases.inputs import BadInput

_RUN = "output={here}/out {small}"
_NAN = float("nan")


def _set(*path: str | int, value: Any) -> Damage:
    """Return a function that sets one value of a JSON file."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edited(change)


def _without(*path: str | int) -> Damage:
    """Return a function that deletes one value of a JSON file."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return edited(change)


def _twice(*path: str | int) -> Damage:
    """Return a function that replaces the second element of a JSON array with the first."""

    def change(content: Any) -> None:
        for key in path:
            content = content[key]
        content[1] = content[0]

    return edited(change)


INDEX: Mapping[str, Damage] = {
    "duplicate class": _twice("classes"),
    "missing class": _without("classes", 0),
    "no classes": _set("classes", value=[]),
    "overlapping streams": _set("streams", 1, "offset", value=0),
    "duplicate stream": _twice("streams"),
    "a gap between streams": _set("streams", 2, "offset", value=10**6),
    "a stream of width 0": _set("streams", 0, "dim", value=0),
    "a stream of 2^40": _set("streams", 0, "dim", value=2**40),
    "no streams": _set("streams", value=[]),
    "duplicate shard": _twice("shards"),
    "shard in another folder": _set("shards", 0, "name", value="../../etc/train-000000.tar"),
    "invalid hash": _set("shards", 0, "sha256", value="0"),
    "wrong hash": _set("shards", 0, "sha256", value="0" * 64),
    "too many samples": _set("shards", 0, "samples", value=9),
    "too few bytes": _set("shards", 0, "bytes", value=512),
    "segments 0": _set("segments", value=0),
    "segments 2^31": _set("segments", value=2**31),
    "segments negative": _set("segments", value=-10),
    "segments a word": _set("segments", value="ten"),
    "unknown split": _set("shards", 0, "split", value="trian"),
    "newer version": _set("schema_version", value=99),
    "no version": _without("schema_version"),
    "markup": _set("dataset", value="[/red]\x1b[31m"),
    "null": edited(lambda content: [None]),
    "deep": holding("[" * 100_000),
    "NaN": _set("segments", value=_NAN),
}


def _rows(change: Callable[[list[dict[str, Any]]], None]) -> Damage:
    """Return a function that changes rows of labels.parquet."""

    def edit(path: Path) -> None:
        table = pq.ParquetFile(path).read()
        rows = table.to_pylist()
        change(rows)
        remove(path)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)

    return edit


LABELS: Mapping[str, Damage] = {
    "duplicate video": _rows(lambda rows: rows[1].update(id=rows[0]["id"])),
    "missing row": _rows(lambda rows: rows.pop()),
    "no rows": _rows(lambda rows: rows.clear()),
    "class out of range": _rows(lambda rows: rows[0].update(weak=[99])),
    "wrong weak label": _rows(lambda rows: rows[0].update(weak=[(rows[0]["weak"][0] + 1) % 25])),
    "event out of range": _rows(lambda rows: rows[0].update(audio_events=[{"label": 0, "onset": 5, "offset": 99}])),
    "event with negative length": _rows(lambda rows: rows[0].update(audio_events=[{"label": 0, "onset": 7, "offset": 3}])),
    "wrong offset": _rows(lambda rows: rows[0].update(offset=rows[1]["offset"])),
    "negative offset": _rows(lambda rows: rows[0].update(offset=-1)),
    "shard out of range": _rows(lambda rows: rows[0].update(shard=77)),
    "wrong order": _rows(lambda rows: rows.reverse()),
    "wrong columns": lambda path: (remove(path), pq.write_table(pa.table({"id": ["a"]}), path))[0],
}

RATIOS: Mapping[str, Damage] = {
    "NaN": edited(lambda content: _first(content).update({_key(content): _NAN})),
    "infinite": edited(lambda content: _first(content).update({_key(content): float("inf")})),
    "negative": edited(lambda content: _first(content).update({_key(content): -0.5})),
    "above 1": edited(lambda content: _first(content).update({_key(content): 1.5})),
    "a word": edited(lambda content: _first(content).update({_key(content): "much"})),
    "true": edited(lambda content: _first(content).update({_key(content): True})),
    "missing class": _without("audio", "Dog"),
    "unknown class": edited(lambda content: _first(content).update({"[/x] Yodelling": 0.5})),
    "missing modality": _without("visual"),
    "a list": edited(lambda content: [1, 2]),
    "empty": edited(lambda content: {}),
}


def _first(content: dict[str, Any]) -> dict[str, Any]:
    return content["audio"]


def _key(content: dict[str, Any]) -> str:
    return next(iter(content["audio"]))


def _put(name: str, value: Any) -> Damage:
    """Return a function that sets one value of an array in a .npz file, or transforms the array."""

    def change(content: dict[str, np.ndarray]) -> None:
        values = content[name].copy()
        if callable(value):
            content[name] = value(values)
        else:
            values.flat[0] = value
            content[name] = values

    return arrays(change)


REFINED: Mapping[str, Damage] = {
    "1e30": _put("audio", 1e30),
    "negative": _put("audio", -1.0),
    "NaN": _put("visual", np.nan),
    "infinite": _put("visual", np.inf),
    "complex": _put("audio", lambda values: values.astype(np.complex64) + 1j),
    "words": _put("audio", lambda values: values.astype(str)),
    "wrong shape": _put("audio", lambda values: values[:, :5]),
    "missing video": _put("audio", lambda values: values[1:]),
    "duplicate video": _put("ids", lambda values: np.concatenate([values[:1], values[:-1]])),
    "no ids": arrays(lambda content: content.__delitem__("ids")),
    "about is not JSON": _put("about", lambda values: np.array("{")),
    "about is empty": _put("about", lambda values: np.array("{}")),
    "windows out of range": _put(
        "about", lambda values: np.array(json.dumps({**json.loads(str(values)), "windows": [[0, 99]]}))
    ),
    "windows with negative length": _put(
        "about", lambda values: np.array(json.dumps({**json.loads(str(values)), "windows": [[5, 2]]}))
    ),
    "other classes": _put("about", lambda values: np.array(json.dumps({**json.loads(str(values)), "classes": ["x"]}))),
}

RESULT: Mapping[str, Damage] = {
    "no scores": _without("scores"),
    "scores a list": _set("scores", value=[1]),
    "no data": _without("data"),
    "seed a word": _set("seed", value="one"),
    "a list": edited(lambda content: [content]),
    "null": holding("null"),
    "deep": holding("[" * 100_000),
}


def _csv(change: Callable[[str], str | bytes]) -> Damage:
    return lambda path: replace(path, change(path.read_text()))


def _line(text: str, number: int, change: Callable[[str], str]) -> str:
    lines = text.splitlines()
    lines[number] = change(lines[number])
    return "\n".join(lines) + "\n"


# (file, change, what the output must name)
ANNOTATIONS: Mapping[str, tuple[str, Damage, str]] = {
    "no header": ("AVVP_train.csv", _csv(lambda text: text.split("\n", 1)[1]), "AVVP_train.csv"),
    "commas": ("AVVP_train.csv", _csv(lambda text: text.replace("\t", ";")), "AVVP_train.csv"),
    "unknown class": ("AVVP_train.csv", _csv(lambda text: _line(text, 1, lambda line: line + ",Yodelling")), "Yodelling"),
    "a class in markup": ("AVVP_train.csv", _csv(lambda text: _line(text, 1, lambda line: line + ",[/red]")), r"\[/red\]"),
    "an id with escapes": (
        "AVVP_train.csv",
        _csv(lambda text: _line(text, 1, lambda line: "\x1b[31m" + line)),
        "AVVP_train.csv:2",
    ),
    "an id too short": (
        "AVVP_train.csv",
        _csv(lambda text: _line(text, 2, lambda line: "abc_0_10\tSpeech")),
        "AVVP_train.csv:3",
    ),
    "no label": (
        "AVVP_train.csv",
        _csv(lambda text: _line(text, 2, lambda line: line.split("\t")[0] + "\t")),
        "AVVP_train.csv:3",
    ),
    "additional column": (
        "AVVP_train.csv",
        _csv(lambda text: _line(text, 2, lambda line: line + "\tx")),
        "AVVP_train.csv:3",
    ),
    "duplicate video": (
        "AVVP_train.csv",
        _csv(lambda text: text + text.splitlines()[1] + "\n"),
        "twice|again|also|already|duplicate",
    ),
    "not UTF-8": ("AVVP_train.csv", _csv(lambda text: text.encode() + b"\xff\xfe\n"), "AVVP_train.csv"),
    "NUL": ("AVVP_train.csv", _csv(lambda text: _line(text, 1, lambda line: line + "\0")), "AVVP_train.csv"),
    "one line of 5 MB": ("AVVP_train.csv", holding("x" * 5_000_000), "AVVP_train.csv"),
    "all videos unknown": (
        "AVVP_train.csv",
        holding("filename\tevent_labels\n" + "".join(f"bad id {n}_0_10\tLabel {n}\n" for n in range(5000))),
        "AVVP_train.csv",
    ),
    "onset after the end": (
        "AVVP_eval_audio.csv",
        _csv(lambda text: text + text.split("\n")[1].split("\t")[0] + "\t11\t12\tSpeech\n"),
        "AVVP_eval_audio.csv",
    ),
    "onset a word": (
        "AVVP_eval_audio.csv",
        _csv(lambda text: text + text.split("\n")[1].split("\t")[0] + "\tone\t2\tSpeech\n"),
        "one",
    ),
    "onset NaN": (
        "AVVP_eval_audio.csv",
        _csv(lambda text: text + text.split("\n")[1].split("\t")[0] + "\tnan\t2\tSpeech\n"),
        "nan",
    ),
    "onset 2^70": (
        "AVVP_eval_visual.csv",
        _csv(lambda text: text + text.split("\n")[1].split("\t")[0] + f"\t{2**70}\t2\tSpeech\n"),
        "AVVP_eval_visual.csv",
    ),
    "thousands of problems": (
        "AVVP_eval_visual.csv",
        holding("filename\tonset\toffset\tevent_labels\n" + "".join(f"no{n}\t{n}\tx{n}\tClass {n}\n" for n in range(5000))),
        "AVVP_eval_visual.csv",
    ),
}

FEATURES: Mapping[str, Damage] = {
    "wrong shape": array(lambda: np.zeros((10, 2048), np.float32)),
    "scalar": array(lambda: np.float32(3.0)),
    "integers": array(lambda: np.zeros((80, 2048), np.int32)),
    "complex": array(lambda: np.zeros((80, 2048), np.complex64)),
    "words": array(lambda: np.full((80, 2048), "a")),
    "NaN": array(lambda: np.full((80, 2048), np.nan, np.float32)),
    "infinite": array(lambda: np.full((80, 2048), np.inf, np.float32)),
    "beyond float16": array(lambda: np.full((80, 2048), 1e6, np.float32)),
    "pickled": array(lambda: np.array([{"a": 1}], dtype=object)),
    "a header of 2^40": holding(
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 2048), }".ljust(117)
        + b"\n"
    ),
}


def _in(what: str, file: str, damage: Damage) -> Callable[[Path, Fixtures], None]:
    def prepare(here: Path, fixtures: Fixtures) -> None:
        copy = fixtures.copy(what, here)
        damage(copy / file if file else copy)

    return prepare


def _annotated(file: str, damage: Damage) -> Callable[[Path, Fixtures], None]:
    def prepare(here: Path, fixtures: Fixtures) -> None:
        for source in fixtures.paths["raw"].glob("*.csv"):
            replace(here / "annotations" / source.name, source.read_bytes())
        damage(here / "annotations" / file)

    return prepare


def _carriage_returns(here: Path, fixtures: Fixtures) -> None:
    """Write files with carriage returns as line ends, which look like a single header line."""
    for source in fixtures.paths["raw"].glob("*.csv"):
        replace(here / "annotations" / source.name, source.read_text().replace("\n", "\r"))


def _featured(damage: Damage) -> Callable[[Path, Fixtures], None]:
    def prepare(here: Path, fixtures: Fixtures) -> None:
        source = fixtures.paths["feats"]
        for path in sorted(source.rglob("*.npy")):
            target = here / "features" / "feats" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
        damage(next(iter(sorted((here / "features" / "feats" / "res152").glob("*.npy")))))

    return prepare


def cases() -> Iterator[BadInput]:
    """Yield all cases of this module."""
    for name, damage in INDEX.items():
        for words in (
            "data inspect {here}/tiny",
            "data verify {here}/tiny --workers 1",
            f"train han data={{here}}/tiny {_RUN}",
        ):
            # a wrong hash is reported for the shard: which of the two is wrong is unknown
            named = r"index\.json|train-000000\.tar|labels\.parquet"
            leaves = r"out(/config\.yaml)?$" if words.startswith("train") else ""
            if words.startswith("data inspect") and name in ("wrong hash", "markup"):
                continue  # this command reads no shard and accepts any name
            yield BadInput(
                "contents, index", words, named, (_in("tiny", "index.json", damage),), note=name, may_leave=leaves
            )
    for name, damage in LABELS.items():
        for words in ("data verify {here}/tiny --workers 1", f"train han data={{here}}/tiny {_RUN}"):
            yield BadInput(
                "contents, labels", words, r"labels\.parquet", (_in("tiny", "labels.parquet", damage),), note=name
            )
    for name, damage in RATIOS.items():
        words = f"train jomold data={{data}} method.ratios={{here}}/ratios.json {_RUN}"
        yield BadInput("contents, ratios", words, r"ratios\.json", (_in("ratios.json", "", damage),), note=name)
    for name, damage in REFINED.items():
        words = f"train valor data={{data}} data.refined={{here}}/labels.npz {_RUN}"
        yield BadInput("contents, refined labels", words, r"labels\.npz", (_in("labels", "", damage),), note=name)
    for name, damage in RESULT.items():
        for words in ("evaluate {here}/run", "compare {here}/run {other}"):
            yield BadInput("contents, runs", words, r"result\.json", (_in("run", "result.json", damage),), note=name)
    pack = "data pack llp --annotations {here}/annotations --features {raw} --out {here}/out --workers 1"
    for name, (file, damage, expects) in ANNOTATIONS.items():
        for words in ("data check llp --annotations {here}/annotations --limit 5", pack):
            yield BadInput(
                "contents, annotations", words, expects, (_annotated(file, damage),), note=name, may_leave=r".*problems"
            )
    for words in ("data check llp --annotations {here}/annotations", pack):  # can be accepted, since it is a valid line end
        yield BadInput("contents, annotations", words, "AVVP_train|videos", (_carriage_returns,), codes=(0, 2), note="CR")
    for name, damage in FEATURES.items():
        for words in (
            "data check llp --annotations {raw} --features {here}/features --workers 1",
            "data pack llp --annotations {raw} --features {here}/features --out {here}/out --workers 1",
        ):
            prepare, table = (_featured(damage),), words.startswith("data check")
            yield BadInput("contents, features", words, "res152/", prepare, note=name, table=table)
