"""Small data sets and finished runs that cases use, and functions that damage a copy of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robustness_cases.running import Result, Runner

SMALL = (
    "tracking=none",
    "model.width=16",
    "model.feedforward=16",
    "train.batch_size=8",
    "train.device=cpu",
    "train.epochs=2",
)
"""Settings with which a training takes a second."""

Damage = Callable[[Path], None]


class Fixtures:
    """Data sets and runs that cases copy, created once.

    Args:
        folder: their folder.
        runner: runs the commands that create them.
        tiny: create only ``{tiny}``, which is enough for many cases.

    Attributes:
        paths: placeholders of the cases' command lines -> folder or file.
    """

    def __init__(self, folder: Path, runner: Runner, tiny: bool = False) -> None:
        self.folder = folder
        self.runner = runner
        self.paths = {
            name: folder / name for name in ("raw", "data", "tiny", "run", "other", "ma", "audio", "visual", "ratios.json")
        }
        self.paths |= {"feats": folder / "raw" / "feats", "labels": folder / "labels.npz"}
        folder.mkdir(parents=True, exist_ok=True)
        self._avvp("data", "synth", "tiny", "--splits", "8,4,4", "--layout", "shards", "--workers", "1")
        if not tiny:
            self._data()
            self._runs()

    def expand(self, words: str | Sequence[str], here: Path) -> list[str]:
        """Split a case's command line at spaces and fill in its placeholders.

        ``{small}`` stands for `SMALL` without the keys that the case sets itself: repeated keys are refused.
        """
        values = {name: str(path) for name, path in self.paths.items()} | {"here": str(here)}
        found: list[str] = []
        given = words.split(" ") if isinstance(words, str) else words
        keys = {word.partition("=")[0] for word in given}
        for word in given:
            if word == "{small}":
                found += [setting for setting in SMALL if setting.partition("=")[0] not in keys]
                continue
            for name, value in values.items():
                word = word.replace(f"{{{name}}}", value)
            found.append(word)
        return found

    def copy(self, name: str, here: Path) -> Path:
        """Copy a folder or file to ``here`` as hard links; a file must be replaced, not changed in place."""
        source = self.paths[name]
        target = here / source.name
        if not target.exists():
            if source.is_dir():
                shutil.copytree(source, target, copy_function=os.link)
            else:
                os.link(source, target)
        return target

    def _avvp(self, *words: str) -> Result:
        result = self.runner.run(words, self.folder, seconds=120)
        if result.code:
            raise RuntimeError(f"avvp {' '.join(words)}: exit code {result.code}\n{result.text}")
        return result

    def _data(self) -> None:
        self._avvp("data", "synth", "raw", "--splits", "40,12,12", "--workers", "1")
        pack = ["data", "pack", "llp", "--annotations", "raw", "--features", "raw/feats", "--out", "data"]
        self._avvp(*pack, "--shard-videos", "16", "--workers", "1")
        self._avvp("data", "noisy-labels", "--data", "data", "--out", "labels.npz")
        ids = [line.split("\t")[0][:11] for line in (self.folder / "raw" / "AVVP_train.csv").read_text().splitlines()[1:]]
        rng = np.random.default_rng(0)
        for modality in ("audio", "visual"):
            (self.folder / modality).mkdir()
            for name in ids:
                np.save(self.folder / modality / f"{name}.npy", (rng.random((10, 25)) < 0.1).astype(np.float32))

    def _runs(self) -> None:
        def train(job: tuple[str, ...]) -> None:
            recipe, output, *more = job
            self._avvp("train", recipe, "data=data", f"output={output}", *SMALL, *more)

        self.runner.map(train, [("jomold", "run"), ("jomold", "other", "seed=1"), ("ma", "ma")])
        shutil.copy(next((self.folder / "run" / "stages").glob("ratios-*/ratios.json")), self.paths["ratios.json"])


def replace(path: Path, content: bytes | str) -> None:
    """Write a file in place of whatever is at ``path``, without writing through a hard link."""
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def half(path: Path) -> None:
    """Keep the first half of a file."""
    content = path.read_bytes()
    replace(path, content[: len(content) // 2])


def holding(content: bytes | str) -> Damage:
    """Return a function that replaces the content of a file."""
    return lambda path: replace(path, content)


def inverted(path: Path) -> None:
    """Invert the bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 16] = bytes(byte ^ 0xFF for byte in content[middle : middle + 16])
    replace(path, bytes(content))


def folder(path: Path) -> None:
    """Put a folder in place of a file."""
    remove(path)
    path.mkdir(parents=True)


def loop(path: Path) -> None:
    """Put a symbolic link to itself in place of a file."""
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)


def fifo(path: Path) -> None:
    """Put a named pipe that no process writes to in place of a file."""
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


REPLACEMENTS: dict[str, Damage] = {
    "missing": remove,
    "empty": holding(b""),
    "half": half,
    "text": holding("not a file of this format\n"),
    "binary": holding(bytes(range(256)) * 8),
    "folder": folder,
    "loop": loop,
    "fifo": fifo,
}
"""What a file can be replaced with."""


def edited(change: Callable[[Any], Any]) -> Damage:
    """Return a function that changes the content of a JSON file, in place or by returning other content."""

    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        other = change(content)
        replace(path, json.dumps(content if other is None else other))

    return edit


def array(make: Callable[[], np.ndarray]) -> Damage:
    """Return a function that replaces the array of a .npy file."""

    def edit(path: Path) -> None:
        remove(path)
        with path.open("wb") as file:
            np.save(file, make())

    return edit


def arrays(change: Callable[[dict[str, np.ndarray]], None]) -> Damage:
    """Return a function that changes the arrays of a .npz file."""

    def edit(path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        change(content)
        remove(path)
        with path.open("wb") as file:
            np.savez_compressed(file, **content)  # type: ignore[arg-type]

    return edit
