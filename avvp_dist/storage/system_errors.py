"""Describes errors of the operating system with their path and a remedy."""

from __future__ import annotations

import errno

from avvp_dist.text.escape import line

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose a location on another disk",
    errno.EDQUOT: "free some space, or choose a location on another disk",
    errno.EACCES: "change its permissions, or choose another location",
    errno.EPERM: "change its permissions, or choose another location",
    errno.EROFS: "choose another location",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the loop of symbolic links, or choose another location",
    errno.ENOTDIR: "there is a file where a folder is needed; move it, or choose another location",
    errno.EEXIST: "there is a file where a folder is needed; move it, or choose another location",
    errno.EISDIR: "there is a folder where a file is needed; give the name of a file",
    errno.ENOENT: "check the path, and the folder to which it is relative",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk or the connection to it is failing; check the system log",
    errno.ENXIO: "no process reads from it; give the name of a file",
    errno.EAGAIN: "too many processes or threads; raise ulimit -u, or give fewer workers",
}


def describe_os_error(error: OSError) -> str:
    """Describe an error of the operating system by its path, its reason and a remedy."""
    where = error.filename if error.filename is not None else error.filename2
    what = error.strerror or line(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "")
    path = where.decode(errors="backslashreplace") if isinstance(where, bytes) else where
    parts = [*([] if path is None else [f"{path}"]), what[:1].lower() + what[1:] if path is not None else what]
    return ": ".join(parts) + (f"; {remedy}" if remedy else "")
