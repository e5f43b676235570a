"""Checksums: of files, listed beside them, and of JSON documents and containers, carried inside them.

    describe, check    sha256 and size of a file's bytes, as another document lists them
    seal, unseal       a JSON document that holds a checksum of its own content
    wrap, unwrap       bytes behind a header with their checksum

Every reader checks before it interprets: a damaged file is an `errors.DataError` that names the file, never other numbers.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.text.credentials import redact

CHECKSUM = "checksum"
"""Key of a sealed document's own checksum."""
FILES = "files"
"""Key under which a sealed document lists the files that belong to it."""
_HEADER = struct.Struct(">8sIQ32s")  # magic, format, bytes of the payload, their sha256


def sha256(content: bytes) -> str:
    """SHA-256 of ``content`` in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def describe(content: bytes) -> dict[str, Any]:
    """What a document lists of a file: ``sha256`` and ``bytes``."""
    return {"sha256": sha256(content), "bytes": len(content)}


def check(content: bytes, described: Any, url: str) -> bytes:
    """Returns ``content`` if it is what `describe` recorded.

    Raises:
        DataError: it is not; names ``url``.
    """
    recorded = described if isinstance(described, Mapping) else {}
    if len(content) != recorded.get("bytes"):
        raise DataError(f"{url}: damaged, {recorded.get('bytes')} bytes were written, {len(content)} are there")
    if sha256(content) != recorded.get("sha256"):
        raise DataError(f"{url}: damaged, its content differs from the recorded checksum")
    return content


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its ``checksum``; the order of keys and white space do not matter."""
    kept = {key: value for key, value in content.items() if key != CHECKSUM}
    return sha256(json.dumps(json.loads(json.dumps(kept)), sort_keys=True, separators=(",", ":")).encode())


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its ``checksum``, to be written as JSON; without credentials, which `storage.write_text` drops."""
    cleaned = json.loads(redact(json.dumps(content)))
    return {**cleaned, CHECKSUM: checksum(cleaned)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether a document claims to be sealed: those of earlier versions are not, and list no files either."""
    return CHECKSUM in content or FILES in content


def unseal(text: bytes, url: str) -> dict[str, Any]:
    """The JSON object in ``text``, checked if it is sealed.

    Raises:
        DataError: no JSON object, or another content than the one that was sealed; names ``url``.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{url}: damaged, not JSON ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, dict):
        raise DataError(f"{url}: damaged, expected a JSON object")
    if is_sealed(content):
        check_seal(content, url)
    return content


def check_seal(content: Mapping[str, Any], url: str) -> None:
    """Refuses a sealed document with another content than the one that was sealed.

    Raises:
        DataError: names ``url``.
    """
    if content.get(CHECKSUM) != checksum(content):
        raise DataError(f"{url}: damaged, its content differs from its own checksum")


def read_sealed(url: str) -> dict[str, Any]:
    """The JSON object at ``url``, checked if it is sealed.

    Raises:
        FileNotFoundError: there is none.
        DataError: as `unseal`.
    """
    return unseal(storage.read_bytes(url), url)


def read_listed(folder: str, name: str, content: Mapping[str, Any]) -> bytes:
    """The file ``name`` of ``folder``, checked against ``content["files"]`` where the document lists files.

    Raises:
        DataError: it is missing, not listed, or differs; names the file.
    """
    url = storage.join(folder, name)
    try:
        found = storage.read_bytes(url)
    except FileNotFoundError:
        raise DataError(f"{url}: missing") from None
    if FILES not in content:
        return found
    listed = content[FILES]
    if not isinstance(listed, Mapping) or name not in listed:
        raise DataError(f"{url}: not among the files that were recorded")
    return check(found, listed[name], url)


def wrap(payload: bytes, magic: bytes, version: int) -> bytes:
    """``payload`` behind a header with its length and checksum.

    Args:
        payload: any bytes.
        magic: eight bytes that tell this kind of container.
        version: of the payload's format.
    """
    return _HEADER.pack(magic, version, len(payload), hashlib.sha256(payload).digest()) + payload


def unwrap(blob: bytes, magic: bytes, version: int, what: str) -> bytes:
    """The payload of `wrap`, checked.

    Raises:
        DataError: not such a container, of another version, cut short or changed; names ``what``.
    """
    if len(blob) < _HEADER.size or not blob.startswith(magic):
        raise DataError(f"{what}: damaged, or not a file of this package")
    _, found, length, digest = _HEADER.unpack_from(blob)
    payload = memoryview(blob)[_HEADER.size :]
    if len(payload) != length:
        raise DataError(f"{what}: damaged, {len(payload)} bytes of content where {length} were written")
    if found != version:
        raise DataError(f"{what}: of format {found}, this version of avvp_dist reads format {version}")
    if hashlib.sha256(payload).digest() != digest:
        raise DataError(f"{what}: damaged, its content differs from its checksum")
    return bytes(payload)
