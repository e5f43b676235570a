"""All training methods. A new one needs a file here, its config class in `MethodConfig`, a recipe and a test."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from avvp_dist.methods.base import MethodSection
from avvp_dist.methods.coteaching import CoTeachingConfig
from avvp_dist.methods.em_mil import EmMilConfig
from avvp_dist.methods.han import HanMethodConfig
from avvp_dist.methods.jocor import JocorConfig
from avvp_dist.methods.jomold import JomoldConfig
from avvp_dist.methods.lr import LrConfig
from avvp_dist.methods.ma import MaConfig
from avvp_dist.methods.poibin import PoiBinConfig
from avvp_dist.methods.ppl import PplMethodConfig
from avvp_dist.methods.valor import ValorConfig

MethodConfig = Annotated[
    HanMethodConfig
    | JomoldConfig
    | MaConfig
    | LrConfig
    | ValorConfig
    | CoTeachingConfig
    | JocorConfig
    | PplMethodConfig
    | PoiBinConfig
    | EmMilConfig,
    Field(discriminator="name"),
]
"""Settings of any method; `MethodSection.build` makes the method."""

METHODS: dict[str, type[MethodSection]] = {
    config.model_fields["name"].default: config for config in get_args(get_args(MethodConfig)[0])
}
"""Config class of each method by its ``name``."""
