"""The only fsspec code: read, write and list local paths and object-store URLs alike.

Writes are never half-visible: a local file is written aside and renamed, an object store shows an object only once its
upload has finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
from filelock import FileLock
from fsspec.core import url_to_fs

_ASIDE = ".aside-"  # prefix of files being written; never taken for data


def join(url: str | os.PathLike[str], *parts: str) -> str:
    """``url`` extended by ``parts``; works on local paths and on URLs."""
    return "/".join([os.fspath(url).rstrip("/"), *(part.strip("/") for part in parts)])


def local_path(url: str | os.PathLike[str]) -> Path | None:
    """The path on this machine that ``url`` names, or None when it lives elsewhere."""
    fs, path = url_to_fs(os.fspath(url))
    return Path(path) if "file" in _protocols(fs) else None


def absolute(url: str | os.PathLike[str]) -> str:
    """A local path made absolute; any other URL as it is."""
    here = local_path(url)
    return os.fspath(url) if here is None else os.path.abspath(here)


def exists(url: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there."""
    fs, path = url_to_fs(os.fspath(url))
    return bool(fs.exists(path))


def size(url: str | os.PathLike[str]) -> int:
    """Bytes of the file at ``url``.

    Raises:
        FileNotFoundError: there is none.
    """
    fs, path = url_to_fs(os.fspath(url))
    return int(fs.size(path))


def names(url: str | os.PathLike[str]) -> list[str]:
    """Sorted names of the files and folders right below ``url``; empty when it is not there."""
    fs, path = url_to_fs(os.fspath(url))
    try:
        entries = fs.ls(path, detail=False, refresh=True)
    except FileNotFoundError:
        return []
    found = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries}
    return sorted(name for name in found if not name.startswith(_ASIDE))


def find(url: str | os.PathLike[str], name: str) -> list[str]:
    """All files called ``name`` in the folder ``url`` or anywhere below it, sorted; empty when it is not there."""
    fs, path = url_to_fs(os.fspath(url))
    here = "file" in _protocols(fs)
    found = [each for each in fs.find(path) if each.rsplit("/", 1)[-1] == name]
    return sorted(each if here else fs.unstrip_protocol(each) for each in found)


def sizes(url: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of each file right below ``url``, by its name; empty when it is not there."""
    fs, path = url_to_fs(os.fspath(url))
    try:
        entries = fs.ls(path, detail=True, refresh=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in entries if entry["type"] == "file"}


def read_bytes(url: str | os.PathLike[str]) -> bytes:
    """Whole content of the file at ``url``.

    Raises:
        FileNotFoundError: there is none.
    """
    fs, path = url_to_fs(os.fspath(url))
    content: bytes = fs.cat_file(path)
    return content


def read_text(url: str | os.PathLike[str]) -> str:
    """Whole UTF-8 content of the file at ``url``."""
    return read_bytes(url).decode("utf-8")


def write_bytes(url: str | os.PathLike[str], content: bytes) -> None:
    """Puts ``content`` at ``url``, replacing what was there, all at once."""
    target = local_path(url)
    if target is None:
        fs, path = url_to_fs(os.fspath(url))
        fs.pipe_file(path, content)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f"{_ASIDE}{uuid.uuid4().hex}"
    try:
        with aside.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())  # a crash of the machine must not leave an empty file under the final name
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(url: str | os.PathLike[str], content: str) -> None:
    """Like `write_bytes`, UTF-8."""
    write_bytes(url, content.encode("utf-8"))


def remove(url: str | os.PathLike[str]) -> None:
    """Deletes a file or a whole folder; nothing happens where there is none."""
    fs, path = url_to_fs(os.fspath(url))
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def lock(url: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """Held by one process at a time among those of this machine; nothing where ``url`` is not a local path."""
    path = local_path(url)
    return contextlib.nullcontext() if path is None else _file_lock(path)


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    # beside nobody's files, and for one user alone
    folder = Path(tempfile.gettempdir()) / f"avvp-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with FileLock(folder / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.lock"):
        yield


def sweep(url: str | os.PathLike[str]) -> int:
    """Deletes what killed writers left aside right below a local ``url``; returns how many files that were.

    Only safe while nobody else is writing there.
    """
    folder = local_path(url)
    if folder is None or not folder.is_dir():
        return 0
    stale = list(folder.glob(f"{_ASIDE}*"))
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
