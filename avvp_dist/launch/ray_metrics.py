"""Metrics of an epoch as custom metrics of Ray, which every node exports to Prometheus under ``ray_avvp_...``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from avvp_dist.launch.periodic import PeriodicTask
from avvp_dist.types import MODALITIES

_TAGS = ("run", "stage", "rank")
_REFRESH_SECONDS = 4.0  # Ray drops a gauge that is not set within two of its report intervals, of ten seconds each
_RANK_METRICS = {
    "time/data_wait_seconds": "waiting for the next batch",
    "time/step_seconds": "in training steps",
    "time/ranking_seconds": "choosing targets, part of the steps",
    "time/exchange_seconds": "exchanging what is ranked with other ranks, part of the ranking",
    "time/all_reduce_seconds": "reducing gradients between ranks, part of the steps",
}


class RunMetrics:
    """Exports metrics of the last epoch of one rank: seconds of each phase; rank 0 adds videos/s and removed labels.

    The gauges are set again every few seconds until `close`. Once another stage has had an epoch, those of the previous
    stage are no longer set, so a series ends soon after the stage that it describes.

    Args:
        run: value of the tag ``run``: the run's output.
        rank: rank of this process.
    """

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._rank_gauges = {
            key: Gauge(f"avvp_{key.removeprefix('time/')}", f"Seconds of the last epoch {what}.", _TAGS)
            for key, what in _RANK_METRICS.items()
        }
        self._speed = Gauge("avvp_videos_per_second", "Training videos per second of all ranks in the last epoch.", _TAGS)
        self._removed = Gauge("avvp_removed_labels", "Labels removed as noise in the last epoch.", (*_TAGS, "modality"))
        self._row: Mapping[str, Any] = {}
        self._refresh = PeriodicTask("metrics for Prometheus", self._set_gauges, _REFRESH_SECONDS)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Export an epoch's metrics; a report in the middle of an epoch, which has none, is ignored."""
        if "stage" not in row:
            return
        self._row = dict(row)
        self._set_gauges()
        self._refresh.start()

    def close(self) -> None:
        """Stop setting the gauges."""
        self._refresh.stop()

    def _set_gauges(self) -> None:
        row = self._row
        tags = {**self._tags, "stage": row["stage"]}
        for key, gauge in self._rank_gauges.items():
            gauge.set(row[key], tags)
        if tags["rank"] != "0":
            return
        self._speed.set(row["videos_per_second"], tags)
        for modality in MODALITIES:
            if f"removed/{modality}" in row:
                self._removed.set(row[f"removed/{modality}"], {**tags, "modality": modality})
