"""Checks whether a command can write its outputs before it does any work."""

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

_MARKER = ".aside-probe-"  # starts like the temporary files of `storage`, so it is never listed as data
_READ_ONLY = ("http", "https")
_BLOCK = 1 << 16  # bytes of a local marker file: a full disk may still accept a single byte
_NAME, _PATH = 255, 4095  # limits of Linux in bytes
_LONGEST = "stages/" + "x" * 60 + "/model.safetensors"  # about the longest path that a run creates in its output folder


def refuse_unwritable(
    *, folders: Mapping[str, str | os.PathLike[str] | None] | None = None, files: Mapping[str, str | None] | None = None
) -> None:
    """Write a marker file to each target and delete it; neither the targets nor anything else remain.

    Args:
        folders: path or URL of each output folder, by the option or key that names it; None if unset.
        files: the same for output files.

    Raises:
        ConfigError: lists every target that cannot be written.
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
                found = error.problems if isinstance(error, UserError) else [str(error)]
                problems += [f"{name}: {problem}" for problem in found]
    if problems:
        raise ConfigError(problems, "the outputs of this command cannot be written; nothing was done")


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
        storage.names(folder)  # stores explain a refusal best in response to a listing, which runs need anyway
    storage.write_bytes(marker, b"")
    storage.remove(marker)


def _probe_file(path: Path) -> None:
    if special_files.is_device(path):
        special_files.check(path)
        return
    _check_name_length(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _probe_folder(path.parent)


def _probe_folder(folder: Path) -> None:
    """Write a marker file into ``folder``, or into its nearest existing parent."""
    _check_name_length(folder / _LONGEST)
    existing = folder
    while not _exists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    marker = existing / f"{_MARKER}{uuid.uuid4().hex}"
    try:
        with marker.open("wb") as handle:
            handle.write(bytes(_BLOCK))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        refused = error.errno == errno.ENOENT  # reported by /proc
        why = "" if refused else f" ({os.strerror(error.errno or 0)})"
        raise OSError(errno.EACCES if refused else error.errno, f"cannot be written to{why}", str(existing)) from None
    finally:
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)


def _exists(path: Path) -> bool:
    """Whether anything exists at ``path``; a dangling symbolic link does, and no folder can be created in its place."""
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "is a dangling symbolic link", str(path)) from None
        return False
    return True


def _check_name_length(path: Path) -> None:
    """Refuse names that are too long for the system, including those in folders that do not exist yet."""
    if max(len(os.fsencode(part)) for part in path.parts) > _NAME or len(os.fsencode(path)) > _PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
