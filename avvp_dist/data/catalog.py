"""What the data sets are made of: classes and feature streams."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Stream:
    """One feature stream of a data set.

    Attributes:
        name: name in a Batch: ``audio``, ``visual``, ``motion``.
        dim: width of one segment's feature vector in a shard.
        folder: folder of its ``<id>.npy`` files in the official layout.
        rows: rows of an official file.
        reduction: how they become rows of segments in the shard (`avvp_dist.data.reduction`). block-mean: ``rows`` is a
            multiple of the segments, the mean over each block; clap-map: a feature map of CLAP. Both are exact for every
            network that starts with a linear layer followed by the same, as the published ones do.
    """

    name: str
    dim: int
    folder: str
    rows: int
    reduction: Literal["block-mean", "clap-map"] = "block-mean"


@dataclass(frozen=True)
class Dataset:
    """A data set's fixed facts."""

    name: str
    classes: tuple[str, ...]
    streams: tuple[Stream, ...]
    segments: int

    @property
    def width(self) -> int:
        """Sum of the stream widths: the last axis of a shard's feature array."""
        return sum(stream.dim for stream in self.streams)


LLP = Dataset(
    name="llp",
    classes=(
        "Speech", "Car", "Cheering", "Dog", "Cat", "Frying_(food)", "Basketball_bounce", "Fire_alarm", "Chainsaw", "Cello",
        "Banjo", "Singing", "Chicken_rooster", "Violin_fiddle", "Vacuum_cleaner", "Baby_laughter", "Accordion",
        "Lawn_mower", "Motorcycle", "Helicopter", "Acoustic_guitar", "Telephone_bell_ringing", "Baby_cry_infant_cry",
        "Blender", "Clapping",
    ),
    streams=(
        Stream("audio", 128, "vggish", 10),
        Stream("visual", 2048, "res152", 80),
        Stream("motion", 512, "r2plus1d_18", 10),
    ),
    segments=10,
)  # fmt: skip

LLP_CLIP_CLAP = replace(
    LLP,
    name="llp-clip-clap",
    streams=(
        Stream("audio", 768, "CLAP/features", 64, "clap-map"),
        Stream("visual", 768, "CLIP/features", 10),
        Stream("motion", 512, "r2plus1d_18", 10),
    ),
)
"""The videos of LLP with the features of CLAP and CLIP that VALOR's authors publish (NeurIPS 2023)."""

DATASETS = {LLP.name: LLP}
FEATURE_SETS = {"vggish-resnet": LLP, "clip-clap": LLP_CLIP_CLAP}
"""The features that LLP's videos come with, each a data set of its own once packed."""
