"""How each data set of the catalog is read from its official files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from avvp_dist.datasets import ave, llp
from avvp_dist.datasets.ave_features import AveFeatures
from avvp_dist.datasets.catalog import AVE, FEATURE_SETS, LLP
from avvp_dist.datasets.flaws import Annotations
from avvp_dist.errors import ConfigError
from avvp_dist.shards.feature_source import FeatureSource
from avvp_dist.shards.spec import Dataset


class Importer(Protocol):
    """Reads the official files of one data set."""

    @property
    def dataset(self) -> Dataset:
        """The data set as it is packed."""
        ...

    def annotations(self, folder: str, features: str | None) -> Annotations:
        """Read and check the annotations in ``folder``; ``features`` is the folder of the feature files, if known.

        Raises:
            DataError: lists every problem of every file.
        """
        ...

    def features(self, folder: str, annotations: Annotations) -> FeatureSource:
        """Open the features of these annotations.

        Raises:
            DataError: files or folders are missing.
        """
        ...


@dataclass(frozen=True)
class LlpImporter:
    """LLP: tab-separated annotations, and one feature file per video and stream.

    Attributes:
        dataset: a feature set of LLP.
        mend: correct the rows of the older edition of the annotations.
    """

    dataset: Dataset
    mend: bool

    def annotations(self, folder: str, features: str | None) -> Annotations:
        """See `Importer`."""
        return llp.read_annotations(folder, self.mend)

    def features(self, folder: str, annotations: Annotations) -> FeatureSource:
        """See `Importer`."""
        return llp.OfficialFeatures(folder, self.dataset)


@dataclass(frozen=True)
class AveImporter:
    """AVE: annotations, labels and features in HDF5 files."""

    dataset: Dataset = AVE

    def annotations(self, folder: str, features: str | None) -> Annotations:
        """See `Importer`."""
        return ave.read_annotations(folder, features)

    def features(self, folder: str, annotations: Annotations) -> FeatureSource:
        """See `Importer`."""
        return AveFeatures(folder, annotations)


def find(name: str, streams: str, mend: bool = False) -> Importer:
    """Return the importer of a data set in the catalog.

    Args:
        name: of the data set.
        streams: a key of `avvp_dist.datasets.catalog.FEATURE_SETS`, for LLP.
        mend: see `LlpImporter`.

    Raises:
        ConfigError: options that the data set does not have.
    """
    if name == LLP.name:
        return LlpImporter(FEATURE_SETS[streams], mend)
    problems = ["--mend: corrects annotations of LLP only"] if mend else []
    if FEATURE_SETS[streams] != LLP:
        problems.append(f"--streams {streams}: selects features of LLP only")
    if problems:
        raise ConfigError(problems, f"these options do not apply to {name}")
    return AveImporter()
