"""The search space of a sweep: values of config keys, how settings are chosen, which trials are ended early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from avvp_dist.config import Section

_CHECKED = (0.0, 0.37, 1.0)  # places in a range without steps at which its values are checked
_MOST_VALUES = 10_000  # of a range with steps


class Dimension(Section):
    """Values of one config key. Exactly one of grid, choice, uniform, loguniform."""

    grid: tuple[Any, ...] | None = None
    """Every one of these values."""
    choice: tuple[Any, ...] | None = None
    """One of these values; under search=grid the same as grid."""
    uniform: tuple[float, float] | None = None
    """A number between two bounds."""
    loguniform: tuple[float, float] | None = None
    """A number between two bounds above 0 whose logarithm is uniform."""
    step: float | None = Field(None, gt=0)
    """uniform: distance between the values it can take, counted from the lower bound; whole numbers stay whole."""
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """The key is swept only where each of these other swept keys has one of these values; elsewhere the recipe's holds."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value(cls, when: Any) -> Any:
        if not isinstance(when, Mapping):
            return when
        return {key: value if isinstance(value, list | tuple) else [value] for key, value in when.items()}

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        kinds = [name for name in ("grid", "choice", "uniform", "loguniform") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of grid, choice, uniform, loguniform; has {', '.join(kinds) or 'none'}")
        if self.step and not self.uniform:
            raise ValueError("step goes with uniform")
        bounds = self.uniform or self.loguniform
        if self.uniform and self.step and (self.uniform[1] - self.uniform[0]) / self.step > _MOST_VALUES:
            raise ValueError(f"step={self.step:g} gives more than {_MOST_VALUES:,} values; give a larger one, or none")
        if self.values is not None and not self.values:
            raise ValueError(f"{kinds[0]} is empty")
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{kinds[0]}: the first bound must be the smaller one, got {list(bounds)}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform: bounds must be above 0")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values it can take; None where they cannot be counted."""
        if self.grid is not None or self.choice is not None:
            return self.grid if self.grid is not None else self.choice
        if self.uniform is None or self.step is None:
            return None
        low, high = self.uniform
        whole = all(float(number).is_integer() for number in (low, self.step))
        count = math.floor((high - low) / self.step + 1e-9) + 1
        # rounded: 0.1 + 2 * 0.1 must read 0.3 in tables and folders
        numbers = [round(low + place * self.step, 12) for place in range(count)]
        return tuple(int(number) for number in numbers) if whole else tuple(numbers)

    def values_to_check(self) -> tuple[Any, ...]:
        """All values it can take; of a range without steps its bounds and one between them."""
        if self.values is not None:
            return self.values
        bounds = self.uniform or self.loguniform
        assert bounds
        return tuple(bounds[0] + fraction * (bounds[1] - bounds[0]) for fraction in _CHECKED)

    def draw(self, rng: np.random.Generator) -> Any:
        """One value at random."""
        if self.values is not None:
            return self.values[int(rng.integers(len(self.values)))]
        if self.loguniform:
            low, high = (math.log(bound) for bound in self.loguniform)
            return math.exp(rng.uniform(low, high))
        assert self.uniform
        return float(rng.uniform(*self.uniform))


class SearchConfig(Section):
    """How settings are chosen."""

    name: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination; random: draws; optuna: each next setting from the scores of those before it (TPE)."""
    samples: int = Field(16, ge=1, le=1_000_000)
    """random, optuna: settings to try, each with every seed."""
    seed: int = Field(0, ge=0)
    """random, optuna: root of the draws."""


class SchedulerConfig(Section):
    """Which trials are ended early."""

    name: Literal["fifo", "asha", "pbt"] = "fifo"
    """fifo: none; asha: those that are behind after some epochs (successive halving); pbt: those behind take over weights
    and changed settings of those in front (population-based training)."""
    grace_epochs: int = Field(5, ge=1)
    """asha: epochs of the last stage that every trial gets."""
    reduction: int = Field(3, ge=2)
    """asha: of this many trials one goes on at each rung."""
    perturb_every: int = Field(4, ge=1)
    """pbt: epochs of the last stage between two exchanges."""
