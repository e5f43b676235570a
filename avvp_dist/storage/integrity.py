"""Checksums of files, listed in other documents, and of JSON documents and containers, stored inside them.

    describe, check    sha256 and size of a file, as another document lists them
    seal, unseal       a JSON document that contains a checksum of its own content
    wrap, unwrap       bytes after a header with their checksum

Every reader checks before it interprets: a damaged file raises an `errors.DataError` that names it, and never yields wrong
numbers.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

from avvp_dist import storage
from avvp_dist.errors import DataError
from avvp_dist.storage import json_files
from avvp_dist.text.credentials import redact

CHECKSUM = "checksum"
"""Key of a sealed document's own checksum."""
FILES = "files"
"""Key under which a sealed document lists the files that belong to it."""
_HEADER = struct.Struct(">8sIQ32s")  # magic, format, bytes of the payload, their sha256


def sha256(content: bytes) -> str:
    """SHA-256 of ``content`` as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def describe(content: bytes) -> dict[str, Any]:
    """What a document records about a file: ``sha256`` and ``bytes``."""
    return {"sha256": sha256(content), "bytes": len(content)}


def check(content: bytes, described: Any, url: str) -> bytes:
    """Return ``content`` if it matches what `describe` recorded.

    Raises:
        DataError: it does not; names ``url``.
    """
    recorded = described if isinstance(described, Mapping) else {}
    if len(content) != recorded.get("bytes"):
        raise DataError(f"{url}: damaged, {recorded.get('bytes')} bytes were written, but it has {len(content)}")
    if sha256(content) != recorded.get("sha256"):
        raise DataError(f"{url}: damaged, its content differs from the recorded checksum")
    return content


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its ``checksum``, independent of key order and white space."""
    kept = {key: value for key, value in content.items() if key != CHECKSUM}
    return sha256(json.dumps(json.loads(json.dumps(kept)), sort_keys=True, separators=(",", ":")).encode())


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add a ``checksum`` to ``content``, to be written as JSON, after removing credentials as `storage.write_text` does."""
    cleaned = json.loads(redact(json.dumps(content)))
    return {**cleaned, CHECKSUM: checksum(cleaned)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether a document should have a checksum; documents of earlier versions have none, and list no files either."""
    return CHECKSUM in content or FILES in content


def unseal(text: bytes, url: str) -> dict[str, Any]:
    """Parse the JSON object in ``text``, and verify its checksum if it is sealed.

    Raises:
        DataError: it is not a JSON object, or its content has changed since it was sealed; names ``url``.
    """
    content = json_files.parse(text, url)
    if not isinstance(content, dict):
        raise DataError(f"{url}: damaged, expected a JSON object")
    if is_sealed(content):
        check_seal(content, url)
    return content


def check_seal(content: Mapping[str, Any], url: str) -> None:
    """Verify the checksum of a sealed document.

    Raises:
        DataError: the content has changed since it was sealed; names ``url``.
    """
    if content.get(CHECKSUM) != checksum(content):
        raise DataError(f"{url}: damaged, its content differs from its own checksum")


def read_sealed(url: str) -> dict[str, Any]:
    """Read the JSON object at ``url``, and verify its checksum if it is sealed.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: as `unseal`.
    """
    return unseal(storage.read_bytes(url), url)


def read_listed(folder: str, name: str, content: Mapping[str, Any]) -> bytes:
    """Read the file ``name`` of ``folder``, and verify it against ``content["files"]`` if the document lists files.

    Raises:
        DataError: the file is missing, not listed, or different; names the file.
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
        raise DataError(f"{url}: not among the recorded files")
    return check(found, listed[name], url)


def wrap(payload: bytes, magic: bytes, version: int) -> bytes:
    """Prefix ``payload`` with a header that contains its length and checksum.

    Args:
        payload: any bytes.
        magic: eight bytes that identify this kind of container.
        version: of the payload's format.
    """
    return _HEADER.pack(magic, version, len(payload), hashlib.sha256(payload).digest()) + payload


def unwrap(blob: bytes, magic: bytes, version: int, what: str) -> bytes:
    """Return the payload of `wrap`, after verifying it.

    Raises:
        DataError: it is another kind of file, of another version, truncated or changed; names ``what``.
    """
    if len(blob) < _HEADER.size or not blob.startswith(magic):
        raise DataError(f"{what}: damaged, or not a file of this package")
    _, found, length, digest = _HEADER.unpack_from(blob)
    payload = memoryview(blob)[_HEADER.size :]
    if len(payload) != length:
        raise DataError(f"{what}: damaged, {len(payload)} bytes of content, but {length} were written")
    if found != version:
        raise DataError(f"{what}: has format {found}, but this version of avvp_dist reads format {version}")
    if hashlib.sha256(payload).digest() != digest:
        raise DataError(f"{what}: damaged, its content differs from its checksum")
    return bytes(payload)
