"""Outputs of networks, made without a network."""

from dataclasses import replace

import torch

from avvp_dist.models.pooling import SigmoidHead
from avvp_dist.types import Outputs


def modality_outputs(video, audio, visual, segments=None, features=None, **fields):
    """Outputs of a network with a head for each modality: probabilities [B,C].

    Segments [B,T,2,C] and features [2,B,T,D] can be left out.
    """
    if segments is None:
        segments = torch.zeros(len(video), 10, 2, video.shape[-1])
    return Outputs(video, torch.stack([audio, visual], dim=1), segments, SigmoidHead(), features=features, **fields)


def rows_of(outputs, rows):
    """The outputs of some videos, also of further networks and of the scoring pass."""

    def select(outputs):
        features, inputs = [None if x is None else x[:, rows] for x in (outputs.features, outputs.inputs)]
        without = replace(outputs, features=None, inputs=None).map(lambda x: x[rows])
        return replace(without, features=features, inputs=inputs)

    return replace(
        select(outputs),
        scoring=None if outputs.scoring is None else select(outputs.scoring),
        co_trained=tuple(select(other) for other in outputs.co_trained),
    )
