"""Converts noise ratios between JSON by class name and the .npz files of JoMoLD's authors, with one number per class."""

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
    """Return whether ``content`` is a zip archive, as every .npz is."""
    return content.startswith(_ZIP)


def published_order(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class order of an .npz: LLP's official order for LLP's classes, else the data set's own."""
    return LLP.classes if set(classes) == set(LLP.classes) else tuple(classes)


def from_npz(content: bytes, classes: Sequence[str], title: str) -> Ratios:
    """Read noise ratios by class name, in the order of ``classes``, from an .npz with arrays ``audio`` and ``visual``.

    Args:
        content: the file's bytes; nothing in it is unpickled.
        classes: the data set's classes.
        title: title of the error.

    Raises:
        ConfigError: an array is missing or unreadable, has another number of classes, or holds values that are not ratios;
            lists every problem.
    """
    order = published_order(classes)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            names = list(archive.files)
            arrays = {modality: archive[modality] for modality in MODALITIES if modality in names}
    except Exception as error:  # a damaged archive can raise almost any exception
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise ConfigError(f"not a readable .npz archive ({detail})", title) from None
    problems = []
    ratios: Ratios = {}
    for modality in MODALITIES:
        if modality not in arrays:
            problems.append(f"{modality}: array missing; the file contains {', '.join(names) or 'no arrays'}")
            continue
        values = arrays[modality]
        if values.shape != (len(order),):
            problems.append(f"{modality}: shape {list(values.shape)}, expected [{len(order)}], one ratio per class")
        elif values.dtype.kind not in "iuf":
            problems.append(f"{modality}: data type {values.dtype}, expected numbers")
        else:
            named = dict(zip(order, values.tolist(), strict=True))
            problems += [
                f"{modality}.{name}: {value!r} is not a ratio between 0 and 1"
                for name, value in named.items()
                if not 0 <= value <= 1  # NaN is refused too
            ]
            ratios[modality] = {name: float(named[name]) for name in classes}
    if problems:
        raise ConfigError(problems, title)
    return ratios


def to_npz(ratios: Mapping[str, Mapping[str, float]]) -> bytes:
    """Return an .npz for `from_npz`: float64 arrays ``audio`` and ``visual``, classes in `published_order`."""
    buffer = io.BytesIO()
    audio, visual = (
        np.array([table[name] for name in published_order(list(table))], np.float64)
        for table in (ratios[modality] for modality in MODALITIES)
    )
    np.savez(buffer, audio=audio, visual=visual)
    return buffer.getvalue()


def class_names(url: str) -> tuple[str, ...]:
    """Return the class names in a JSON ratio file, in its order; empty if it is not such a file.

    Raises:
        ConfigError: the file is missing, or it is an .npz, which does not contain class names.
    """
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise ConfigError(f"{url}: no such file") from None
    if is_npz(content):
        raise ConfigError(f"{url}: already an .npz archive; name a ratios.json or the folder of a run")
    try:
        return tuple(json.loads(content)["audio"])
    except (ValueError, KeyError, TypeError):
        return ()


def find(source: str) -> str:
    """Return the ratio file that ``source`` names: the file itself, or the one in the run's folder of stages.

    Raises:
        ConfigError: the folder contains no noise ratios, or several.
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
        raise ConfigError(
            [f"{url}: one of them" for url in files], f"{source}: contains several noise-ratio files; name one of them"
        )
    raise ConfigError(
        f"{source}: neither a ratio file (.json, .npz) nor a run with stages/ratios-KEY/ratios.json; only JoMoLD estimates "
        "noise ratios, and with store=URL they are in that artifact store"
    )
