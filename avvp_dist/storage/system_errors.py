"""Errors of the operating system as messages that name the path and a remedy."""

from __future__ import annotations

import errno

from avvp_dist.text.escape import line

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose a place on another disk",
    errno.EDQUOT: "free some space, or choose a place on another disk",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the loop of symbolic links, or choose another place",
    errno.ENOTDIR: "a file lies where a folder is needed; move it away, or choose another place",
    errno.EEXIST: "a file lies where a folder is needed; move it away, or choose another place",
    errno.EISDIR: "a folder lies where a file is needed; give the name of a file",
    errno.ENOENT: "look at the path and at the folder it counts from",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk or the connection to it fails; look at the system's log",
    errno.ENXIO: "nobody reads from it; give the name of a file",
    errno.EAGAIN: "too many processes or threads; raise ulimit -u, or give fewer workers",
}


def describe_os_error(error: OSError) -> str:
    """An error of the operating system with its path and what to do."""
    where = error.filename if error.filename is not None else error.filename2
    what = error.strerror or line(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "")
    path = where.decode(errors="backslashreplace") if isinstance(where, bytes) else where
    parts = [*([] if path is None else [f"{path}"]), what[:1].lower() + what[1:] if path is not None else what]
    return ": ".join(parts) + (f"; {remedy}" if remedy else "")
