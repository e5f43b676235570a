"""The search space of a sweep: values of config keys, search algorithm, and early stopping of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from avvp_dist.config import Section

_CHECKED = (0.0, 0.37, 1.0)  # relative positions in a continuous range whose values are checked
_MOST_VALUES = 10_000  # of a range with a step


class Dimension(Section):
    """Values of one config key: exactly one of grid, choice, uniform and loguniform."""

    grid: tuple[Any, ...] | None = None
    """All of these values."""
    choice: tuple[Any, ...] | None = None
    """One of these values; the same as grid if search.name=grid."""
    uniform: tuple[float, float] | None = None
    """A number between two bounds."""
    loguniform: tuple[float, float] | None = None
    """A number between two positive bounds, uniform in its logarithm."""
    step: float | None = Field(None, gt=0)
    """uniform: distance between possible values, starting at the lower bound; integer bounds and steps give integers."""
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """The key is swept only if each of these swept keys has one of these values; otherwise the recipe's value is used."""

    @model_validator(mode="before")
    @classmethod
    def _explain_bare_values(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError("expected a section, e.g. {grid: [0.1, 0.2]}")
        return values

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
            raise ValueError("step can be used only with uniform")
        bounds = self.uniform or self.loguniform
        if self.uniform and self.step and (self.uniform[1] - self.uniform[0]) / self.step > _MOST_VALUES:
            raise ValueError(f"step={self.step:g} gives more than {_MOST_VALUES:,} values; give a larger step, or none")
        if self.values is not None and not self.values:
            raise ValueError(f"{kinds[0]} is empty")
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{kinds[0]}: the first bound must be the smaller one, got {list(bounds)}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform: bounds must be above 0")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All possible values; None for a continuous range."""
        if self.grid is not None or self.choice is not None:
            return self.grid if self.grid is not None else self.choice
        if self.uniform is None or self.step is None:
            return None
        low, high = self.uniform
        whole = all(float(number).is_integer() for number in (low, self.step))
        count = math.floor((high - low) / self.step + 1e-9) + 1
        # rounded: 0.1 + 2 * 0.1 must be written as 0.3 in tables and folder names
        numbers = [round(low + index * self.step, 12) for index in range(count)]
        return tuple(int(number) for number in numbers) if whole else tuple(numbers)

    def values_to_check(self) -> tuple[Any, ...]:
        """Return all possible values; for a continuous range, its bounds and one value between them."""
        if self.values is not None:
            return self.values
        bounds = self.uniform or self.loguniform
        assert bounds
        return tuple(bounds[0] + fraction * (bounds[1] - bounds[0]) for fraction in _CHECKED)

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a random value."""
        if self.values is not None:
            return self.values[int(rng.integers(len(self.values)))]
        if self.loguniform:
            low, high = (math.log(bound) for bound in self.loguniform)
            return math.exp(rng.uniform(low, high))
        assert self.uniform
        return float(rng.uniform(*self.uniform))


class SearchConfig(Section):
    """Search algorithm of a sweep."""

    name: Literal["grid", "random", "optuna"] = "grid"
    """grid: all combinations; random: random draws; optuna: each setting chosen from the scores of earlier ones (TPE)."""
    samples: int = Field(16, ge=1, le=1_000_000)
    """random, optuna: number of settings to try, each with all seeds."""
    seed: int = Field(0, ge=0)
    """random, optuna: random seed of the search."""


class SchedulerConfig(Section):
    """Early stopping of trials."""

    name: Literal["fifo", "asha", "pbt"] = "fifo"
    """fifo: no early stopping; asha: stop the worst trials after some epochs (successive halving); pbt: the worst trials
    copy the weights and perturbed settings of the best ones (population-based training)."""
    grace_epochs: int = Field(5, ge=1)
    """asha: number of epochs of the last stage that every trial runs."""
    reduction: int = Field(3, ge=2)
    """asha: at each rung, one in this number of trials continues."""
    perturb_every: int = Field(4, ge=1)
    """pbt: number of epochs of the last stage between two exchanges."""
