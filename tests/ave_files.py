"""A tiny data set in AVE's official layout, for tests of the code that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from avvp_dist.datasets.catalog import AVE

ROWS = [
    ("Church bell", "AAAAAAAAAAA", 0, 10),
    ("Church bell", "BBBBBBBBBBB", 2, 5),
    ("Church bell", "CCCCCCCCCCC", 0, 0),  # no event
    ("Bark", "DDDDDDDDDDD", 8, 10),
    ("Bark", "BBBBBBBBBBB", 0, 4),  # the same YouTube video as row 1
    ("Mandolin", "EEEEEEEEEEE", 0, 10),
    ("Mandolin", "FFFFFFFFFFF", 3, 9),
]
ORDERS = {"train": [1, 0, 2, 3, 5], "val": [4], "test": [6]}
BACKGROUND = 2
BELL, BARK, MANDOLIN = (AVE.classes.index(name) for name in ("Church bell", "Bark", "Mandolin"))


def write_h5(path: Path, values: object, key: str = "avadataset", **options) -> None:
    """Write an HDF5 file with one array."""
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=values, **options)


def feature_arrays() -> dict[str, np.ndarray]:
    """Random features by file; their values have an exact float16."""
    rng = np.random.default_rng(0)
    shapes = {
        "audio_feature.h5": (len(ROWS), 10, 128),
        "visual_feature.h5": (len(ROWS), 10, 7, 7, 512),
        "audio_feature_noisy.h5": (BACKGROUND, 10, 128),
        "visual_feature_noisy.h5": (BACKGROUND, 10, 7, 7, 512),
    }
    kinds = dict.fromkeys(shapes, np.float32) | {"audio_feature_noisy.h5": np.float64}
    return {name: rng.random(shape, np.float32).astype(np.float16).astype(kinds[name]) for name, shape in shapes.items()}


def segment_labels() -> np.ndarray:
    """Content of labels.h5."""
    labels = np.zeros((len(ROWS), 10, 29), np.float32)
    for number, (category, _, start, end) in enumerate(ROWS):
        labels[number, :, 28] = 1
        labels[number, start:end] = np.eye(29)[AVE.classes.index(category)]
    return labels


def write_annotations(folder: Path, orders: Mapping[str, list[int]] = ORDERS) -> Path:
    """Write all files but the features; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{category}&{name}&good&{start}&{end}\n" for category, name, start, end in ROWS]
    (folder / "Annotations.txt").write_text("".join(lines))
    for split, rows in orders.items():
        write_h5(folder / f"{split}_order.h5", np.array(rows, np.int64), "order")
    write_h5(folder / "labels.h5", segment_labels())
    write_h5(folder / "mil_labels.h5", np.eye(29, dtype=np.float32)[[AVE.classes.index(row[0]) for row in ROWS]])
    write_h5(folder / "labels_noisy.h5", np.eye(29, dtype=np.float32)[[28] * BACKGROUND])
    return folder


def write_official(folder: Path, **options) -> Path:
    """Write all files; ``options`` are those of h5py for the features. Return the folder."""
    write_annotations(folder)
    for name, values in feature_arrays().items():
        write_h5(folder / name, values, **options)
    return folder
