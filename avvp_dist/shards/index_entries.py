"""The entries of index.json: streams, shards, labels.parquet, and videos that were left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field


def _printable(name: str) -> str:
    """Validate a name that appears in tables, on terminals and in file names.

    Raises:
        ValueError: it contains characters that cannot be printed.
    """
    if not name.isprintable():
        raise ValueError(f"{name!a} contains characters that cannot be printed")
    return name


# Names of shards become paths, so an untrusted index must not refer to files outside its folder.
ShardName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_]{1,32}-[0-9]{6}\.tar\z")]
SplitName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_]{1,32}\z")]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
TrackName = Annotated[str, Field(pattern=r"\A[a-z][a-z0-9_]{0,31}\z")]
Count = Annotated[int, Field(strict=True, ge=1, le=10**6)]
Seconds = Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False)]
Bytes = Annotated[int, Field(strict=True, ge=1, le=2**53)]
NO_OTHER_FIELDS = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class IndexedStream:
    """A stream: columns ``offset`` to ``offset + dim`` of a video's feature array.

    Attributes:
        shape: shape of one segment, ``(dim,)`` by default; the columns contain it in C order.
    """

    __pydantic_config__ = NO_OTHER_FIELDS

    name: Name
    dim: Count
    offset: Annotated[int, Field(strict=True, ge=0, le=10**6)]
    shape: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        if not self.shape:
            object.__setattr__(self, "shape", (self.dim,))


@dataclass(frozen=True)
class ShardInfo:
    """A tar file; ``source`` is the fingerprint of its inputs."""

    __pydantic_config__ = NO_OTHER_FIELDS

    name: ShardName
    split: SplitName
    samples: Count
    bytes: Bytes
    sha256: Sha256
    source: str


@dataclass(frozen=True)
class LabelsInfo:
    """Size and hash of labels.parquet."""

    __pydantic_config__ = NO_OTHER_FIELDS

    bytes: Bytes
    sha256: Sha256


@dataclass(frozen=True)
class LeftOut:
    """A video that was not packed, and why."""

    __pydantic_config__ = NO_OTHER_FIELDS

    id: str
    split: str
    reason: str
