"""Reads and writes files on local disks and in object storage through the same functions.

from avvp_dist import storage
storage.read_bytes("s3://bucket/index.json")
"""

from avvp_dist.storage.files import (
    LOCK,
    absolute,
    arrow_filesystem,
    check_file,
    configure,
    create,
    exists,
    find,
    join,
    local_path,
    names,
    read_bytes,
    read_text,
    read_version,
    remove,
    remove_abandoned,
    replace,
    settings,
    size,
    sizes,
    versions,
    write_bytes,
    write_text,
)

__all__ = [
    "LOCK",
    "absolute",
    "arrow_filesystem",
    "check_file",
    "configure",
    "create",
    "exists",
    "find",
    "join",
    "local_path",
    "names",
    "read_bytes",
    "read_text",
    "read_version",
    "remove",
    "replace",
    "settings",
    "size",
    "sizes",
    "remove_abandoned",
    "versions",
    "write_bytes",
    "write_text",
]
