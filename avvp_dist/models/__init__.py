"""All networks; they are independent of the method. A new one needs a file here and its config class in `ModelConfig`."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from avvp_dist.models.ave import AveConfig
from avvp_dist.models.ave_llp import AveLlpConfig
from avvp_dist.models.avslowfast import AvSlowFastConfig
from avvp_dist.models.han import HanConfig
from avvp_dist.models.network import NetworkSection
from avvp_dist.models.ppl import PplConfig
from avvp_dist.models.psp import PspConfig

ModelConfig = Annotated[
    HanConfig | AveLlpConfig | AvSlowFastConfig | PplConfig | AveConfig | PspConfig, Field(discriminator="name")
]
"""Settings of any network; `NetworkSection.build` makes the network."""

MODELS: dict[str, type[NetworkSection]] = {
    config.model_fields["name"].default: config for config in get_args(get_args(ModelConfig)[0])
}
"""Config class of each network by its ``name``."""
