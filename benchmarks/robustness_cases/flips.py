"""Single-bit flips in every kind of file that is read: detected with the file's name, or proven to have no effect.

Most flips are read by the public readers, thousands of them in one process; some of every kind of file of a run are read by
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

from benchmarks.robustness_cases.fixtures import SMALL, Fixtures, replace
from benchmarks.robustness_cases.outcomes import Verdict

_TINY = [*SMALL, "train.epochs=1", "train.batch_size=4", "model.width=8", "model.feedforward=8"]
_BATCH = 100
"""Flips per process; after a reader that crashes, a new process runs the rest."""


@dataclass(frozen=True)
class Kind:
    """One kind of file, and how it is read.

    Attributes:
        name: name in the table.
        copy: name in `Fixtures` of the folder or file to copy.
        file: the file's path below the copy, empty if the copy is the file; with ``make`` a pattern below the case's folder.
        read: reads the file through a public entry point and returns its messages; what it raises is evaluated as well.
        meaning: content of the bytes, read independently of avvp_dist.
        flips: number of flips.
        named: whether an error must name the file; a reader of bytes cannot.
        make: restores the surroundings of the file before each flip, if reading changes them.
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
    """Read what a training reads."""
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
    from avvp_dist.metrics.per_video import VideoStatistics

    VideoStatistics.load(str(path))
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
    """Run the same command again; a different result is an error."""
    output = _command(*_training(here))
    reference, found = (json.loads((here / name / "result.json").read_text()) for name in ("reference", "out"))
    if any(reference[key] != found[key] for key in ("scores", "best", "denoising", "artifacts")):
        raise RuntimeError("result differs from the one before the flip")
    return output


def _training(here: Path) -> list[str]:
    return ["train", "jomold", f"data={here / 'tiny'}", f"output={here / 'out'}", *_TINY]


def _finished(here: Path) -> None:
    """Create a run whose stages are finished and whose result is not written."""
    if not (here / "reference").exists():
        _command(*_training(here))
        shutil.copytree(here / "out", here / "reference")
    shutil.rmtree(here / "out", ignore_errors=True)
    shutil.copytree(here / "reference", here / "out", copy_function=os.link)
    (here / "out" / "result.json").unlink()


def _command(*words: str) -> str:
    """Run a command in this process; return its stderr, and the lines of stdout about differences.

    Raises:
        RuntimeError: an exit code other than 0 and 2.
        RejectedError: exit code 2, with its message.
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
        raise RejectedError(err)
    if code:
        raise RuntimeError(f"exit code {code}: {err[-500:]}")
    return "\n".join([err, *(line for line in out.splitlines() if line.startswith("differs"))])


class RejectedError(Exception):
    """A command ended with exit code 2."""


def _json(content: bytes) -> Any:
    return json.loads(content)


def _numbers(content: bytes) -> Any:
    """Return noise ratios without the other content of their file, such as the key of its checksum."""
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
    """Return a checkpoint's state, at whichever offset of the file it begins."""
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


def run(fixtures: Fixtures, folder: Path, seed: int) -> Iterator[Callable[[], Verdict]]:
    """Yield a function for each batch of flips of one kind."""
    _make_checkpoint(fixtures, folder)
    for number, kind in enumerate(KINDS):
        for start in range(0, kind.flips, _BATCH):
            count = min(_BATCH, kind.flips - start)
            here = folder / f"{number}-{start}"
            yield lambda number=number, count=count, here=here, salt=seed + start: _run_batch(
                number, count, fixtures, here, salt
            )


def _make_checkpoint(fixtures: Fixtures, folder: Path) -> None:
    """Keep the newest checkpoint of a run that is killed."""
    import signal

    from benchmarks.robustness_cases.running import Kill

    here = folder / "checkpoint"
    here.mkdir(parents=True)
    words = ["train", "han", f"data={fixtures.paths['data']}", f"output={here / 'out'}", *SMALL, "train.epochs=9"]
    fixtures.runner.run(words, here, kill=Kill(signal.SIGKILL, 0.0, f"{here}/out/checkpoints/*.pt", 2))
    kept = here / "checkpoint.pt"
    shutil.copy(max((here / "out" / "checkpoints").glob("*.pt")), kept)
    fixtures.paths["checkpoint"] = kept


def _run_batch(number: int, count: int, fixtures: Fixtures, here: Path, salt: int) -> Verdict:
    """Run all flips of a batch, in as many processes as necessary."""
    kind = KINDS[number]
    here.mkdir(parents=True)
    copy = fixtures.copy(kind.copy, here)
    log = here / "outcomes.jsonl"
    log.touch()
    lines: list[dict[str, Any]] = []
    while len(lines) < count:
        words = [str(number), str(count), str(len(lines)), str(salt), str(here), str(copy)]
        call = f"{__name__}:batch"
        result = fixtures.runner.run(words, here, seconds=60, figures=False, call=call)
        found = [json.loads(line) for line in log.read_text().splitlines()]
        if len(found) < count:  # the process ended before the last flip
            reason = "did not end" if result.timed_out else f"ended the process with exit code {result.code}"
            found.append({"outcome": "failed", "why": f"{reason}: {result.err[-300:]}"})
            with log.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
        lines = found
    return _summarize(kind, lines[:count], here)


def _summarize(kind: Kind, lines: list[dict[str, Any]], here: Path) -> Verdict:
    counts = Counter(line["outcome"] for line in lines)
    good = counts["detected"] + counts["harmless"]
    bad = Counter(line["why"][:200] for line in lines if line["outcome"] not in ("detected", "harmless"))
    why = "; ".join(f"{times} x {text}" for text, times in bad.most_common(5))
    notes = {"detected": counts["detected"], "without effect": counts["harmless"]}
    notes |= {"undetected": counts["undetected"], "failed": counts["failed"]}
    shutil.rmtree(here, ignore_errors=True)
    return Verdict("flips", kind.name, f"{len(lines)} flips, {here.name}", why, len(lines), good, notes)


def batch(number: str, count: str, first: str, salt: str, folder: str, copy: str) -> None:
    """Run flips ``first`` to ``count`` of a batch in this process; write one line each to outcomes.jsonl."""
    kind, here = KINDS[int(number)], Path(folder)
    if kind.make:
        kind.make(here)
        path = next(here.glob(kind.file))
    else:
        path = Path(copy) / kind.file if kind.file else Path(copy)
    original = path.read_bytes()
    meaning = kind.meaning(original)
    rng = random.Random(f"{number} {salt}")
    bits = [rng.randrange(8 * len(original)) for _ in range(int(count))]
    with (here / "outcomes.jsonl").open("a") as log:
        for bit in bits[int(first) :]:
            if kind.make:
                kind.make(here)
            line = check_flip(kind, here, path, original, meaning, bit)
            log.write(json.dumps(line) + "\n")
            log.flush()


def check_flip(kind: Kind, here: Path, path: Path, original: bytes, meaning: Any, bit: int) -> dict[str, str]:
    """Return the outcome of one flip."""
    from avvp_dist.errors import AvvpError

    content = bytearray(original)
    content[bit // 8] ^= 1 << bit % 8
    replace(path, bytes(content))
    names = (path.name, path.parent.name)
    try:
        output = kind.read(here, path)
    except (AvvpError, RejectedError) as error:
        if kind.named and not any(name in str(error) for name in names):
            return {"outcome": "failed", "why": f"rejected without naming the file: {str(error)[:200]}"}
        return {"outcome": "detected", "why": ""}
    except BaseException as error:
        return {"outcome": "failed", "why": f"{type(error).__name__}: {error}"}
    if any(name in output for name in names):
        return {"outcome": "detected", "why": ""}
    try:
        same = kind.meaning(bytes(content)) == meaning
    except Exception:
        same = False
    return {"outcome": "harmless", "why": ""} if same else {"outcome": "undetected", "why": "used without a message"}
