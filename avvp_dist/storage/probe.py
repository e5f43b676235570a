"""Finds out whether a command can write what it is to write, before it does the work."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from avvp_dist import storage
from avvp_dist.errors import AvvpError, ConfigError, UserError
from avvp_dist.storage import special_files
from avvp_dist.storage.system_errors import describe_os_error
from avvp_dist.text.urls import malformed

_MARKER = ".aside-probe-"  # begins as what `storage` writes aside: never taken for data
_READ_ONLY = ("http", "https")
_BLOCK = 1 << 16  # bytes of a local marker: a full disk may still take a byte
_NAME, _PATH = 255, 4095  # bytes that Linux takes
_LONGEST = "stages/" + "x" * 60 + "/model.safetensors"  # about the longest path that is made below a folder


def refuse_unwritable(
    *, folders: Mapping[str, str | os.PathLike[str] | None] | None = None, files: Mapping[str, str | None] | None = None
) -> None:
    """Writes a marker to each target and deletes it; makes none of the targets and leaves nothing.

    Args:
        folders: path or URL of folders to be written into, by the option or key that names each; None for unset ones.
        files: likewise of files to be written.

    Raises:
        ConfigError: every target that cannot be written.
    """
    problems: list[str] = []
    for targets, is_file in ((folders, False), (files, True)):
        for name, target in (targets or {}).items():
            if target is None:
                continue
            url = os.fspath(target)
            try:
                wrong = malformed(url)
                if wrong:
                    raise UserError(f"{url} {wrong}" if url else wrong)
                _probe(url, is_file)
            except OSError as error:
                problems.append(f"{name}: {describe_os_error(error)}")
            except AvvpError as error:
                told = error.problems if isinstance(error, UserError) else [str(error)]
                problems += [f"{name}: {problem}" for problem in told]
    if problems:
        raise ConfigError(problems, "what this command would write cannot be written; nothing was done")


def _probe(url: str, is_file: bool) -> None:
    here = storage.local_path(url)
    if here is not None:
        (_probe_file if is_file else _probe_folder)(here.absolute())
        return
    scheme = url.partition("://")[0].lower()
    if scheme in _READ_ONLY:
        raise UserError(f"{url}: {scheme} addresses can only be read; give a folder or an object store")
    folder = url.rstrip("/").rpartition("/")[0] if is_file else url
    marker = storage.join(folder, f"{_MARKER}{uuid.uuid4().hex}")
    if not is_file:
        storage.names(folder)  # a store says best in answer to a question why it refuses; and runs list their folders
    storage.write_bytes(marker, b"")
    storage.remove(marker)


def _probe_file(path: Path) -> None:
    if special_files.is_device(path):
        special_files.check(path)
        return
    _refuse_name(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _probe_folder(path.parent)


def _probe_folder(folder: Path) -> None:
    """Writes a marker into ``folder``, or, where it is not there, into the nearest one above that is."""
    _refuse_name(folder / _LONGEST)
    there = folder
    while not _is_there(there):
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    marker = there / f"{_MARKER}{uuid.uuid4().hex}"
    try:
        with marker.open("wb") as handle:
            handle.write(bytes(_BLOCK))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        refused = error.errno == errno.ENOENT  # as /proc has it
        why = "" if refused else f" ({os.strerror(error.errno or 0)})"
        raise OSError(errno.EACCES if refused else error.errno, f"cannot be written to{why}", str(there)) from None
    finally:
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)


def _is_there(path: Path) -> bool:
    """Whether anything lies at ``path``; a symbolic link to nothing does, and no folder can be made of it."""
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "is a symbolic link to nothing", str(path)) from None
        return False
    return True


def _refuse_name(path: Path) -> None:
    """Refuses names that the system would not take, also below folders that are not there yet."""
    if max(len(os.fsencode(part)) for part in path.parts) > _NAME or len(os.fsencode(path)) > _PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
