"""Config keys of earlier versions: they are accepted under their present names, and folders and stages of runs are found.

`present_keys` and `present_paths` translate what users and files contain; `earlier_keys` translates back, for the hashes of
which the names of folders and stages consist.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from avvp_dist.errors import ConfigError
from avvp_dist.tasks import DEFAULT_TASK, MOVED_KEYS

LOGGER = logging.getLogger(__name__)

# by section, keys that earlier versions lacked, with the values that behave like these versions
_LATER_KEYS: dict[str, dict[str, Any]] = {
    "data": {"video_labels": "weak", "shuffle": True, "drop_last": False},
    "optim": {"milestones": []},
    "method": {
        "refine": "windows",
        "mixing": "each",
        "partners": "disjoint",
        "loss": "bce",
        "guided": True,
        "base_epochs": None,
    },
}


def present_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a recipe or config.yaml of an earlier version with the present names of keys."""
    renamed = dict(content)
    for old, new in MOVED_KEYS.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        target = renamed.get(new_section, {})
        if isinstance(renamed.get(section), Mapping) and key in renamed[section] and isinstance(target, Mapping):
            values = dict(renamed[section])
            renamed[new_section] = {**target, new_key: values.pop(key)}
            renamed[section] = values
    return with_task_name(renamed)


def with_task_name(content: dict[str, Any]) -> dict[str, Any]:
    """Return a config in which settings of a task that it does not name are those of the default task."""
    task = content.get("task")
    if isinstance(task, Mapping) and "name" not in task:
        return {**content, "task": {"name": DEFAULT_TASK.model_fields["name"].default, **task}}
    return content


def present_paths(overrides: Sequence[tuple[tuple[str, ...], Any]]) -> list[tuple[tuple[str, ...], Any]]:
    """Return overrides with the present names of keys; a warning names those of earlier versions.

    Raises:
        ConfigError: a key is given under both names.
    """
    given = {".".join(path) for path, _ in overrides}
    twice = [f"{old}: now {new}, which is set as well; keep {new}" for old, new in MOVED_KEYS.items() if {old, new} <= given]
    if twice:
        raise ConfigError(twice, "invalid overrides")
    found = []
    for path, value in overrides:
        new = MOVED_KEYS.get(".".join(path))
        if new:
            warn_once(f"{'.'.join(path)} is now {new}")
        found.append((tuple(new.split(".")) if new else path, value))
    return found


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning once per process: sweeps and tables load the same recipe many times."""
    LOGGER.warning(message)


def earlier_keys(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity with the keys of earlier versions, from whose hash folders and stages of these are found."""
    if identity["task"]["name"] != DEFAULT_TASK.model_fields["name"].default:
        return dict(identity)
    content = {section: dict(values) if isinstance(values, Mapping) else values for section, values in identity.items()}
    task = content.pop("task")
    for old, new in MOVED_KEYS.items():
        (section, key), (_, new_key) = old.split("."), new.split(".")
        content[section][key] = task[new_key]
    for section, defaults in _LATER_KEYS.items():
        content[section] = {
            key: value for key, value in content[section].items() if key not in defaults or value != defaults[key]
        }
    return content
