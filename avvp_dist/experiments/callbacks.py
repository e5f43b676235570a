"""Reports the progress of a run to the console and to the tracking server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from avvp_dist.errors import AvvpError
from avvp_dist.experiments.recipe import RunConfig
from avvp_dist.report.console import TrainingConsole
from avvp_dist.tracking.base import NullTracker, Status, Tracker
from avvp_dist.tracking.home import TrackingHome, open_home
from avvp_dist.tracking.system import SystemSampler
from avvp_dist.tracking.tracker import open_tracker
from avvp_dist.types import TrainPosition

LOGGER = logging.getLogger(__name__)


class RunCallback:
    """Reports training progress to console and tracker, on rank 0 only.

    Args:
        config: config of the run.
        facts: additional tags of the tracked run.
        rank_0: whether this is rank 0; other ranks report nothing.
    """

    def __init__(self, config: RunConfig, facts: Mapping[str, Any], rank_0: bool) -> None:
        self._home = _tracking_home(config) if rank_0 else None
        self.tracker: Tracker = _tracker(config, self._home)
        self._console = TrainingConsole(config.evaluate.monitored(type(config.task))) if rank_0 else None
        tracked = not isinstance(self.tracker, NullTracker)
        self._sampler = SystemSampler(self.tracker, self._home.folder) if self._home and tracked else None
        self._run_id_logged = False
        if self._sampler:
            self._sampler.start()
        # locations are tags: as params, which differ in every run, they would be an axis in MLflow's comparisons
        locations = {"output": config.output} | ({"store": config.store} if config.store else {})
        self.tracker.params(config.model_dump(exclude={"tracking", "storage", "output", "store"}))
        self.tracker.text("config.yaml", config.to_yaml())
        self.tracker.tags({**facts, **locations, **config.tracking.tags})

    def stage_started(self, stage: str, epochs: int, resumed: TrainPosition | None) -> None:
        """See `train.loop.Callback`."""
        assert self._console
        self._console.stage_started(stage, epochs, resumed)

    def stage_reused(self, stage: str, key: str) -> None:
        """See `train.loop.Callback`."""
        assert self._console
        self._console.stage_reused(stage, key)
        self.tracker.tags({f"reused.{stage}": key})

    def step(self, position: TrainPosition) -> None:
        """See `train.loop.Callback`."""
        assert self._console
        self._console.step(position)

    def epoch(self, row: Mapping[str, Any], best: float) -> None:
        """See `train.loop.Callback`."""
        assert self._console
        self._console.epoch(row, best)
        values = {f"{row['stage']}/{name}": value for name, value in row.items() if isinstance(value, float)}
        self.tracker.metrics(values, step=row["epoch"])
        self._log_run_id()

    def finish(self, status: Status) -> None:
        """Close the console's progress bar and the tracked run, whose journal is kept."""
        if self._sampler:
            self._sampler.stop()
        if self._console:
            self._console.close()
        self.tracker.finish(status)
        self._log_run_id()
        if self._home:
            self._home.keep()

    def _log_run_id(self) -> None:
        """Log the id of the tracked run once, as soon as the server has assigned it."""
        if self.tracker.run_id and not self._run_id_logged:
            self._run_id_logged = True
            LOGGER.info("MLflow run %s", self.tracker.run_id)


def _tracking_home(config: RunConfig) -> TrackingHome | None:
    """Open the folder of the run's tracking files; None if the run is not tracked. A failure here must not stop the run."""
    if config.tracking.name == "none":
        return None
    try:
        return open_home(config.output)
    except (AvvpError, OSError) as error:
        LOGGER.warning("this run is not tracked: %s", error)
        return None


def _tracker(config: RunConfig, home: TrackingHome | None) -> Tracker:
    if home is None:
        return NullTracker()
    name = config.tracking.run_name or f"{config.recipe}-seed{config.seed}"
    return open_tracker(config.tracking.model_copy(update={"run_name": name}), home.folder)
