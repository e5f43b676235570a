"""Noise ratios as the authors of JoMoLD write them: an .npz with one number a class, beside our JSON by class name."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np

from avvp_dist import storage
from avvp_dist.datasets.catalog import LLP
from avvp_dist.errors import ConfigError
from avvp_dist.types import MODALITIES

_ZIP = b"PK\x03\x04"

Ratios = dict[str, dict[str, float]]


def is_npz(content: bytes) -> bool:
    """Whether ``content`` is a zip archive, which every .npz is."""
    return content.startswith(_ZIP)


def published_order(classes: Sequence[str]) -> tuple[str, ...]:
    """The order of the numbers in an .npz: LLP's official one for LLP's classes, else the data set's own."""
    return LLP.classes if set(classes) == set(LLP.classes) else tuple(classes)


def from_npz(content: bytes, classes: Sequence[str], title: str) -> Ratios:
    """Noise ratios by class name, in the order of ``classes``, from an .npz with arrays ``audio`` and ``visual``.

    Args:
        content: the file's bytes; nothing in it is unpickled.
        classes: the data set's classes.
        title: title of the error.

    Raises:
        ConfigError: an array is missing or unreadable, has another number of classes, or holds no ratios; every problem.
    """
    order = published_order(classes)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            names = list(archive.files)
            arrays = {modality: archive[modality] for modality in MODALITIES if modality in names}
    except Exception as error:  # numpy and zipfile raise nearly anything for a damaged archive
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise ConfigError(f"not a readable .npz archive ({detail})", title) from None
    problems = []
    found: Ratios = {}
    for modality in MODALITIES:
        if modality not in arrays:
            problems.append(f"{modality}: no such array; the file holds {', '.join(names) or 'none'}")
            continue
        values = arrays[modality]
        if values.shape != (len(order),):
            problems.append(f"{modality}: shape {list(values.shape)}, expected [{len(order)}], one ratio a class")
        elif values.dtype.kind not in "iuf":
            problems.append(f"{modality}: holds {values.dtype}, expected numbers")
        else:
            named = dict(zip(order, values.tolist(), strict=True))
            problems += [
                f"{modality}.{name}: {value!r} is not a ratio between 0 and 1"
                for name, value in named.items()
                if not 0 <= value <= 1  # not so for NaN
            ]
            found[modality] = {name: float(named[name]) for name in classes}
    if problems:
        raise ConfigError(problems, title)
    return found


def to_npz(ratios: Mapping[str, Mapping[str, float]]) -> bytes:
    """What `from_npz` reads: float64 arrays ``audio`` and ``visual``, classes in `published_order`."""
    buffer = io.BytesIO()
    audio, visual = (
        np.array([table[name] for name in published_order(list(table))], np.float64)
        for table in (ratios[modality] for modality in MODALITIES)
    )
    np.savez(buffer, audio=audio, visual=visual)
    return buffer.getvalue()


def class_names(url: str) -> tuple[str, ...]:
    """The classes that a JSON ratio file names, in its order; none where it is not such a file.

    Raises:
        ConfigError: it is not there, or an .npz, which does not name its classes.
    """
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise ConfigError(f"{url}: no such file") from None
    if is_npz(content):
        raise ConfigError(f"{url}: is an .npz archive already; give a ratios.json or the folder of a run")
    try:
        return tuple(json.loads(content)["audio"])
    except (ValueError, KeyError, TypeError):
        return ()


def find(source: str) -> str:
    """The ratio file that ``source`` names: itself, or the one among the stages of the run in that folder.

    Raises:
        ConfigError: a folder without noise ratios, or with several.
    """
    if source.endswith((".json", ".npz")):
        return source
    folders = [storage.join(source, "stages"), source]
    stages = [
        storage.join(folder, name) for folder in folders for name in storage.names(folder) if name.startswith("ratios-")
    ]
    files = [url for url in (storage.join(stage, "ratios.json") for stage in stages) if storage.exists(url)]
    if len(files) == 1:
        return files[0]
    if files:
        raise ConfigError([f"{url}: one of them" for url in files], f"{source}: holds several noise ratios; name one file")
    raise ConfigError(
        f"{source}: neither a ratio file (.json, .npz) nor a run with stages/ratios-KEY/ratios.json; only JoMoLD estimates "
        "noise ratios, and with store=URL they are in that store"
    )
