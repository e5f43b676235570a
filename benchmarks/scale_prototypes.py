"""Cost of PPL's key segments for many videos: time and memory of collecting them and of k-means."""

from __future__ import annotations

from dataclasses import asdict

import torch
import torch.nn.functional as F

from avvp_dist.datasets.catalog import LLP
from avvp_dist.dist.collective import LocalCollective
from avvp_dist.methods.ppl import PplMethodConfig
from avvp_dist.methods.prototypes import KeySegments, Prototypes, priorities
from benchmarks.scale_exchange import measured

BATCH = 256  # videos
KEYS = 10  # key segments of a video: 1.6 labels, 3 segments, 2 modalities
WIDTH = 512


def prototypes(videos: int) -> dict[str, dict[str, float]]:
    """Return the costs of collecting the key segments of ``videos`` on one rank, and of fitting prototypes to them.

    The features of all batches are the same, since making random ones would take longer than what is measured.
    """
    config = PplMethodConfig()
    groups = 2 * len(LLP.classes)
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(BATCH * KEYS, WIDTH, generator=generator), dim=-1)
    group = torch.randint(0, groups, (BATCH * KEYS,), generator=generator)
    number = torch.arange(BATCH * KEYS)
    keys = KeySegments(groups, config.capacity, torch.device("cpu"))

    def collect() -> None:
        for start in range(0, videos * KEYS, BATCH * KEYS):
            keys.add(features, group, priorities(number + start))

    def fit() -> None:
        Prototypes(2, len(LLP.classes), config.prototypes, centered=config.centered).fit(
            keys, config.iterations, LocalCollective()
        )

    return {
        "key segments of an epoch (PPL), one rank": asdict(measured(collect)[1]),
        "k-means of an epoch (PPL), one rank": asdict(measured(fit)[1]),
    }
