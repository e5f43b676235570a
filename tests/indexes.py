"""Changes index.json of a packed data set for tests, with a matching checksum."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from avvp_dist.shards.index import INDEX_FILE, Index


def change_index(folder: str | Path, change: Callable[[Index], dict[str, Any]]) -> None:
    """Replace the fields of the index that ``change`` returns."""
    index = Index.load(str(folder))
    Path(folder, INDEX_FILE).write_text(replace(index, **change(index)).to_json())
