"""Networks: tensors in, tensors out; none knows a method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from avvp_dist.models.ave import AveConfig
from avvp_dist.models.avslowfast import AvSlowFastConfig
from avvp_dist.models.han import HanConfig

ModelConfig = Annotated[HanConfig | AveConfig | AvSlowFastConfig, Field(discriminator="name")]
"""Settings of any network; each builds its own."""
