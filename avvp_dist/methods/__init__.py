"""Methods by the ``name`` of their config. A new method: one file, its class and config here, a recipe, a golden test."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from avvp_dist.methods.coteaching import CoTeaching, CoTeachingConfig
from avvp_dist.methods.han import Han, HanMethodConfig
from avvp_dist.methods.jocor import Jocor, JocorConfig
from avvp_dist.methods.jomold import Jomold, JomoldConfig
from avvp_dist.methods.lr import Lr, LrConfig
from avvp_dist.methods.ma import Ma, MaConfig
from avvp_dist.methods.valor import Valor, ValorConfig

METHODS = {"han": Han, "jomold": Jomold, "ma": Ma, "lr": Lr, "valor": Valor, "coteaching": CoTeaching, "jocor": Jocor}

MethodConfig = Annotated[
    HanMethodConfig | JomoldConfig | MaConfig | LrConfig | ValorConfig | CoTeachingConfig | JocorConfig,
    Field(discriminator="name"),
]
