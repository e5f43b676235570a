"""Networks: tensors in, tensors out; none knows a method."""

from __future__ import annotations

from avvp_dist.models.han import HanConfig

ModelConfig = HanConfig
"""Settings of any network; each builds its own."""
