"""From segment features to segment, modality and video probabilities: attentive multimodal MIL pooling."""

from __future__ import annotations

from torch import Tensor, nn


class AttentiveMMIL(nn.Module):
    """Attentive MMIL pooling of HAN (ECCV 2020, section 4.2; published code).

    One linear layer holds three heads shared by both modalities: class scores, attention over time, attention over
    modalities.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.heads = nn.Linear(width, 3 * classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pools segment features.

        Args:
            features: [2,B,T,D], audio first.

        Returns:
            video, audio and visual probabilities [B,C] and segment probabilities [B,T,2,C], all float32. Attention weights
            sum to 1 only up to rounding, so a pooled probability may pass 1 by some 1e-7; losses clamp.
        """
        scores, over_time, over_modality = self.heads(features).float().chunk(3, dim=-1)  # [2,B,T,C] each
        segments = scores.sigmoid()
        witnessed = segments * over_time.softmax(dim=2)
        audio, visual = witnessed.sum(dim=2)  # [B,C] each
        video = (witnessed * over_modality.softmax(dim=0)).sum(dim=(0, 2))  # [B,C]
        return video, audio, visual, segments.permute(1, 2, 0, 3)
