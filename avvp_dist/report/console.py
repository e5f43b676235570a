"""Progress of a run, on a terminal or in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from avvp_dist.text.escape import VisibleRecords, cell
from avvp_dist.text.redacted_output import guard_output

if TYPE_CHECKING:  # types imports torch, which takes a second that no `avvp --help` needs
    from avvp_dist.types import TrainPosition

LOGGER = logging.getLogger(__name__)


def set_up_logging(quiet: bool = False) -> None:
    """Log this package's messages to stderr, and only warnings of other packages; ``quiet``: only warnings of both.

    No log line, of whichever package, contains credentials or control characters.
    """
    guard_output()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:  # of this process, or those that Ray installs in its workers
        if not any(isinstance(found, VisibleRecords) for found in handler.filters):
            handler.addFilter(VisibleRecords())
    logging.getLogger().setLevel(logging.WARNING)  # Ray has already set the root logger to INFO
    logging.getLogger("avvp_dist").setLevel(logging.WARNING if quiet else logging.INFO)


class TrainingConsole:
    """Shows the progress of training: a progress bar on a terminal, and one line per epoch everywhere.

    Args:
        select: the score by which the best epoch is selected, shown on every line.
    """

    def __init__(self, select: str) -> None:
        self._select = f"val/{select}"
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if sys.stderr.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar:
            self._bar.stop()

    def stage_started(self, stage: str, epochs: int, resumed: TrainPosition | None) -> None:
        """See `train.loop.Callback`."""
        where = f", resumed at epoch {resumed.epoch + 1}, step {resumed.step}" if resumed else ""
        self._print(f"stage {stage}: {epochs} epoch{'s' if epochs > 1 else ''}{where}")
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(stage, total=None)

    def stage_reused(self, stage: str, key: str) -> None:
        """See `train.loop.Callback`."""
        self._print(f"stage {stage}: already finished with these settings on these data, reused ({key})")

    def step(self, progress: TrainPosition) -> None:
        """See `train.loop.Callback`."""
        if self._bar and self._task is not None:
            total = progress.epochs * progress.steps_per_epoch
            self._bar.update(self._task, completed=progress.global_step + 1, total=total)

    def epoch(self, row: Mapping[str, Any], best: float) -> None:
        """See `train.loop.Callback`."""
        parts = [
            f"{row['stage']} epoch {row['epoch']}",
            f"loss {row['loss/total']:.4f}",
            f"{self._select.replace('/', ' ')} {row[self._select]:.2f} (best {best:.2f})",
        ]
        if "removed/visual" in row:
            parts.append(f"removed {row['removed/audio']:.0f} audio, {row['removed/visual']:.0f} visual")
        parts.append(f"{row['videos_per_second']:.0f} videos/s")
        self._print(", ".join(parts))

    def _print(self, line: str) -> None:
        if self._bar:
            self._bar.console.print(cell(line))
        else:
            LOGGER.info(line)
