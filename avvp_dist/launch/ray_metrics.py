"""An epoch's figures as custom metrics of Ray, which every node serves to Prometheus under ``ray_avvp_...``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from avvp_dist.launch.periodic import PeriodicTask
from avvp_dist.types import MODALITIES

_TAGS = ("run", "stage", "rank")
_REFRESH_SECONDS = 4.0  # seconds; Ray drops a gauge that was not set within two of its report intervals, of ten seconds each
_OF_RANKS = {
    "time/data_wait_seconds": "until the next batch was there",
    "time/step_seconds": "in training steps",
    "time/ranking_seconds": "choosing targets, part of the steps",
    "time/exchange_seconds": "exchanging what is ranked with other ranks, part of the ranking",
    "time/all_reduce_seconds": "while gradients were under way between ranks, part of the steps",
}


class RunMetrics:
    """The last epoch's figures of one rank: seconds of each phase; of rank 0 also videos/s and removed labels of all ranks.

    They are told again every few seconds until `close`, and nobody tells those of a stage any more once another one has
    had an epoch; so a series ends soon after what it speaks of.

    Args:
        run: names the run in the tag ``run``: its output.
        rank: of this process.
    """

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._of_ranks = {
            key: Gauge(f"avvp_{key.removeprefix('time/')}", f"Seconds of the last epoch {what}.", _TAGS)
            for key, what in _OF_RANKS.items()
        }
        self._speed = Gauge("avvp_videos_per_second", "Training videos of all ranks a second, in the last epoch.", _TAGS)
        self._removed = Gauge("avvp_removed_labels", "Labels removed as noise in the last epoch.", (*_TAGS, "modality"))
        self._row: Mapping[str, Any] = {}
        self._refresh = PeriodicTask("metrics for Prometheus", self._set_gauges, _REFRESH_SECONDS)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Takes an epoch's row of metrics; the report of a checkpoint amid an epoch, which has none, is left out."""
        if "stage" not in row:
            return
        self._row = dict(row)
        self._set_gauges()
        self._refresh.start()

    def close(self) -> None:
        """Ends the telling."""
        self._refresh.stop()

    def _set_gauges(self) -> None:
        row = self._row
        tags = {**self._tags, "stage": row["stage"]}
        for key, gauge in self._of_ranks.items():
            gauge.set(row[key], tags)
        if tags["rank"] != "0":
            return
        self._speed.set(row["videos_per_second"], tags)
        for modality in MODALITIES:
            if f"removed/{modality}" in row:
                self._removed.set(row[f"removed/{modality}"], {**tags, "modality": modality})
