"""Search algorithms on Ray Tune: Optuna and population-based training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search import Repeater
from ray.tune.search.optuna import OptunaSearch

from avvp_dist.experiments.search_space import Dimension
from avvp_dist.experiments.sweep import SweepConfig


def optuna_search(sweep: SweepConfig, rows: Sequence[Mapping[str, Any]]) -> tune.TuneConfig | None:
    """Return Optuna's search over the points left to try, given the scores so far; None if none are left."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(json.dumps(row["setting"], sort_keys=True), []).extend([row["score"]] if "score" in row else [])
    left = sweep.search.samples - len(scores)
    left = left if sweep.trials is None else min(left, sweep.trials // len(sweep.seeds) - len(scores))
    if left <= 0:
        return None
    rng = np.random.default_rng(0)
    # values of keys that the conditions of a point left out
    unused = {key: dimension.draw(rng) for key, dimension in sweep.space.items()}
    scored = {setting: found for setting, found in scores.items() if found}
    searcher = OptunaSearch(
        space={key: _distribution(dimension) for key, dimension in sweep.space.items()},
        metric="score",
        mode=sweep.mode,
        points_to_evaluate=[unused | json.loads(setting) for setting in scored] or None,
        evaluated_rewards=[float(np.mean(found)) for found in scored.values()] or None,
        sampler=optuna.samplers.TPESampler(seed=sweep.search.seed + len(scores)),
    )
    seeds = len(sweep.seeds)
    return tune.TuneConfig(
        search_alg=Repeater(searcher, repeat=seeds), num_samples=left * seeds, max_concurrent_trials=sweep.concurrency
    )


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    if dimension.loguniform:
        return optuna.distributions.FloatDistribution(*dimension.loguniform, log=True)
    if dimension.uniform and dimension.values is None:
        return optuna.distributions.FloatDistribution(*dimension.uniform)
    assert dimension.values is not None
    numbers = dimension.uniform is not None  # an ordered scale, which the sampler can use
    if numbers and all(isinstance(value, int) for value in dimension.values):
        step = dimension.values[1] - dimension.values[0] if len(dimension.values) > 1 else 1
        return optuna.distributions.IntDistribution(dimension.values[0], dimension.values[-1], step=step)
    if numbers:
        return optuna.distributions.FloatDistribution(dimension.values[0], dimension.values[-1], step=dimension.step)
    return optuna.distributions.CategoricalDistribution(dimension.values)


def population_based_training(sweep: SweepConfig) -> PopulationBasedTraining:
    """Return the scheduler for population-based training over the sweep's space."""

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        setting = config["trial"]["setting"]
        for key, dimension in sweep.space.items():
            bounds = dimension.uniform or dimension.loguniform
            if bounds and dimension.values is None:  # a factor of 1.2 or 0.8 may leave the space
                setting[key] = min(max(setting[key], bounds[0]), bounds[1])
        return config

    rng = np.random.default_rng(sweep.search.seed)
    mutations = {
        key: list(dimension.values) if dimension.values is not None else (lambda d=dimension: d.draw(rng))
        for key, dimension in sweep.space.items()
    }
    return PopulationBasedTraining(
        time_attr="epoch",
        perturbation_interval=sweep.scheduler.perturb_every,
        hyperparam_mutations={"trial": {"setting": mutations}},
        custom_explore_fn=explore,
        log_config=False,
    )
