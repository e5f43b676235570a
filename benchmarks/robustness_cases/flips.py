"""Single-bit flips in every kind of file that is read: detected with the file's name, or proven to have no meaning.

Most flips go through the public readers, thousands of them in one process; some of every kind that a run leaves go through
whole commands.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.robustness_cases.material import SMALL, Material, replace
from benchmarks.robustness_cases.report import Verdict

_TINY = [*SMALL, "train.epochs=1", "train.batch_size=4", "model.width=8", "model.feedforward=8"]
_BATCH = 100
"""Flips of one process; a reader that crashes costs those after it a new one."""


@dataclass(frozen=True)
class Kind:
    """One kind of file, and how it is read.

    Attributes:
        name: for the table.
        copy: what of `Material` is copied; its name there, or a file below it.
        file: the file's path below the copy, empty where it is the copy; with ``make`` a pattern below the case's folder.
        read: reads it by a public door; returns what was said beside an ordinary end. What it raises is judged, too.
        meaning: what the bytes say, read independently of avvp_dist.
        flips: how many.
        named: whether a refusal has to name the file; a reader of bare bytes cannot.
        make: makes the file's surroundings anew before each flip, where reading changes them.
    """

    name: str
    copy: str
    file: str
    read: Callable[[Path, Path], str]
    meaning: Callable[[bytes], Any]
    flips: int
    named: bool = True
    make: Callable[[Path], None] | None = None


def _verify(here: Path, _: Path) -> str:
    return _command("data", "verify", str(here / "tiny"), "--workers", "1")


def _open(here: Path, _: Path) -> str:
    """What a training reads."""
    import torch

    from avvp_dist.loading.split import DataConfig, open_split
    from avvp_dist.shards.index import Index, read_labels

    url = str(here / "tiny")
    index = Index.load(url)
    for labels in read_labels(url, index).values():
        split = open_split(DataConfig(url=url), index, labels, torch.device("cpu"), torch.float32)
        with closing(split), closing(split.iter_all(64, 0, 1)) as batches:
            for _batch in batches:
                pass
    return ""


def _ratios(_: Path, path: Path) -> str:
    from avvp_dist.datasets.catalog import LLP
    from avvp_dist.methods.jomold import read_ratios

    read_ratios(str(path), LLP.classes)
    return ""


def _refined(_: Path, path: Path) -> str:
    from avvp_dist.loading.refined import RefinedLabels

    RefinedLabels.load(str(path))
    return ""


def _per_video(_: Path, path: Path) -> str:
    from avvp_dist.metrics.per_video import PerVideo

    PerVideo.load(str(path))
    return ""


def _checkpoint(_: Path, path: Path) -> str:
    from avvp_dist.train.checkpoint import unpack

    unpack(path.read_bytes())
    return ""


def _evaluate(here: Path, _: Path) -> str:
    return _command("evaluate", str(here / "run"))


def _compare(here: Path, _: Path) -> str:
    return _command("compare", str(here / "run"))


def _train(here: Path, _: Path) -> str:
    """The same command again; another result than that of the first time is told as one."""
    said = _command(*_training(here))
    whole, found = (json.loads((here / name / "result.json").read_text()) for name in ("whole", "out"))
    if any(whole[key] != found[key] for key in ("scores", "best", "denoising", "artifacts")):
        raise RuntimeError("another result than before the flip")
    return said


def _training(here: Path) -> list[str]:
    return ["train", "jomold", f"data={here / 'tiny'}", f"output={here / 'out'}", *_TINY]


def _finished(here: Path) -> None:
    """A run whose stages are finished and whose result is not written."""
    if not (here / "whole").exists():
        _command(*_training(here))
        shutil.copytree(here / "out", here / "whole")
    shutil.rmtree(here / "out", ignore_errors=True)
    shutil.copytree(here / "whole", here / "out", copy_function=os.link)
    (here / "out" / "result.json").unlink()


def _command(*words: str) -> str:
    """A command in this process; returns what it wrote to stderr, and to stdout of differences.

    Raises:
        RuntimeError: another exit code than 0 and 2, or an answer of 2 without a message.
        Refused: exit code 2, with its message.
    """
    from avvp_dist.cli.main import main

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    starts = [os.lseek(fd, 0, os.SEEK_END) for fd in (1, 2)]
    code: Any = 0
    try:
        main(list(words))
    except SystemExit as error:
        code = error.code or 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    out, err = (os.pread(fd, 100_000, start).decode("utf-8", "replace") for fd, start in zip((1, 2), starts, strict=True))
    if code == 2:
        raise Refused(err)
    if code:
        raise RuntimeError(f"exit code {code}: {err[-500:]}")
    return "\n".join([err, *(line for line in out.splitlines() if line.startswith("differs"))])


class Refused(Exception):
    """A command's answer with exit code 2."""


def _json(content: bytes) -> Any:
    return json.loads(content)


def _numbers(content: bytes) -> Any:
    """Noise ratios without what else their file says, such as the name under which its checksum stands."""
    return {modality: json.loads(content)[modality] for modality in ("audio", "visual")}


def _yaml(content: bytes) -> Any:
    return yaml.safe_load(content)


def _bytes(content: bytes) -> Any:
    return content


def _npz(content: bytes) -> Any:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: (file[name].dtype.str, file[name].tolist()) for name in file.files}


def _tensors(content: bytes) -> Any:
    import safetensors.numpy

    return {name: (value.dtype.str, value.tobytes()) for name, value in safetensors.numpy.load(content).items()}


def _pickled(content: bytes) -> Any:
    """A checkpoint's state, wherever in the file it begins."""
    import torch

    buffer = io.BytesIO(content[content.index(b"PK\3\4") :])
    return repr(_plain(torch.load(buffer, map_location="cpu", weights_only=True)))


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return [(_plain(key), _plain(value)) for key, value in state.items()]
    if isinstance(state, list | tuple):
        return [_plain(value) for value in state]
    return (str(state.dtype), state.numpy().tobytes()) if hasattr(state, "numpy") else state


KINDS = (
    Kind("shards, verify", "tiny", "train-000000.tar", _verify, _bytes, 300),
    Kind("shards, training", "tiny", "val-000000.tar", _open, _bytes, 200),
    Kind("labels.parquet, verify", "tiny", "labels.parquet", _verify, _bytes, 400),
    Kind("labels.parquet, training", "tiny", "labels.parquet", _open, _bytes, 400),
    Kind("index.json, verify", "tiny", "index.json", _verify, _json, 400),
    Kind("index.json, training", "tiny", "index.json", _open, _json, 300),
    Kind("ratios.json", "ratios.json", "", _ratios, _numbers, 400),
    Kind("refined.npz", "labels", "", _refined, _npz, 400),
    Kind("per_video.npz", "run", "per_video.npz", _per_video, _npz, 400),
    Kind("checkpoint", "checkpoint", "", _checkpoint, _pickled, 400, named=False),
    Kind("model.safetensors, evaluate", "run", "model.safetensors", _evaluate, _tensors, 100),
    Kind("config.yaml, evaluate", "run", "config.yaml", _evaluate, _yaml, 100),
    Kind("result.json, compare", "run", "result.json", _compare, _json, 100),
    *(
        Kind(f"{stage}/{file}, train", "tiny", f"out/stages/{stage}-*/{file}", _train, meaning, 30, make=_finished)
        for stage, file, meaning in (
            ("estimate", "model.safetensors", _tensors),
            ("estimate", "stage.json", _json),
            ("ratios", "ratios.json", _json),
            ("denoise", "model.safetensors", _tensors),
            ("denoise", "removed.npz", _npz),
            ("denoise", "stage.json", _json),
        )
    ),
)


def run(material: Material, folder: Path, seed: int) -> Iterator[Callable[[], Verdict]]:
    """A function for each batch of flips of one kind."""
    _make_checkpoint(material, folder)
    for number, kind in enumerate(KINDS):
        for start in range(0, kind.flips, _BATCH):
            count = min(_BATCH, kind.flips - start)
            here = folder / f"{number}-{start}"
            yield lambda number=number, count=count, here=here, salt=seed + start: _try(number, count, material, here, salt)


def _make_checkpoint(material: Material, folder: Path) -> None:
    """The newest checkpoint of a run that was killed."""
    import signal

    from benchmarks.robustness_cases.running import Kill

    here = folder / "made"
    here.mkdir(parents=True)
    words = ["train", "han", f"data={material.paths['data']}", f"output={here / 'out'}", *SMALL, "train.epochs=9"]
    material.runner.run(words, here, kill=Kill(signal.SIGKILL, 0.0, f"{here}/out/checkpoints/*.pt", 2))
    made = here / "checkpoint.pt"
    shutil.copy(max((here / "out" / "checkpoints").glob("*.pt")), made)
    material.paths["checkpoint"] = made


def _try(number: int, count: int, material: Material, here: Path, salt: int) -> Verdict:
    """All flips of a batch, in as many processes as it takes."""
    kind = KINDS[number]
    here.mkdir(parents=True)
    copy = material.copy(kind.copy, here)
    told = here / "told.jsonl"
    told.touch()
    lines: list[dict[str, Any]] = []
    while len(lines) < count:
        words = [str(number), str(count), str(len(lines)), str(salt), str(here), str(copy)]
        call = f"{__name__}:batch"
        result = material.runner.run(words, here, seconds=60, pictures=False, call=call)
        found = [json.loads(line) for line in told.read_text().splitlines()]
        if len(found) < count:  # it ended in the middle
            how = "did not end" if result.timed_out else f"ended the process with {result.code}"
            found.append({"outcome": "failed", "why": f"{how}: {result.err[-300:]}"})
            with told.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
        lines = found
    return _sum_up(kind, lines[:count], here)


def _sum_up(kind: Kind, lines: list[dict[str, Any]], here: Path) -> Verdict:
    outcomes = Counter(line["outcome"] for line in lines)
    good = outcomes["caught"] + outcomes["harmless"]
    bad = Counter(line["why"][:200] for line in lines if line["outcome"] not in ("caught", "harmless"))
    why = "; ".join(f"{times} x {text}" for text, times in bad.most_common(5))
    notes = {"caught": outcomes["caught"], "without meaning": outcomes["harmless"]}
    notes |= {"unnoticed": outcomes["unnoticed"], "ended badly": outcomes["failed"]}
    shutil.rmtree(here, ignore_errors=True)
    return Verdict("flips", kind.name, f"{len(lines)} flips, {here.name}", why, len(lines), good, notes)


def batch(number: str, count: str, first: str, salt: str, folder: str, copy: str) -> None:
    """Flips ``first`` to ``count`` of a batch, in a process of its own; a line each in told.jsonl."""
    kind, here = KINDS[int(number)], Path(folder)
    if kind.make:
        kind.make(here)
        path = next(here.glob(kind.file))
    else:
        path = Path(copy) / kind.file if kind.file else Path(copy)
    whole = path.read_bytes()
    meaning = kind.meaning(whole)
    rng = random.Random(f"{number} {salt}")
    bits = [rng.randrange(8 * len(whole)) for _ in range(int(count))]
    with (here / "told.jsonl").open("a") as told:
        for bit in bits[int(first) :]:
            if kind.make:
                kind.make(here)
            line = judge(kind, here, path, whole, meaning, bit)
            told.write(json.dumps(line) + "\n")
            told.flush()


def judge(kind: Kind, here: Path, path: Path, whole: bytes, meaning: Any, bit: int) -> dict[str, str]:
    """What becomes of one flip."""
    from avvp_dist.errors import AvvpError

    content = bytearray(whole)
    content[bit // 8] ^= 1 << bit % 8
    replace(path, bytes(content))
    names = (path.name, path.parent.name)
    try:
        said = kind.read(here, path)
    except (AvvpError, Refused) as error:
        if kind.named and not any(name in str(error) for name in names):
            return {"outcome": "failed", "why": f"refused without the name of the file: {str(error)[:200]}"}
        return {"outcome": "caught", "why": ""}
    except BaseException as error:
        return {"outcome": "failed", "why": f"{type(error).__name__}: {error}"}
    if any(name in said for name in names):
        return {"outcome": "caught", "why": ""}
    try:
        same = kind.meaning(bytes(content)) == meaning
    except Exception:
        same = False
    return {"outcome": "harmless", "why": ""} if same else {"outcome": "unnoticed", "why": "used without a word"}
