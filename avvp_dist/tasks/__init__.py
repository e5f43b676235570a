"""All tasks. A new one needs a file here, one in metrics/, its config class in `TASKS`, and a data set whose index names it.

A package of your own can add tasks without changing this one: it declares an entry point in the group ``avvp_dist.tasks``
that refers to a `TaskSection`.
"""

from __future__ import annotations

import functools
import logging
import operator
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from avvp_dist.tasks.base import TaskSection
from avvp_dist.tasks.localization import LocalizationConfig
from avvp_dist.tasks.parsing import ParsingConfig

LOGGER = logging.getLogger(__name__)
_ENTRY_POINTS = "avvp_dist.tasks"


def _installed() -> dict[str, type[TaskSection]]:
    """Return the tasks of other installed packages; one that cannot be imported is left out with a warning."""
    found: dict[str, type[TaskSection]] = {}
    for entry in metadata.entry_points(group=_ENTRY_POINTS):
        try:
            section = entry.load()
            found[section.model_fields["name"].default] = section
        except Exception as error:  # of another package
            LOGGER.warning("task %s of the entry point %s cannot be imported: %s", entry.name, entry.value, error)
    return found


DEFAULT_TASK: type[TaskSection] = ParsingConfig
"""Task of recipes, and of data sets of earlier versions, that name none."""
TASKS: dict[str, type[TaskSection]] = {
    **{section.model_fields["name"].default: section for section in (ParsingConfig, LocalizationConfig)},
    **_installed(),
}
"""Config class of each task by its ``name``."""

if TYPE_CHECKING:
    TaskConfig = TaskSection
else:
    _ANY = functools.reduce(operator.or_, TASKS.values())
    TaskConfig = Annotated[_ANY, Field(discriminator="name")] if len(TASKS) > 1 else DEFAULT_TASK
    """Settings of any task; `TaskSection.build` makes the task."""

MOVED_KEYS = {f"evaluate.{key}": f"task.{key}" for key in ("protocol", "segment_threshold", "video_threshold")}
"""Keys of configs of earlier versions -> their present names."""
