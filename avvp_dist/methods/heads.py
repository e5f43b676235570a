"""Targets and losses of the three heads (video, audio, visual), which most methods share with HAN (ECCV 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from avvp_dist.methods.losses import elementwise_bce, modality_targets, per_video
from avvp_dist.types import Batch, Outputs, Targets


def han_targets(batch: Batch, *, audio_smoothing: float = 0.0, visual_smoothing: float = 0.0) -> Targets:
    """Return HAN's targets: the video's label, and smoothed labels of each modality (section 4.3; published code).

    Args:
        batch: its refined labels, if present, replace the weak label.
        audio_smoothing, visual_smoothing: amount of label smoothing, see `losses.modality_targets`.
    """
    return Targets(
        video=batch.video_labels,
        audio=modality_targets(batch.audio_labels, batch.weak, audio_smoothing),
        visual=modality_targets(batch.visual_labels, batch.weak, visual_smoothing),
    )


def heads_loss(
    outputs: Outputs,
    targets: Targets,
    *,
    co_trained: Sequence[Outputs] = (),
    elementwise: Callable[..., Tensor] = elementwise_bce,
) -> dict[str, Tensor]:
    """Return the loss of each head and their sum, as ``video``, ``audio``, ``visual`` and ``total``, [B] each.

    Args:
        outputs: of the network.
        targets: [B,C] for each head. Label weights, if present, weigh the elements of the audio and visual loss.
        co_trained: outputs of further networks that enter the same loss.
        elementwise: takes one head's probabilities [B,C] of each network, then the targets [B,C]; returns losses [B,C].
    """
    networks = (outputs, *co_trained)
    video = elementwise(*(network.video for network in networks), targets.video)
    audio = elementwise(*(network.audio for network in networks), targets.audio)
    visual = elementwise(*(network.visual for network in networks), targets.visual)
    return total_of_heads(
        video=per_video(video),
        audio=per_video(audio, targets.audio_weights),
        visual=per_video(visual, targets.visual_weights),
    )


def total_of_heads(video: Tensor, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
    """Return the losses by name, with their unweighted sum as ``total``."""
    return {"total": video + audio + visual, "video": video, "audio": audio, "visual": visual}
