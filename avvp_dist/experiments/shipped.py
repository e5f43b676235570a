"""The YAML files shipped with the package: recipes, sweeps and tables."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePosixPath

from avvp_dist import storage
from avvp_dist.errors import ConfigError
from avvp_dist.text.suggest import did_you_mean


def shipped(folder: str) -> dict[str, str]:
    """Return name -> text of the YAML files in a folder of this package, sorted by name."""
    files = {item.name.removesuffix(".yaml"): item for item in (resources.files(__package__) / folder).iterdir()}
    return {name: files[name].read_text(encoding="utf-8") for name in sorted(files) if files[name].name.endswith(".yaml")}


def read_yaml(given: str, kind: str, folder: str) -> tuple[str, str]:
    """Return short name and text of a shipped YAML file or of a file of the user.

    Args:
        given: name of a shipped file, or the path or URL of another file.
        kind: ``recipe``, ``sweep`` or ``table``, for messages.
        folder: folder of the shipped files of this kind.

    Raises:
        ConfigError: there is no such file.
    """
    known = shipped(folder)
    if given in known:
        return given, known[given]
    if given.endswith((".yaml", ".yml")):
        if not storage.exists(given):
            raise ConfigError(f"{given}: no such {kind} file")
        return PurePosixPath(given).stem, storage.read_text(given)
    hint = did_you_mean(given, known)
    raise ConfigError(f"unknown {kind} {given!r}{hint} Valid names: {', '.join(known)}, or the path of a .yaml file")
