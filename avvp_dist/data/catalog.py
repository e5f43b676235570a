"""What the data sets are made of: classes and feature streams."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stream:
    """One feature stream of a data set.

    Attributes:
        name: name in a Batch: ``audio``, ``visual``, ``motion``.
        dim: width of one segment's feature vector in a shard.
        folder: folder of its ``<id>.npy`` files in the official layout.
        rows: rows of an official file; a multiple of the segments, whose mean over each block goes into the shard. Exact
            for every network that starts with a linear layer followed by that mean, as the published ones do.
    """

    name: str
    dim: int
    folder: str
    rows: int


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

DATASETS = {LLP.name: LLP}
