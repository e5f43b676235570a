"""YAML from people: what would hang, exhaust memory or mislead is refused before anything is built of it."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

_CHARACTERS = 1_000_000
_NODES = 100_000  # aliases counted as what they stand for
_DEPTH = 60
_PLAIN = re.compile(r"[^\[\]{}&*!|>\n#:\"'%@`-][^\[\]{}&*!\n#:]*")  # one scalar


class RejectedYAML(yaml.YAMLError):
    """YAML that is well formed and yet cannot be meant; its text repeats no values, which may be secret.

    Attributes:
        problem: what is wrong.
        problem_mark: where, as PyYAML's own errors have it.
    """

    def __init__(self, problem: str, mark: Any = None) -> None:
        self.problem, self.problem_mark = problem, mark
        super().__init__(f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem)


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which PyYAML takes the last, and values that no Python object can be made of."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See `yaml.SafeLoader`."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        if twice:
            raise RejectedYAML(f"{', '.join(twice)}: given twice in the same place; keep one", node.start_mark)
        mapping = super().construct_mapping(node, deep)
        odd = [key for key in mapping if not isinstance(key, str)]
        if odd:
            raise RejectedYAML(f"{odd[0]} cannot be a key, as it is no text; quote it", node.start_mark)
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See `yaml.SafeLoader`."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError):  # a number of thousands of digits, the 30th of February
            raise RejectedYAML("a number or date that cannot be read", node.start_mark) from None


def load(text: str) -> Any:
    """The content of a YAML document, of plain types.

    Raises:
        yaml.YAMLError: it is not YAML.
        RejectedYAML: it is, but nested too deep, too large (also by aliases of aliases), cyclic, with a key twice,
            with a key that is no text, or with a value that cannot be read.
    """
    if len(text) > _CHARACTERS:
        raise RejectedYAML(f"{len(text):,} characters, at most {_CHARACTERS:,} are read; is this the right file?")
    if not _PLAIN.fullmatch(text):
        _measure(text)
    return yaml.load(text, Loader=_Loader)


def _measure(text: str) -> None:
    """Walks through the document's events, which need no memory and no recursion whatever it holds."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor of a collection, and the nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise RejectedYAML(f"alias *{event.anchor} stands inside what it names, without end", event.start_mark)
            nodes += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes))
            nodes += 1
            if len(open_nodes) > _DEPTH:
                raise RejectedYAML(f"nested deeper than {_DEPTH} levels", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor:
                sizes[event.anchor] = 1
        if nodes > _NODES:
            raise RejectedYAML(f"more than {_NODES:,} values, aliases counted as what they stand for", event.start_mark)
