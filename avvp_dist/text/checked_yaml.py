"""Safe parsing of YAML: documents that would hang, exhaust memory or be misread are rejected before they are built."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

_CHARACTERS = 1_000_000
_NODES = 100_000  # each alias counts as the nodes that it stands for
_DEPTH = 60
_PLAIN = re.compile(r"[^\[\]{}&*!|>\n#:\"'%@`-][^\[\]{}&*!\n#:]*")  # one scalar


class RejectedYAML(yaml.YAMLError):
    """Well-formed YAML that cannot be intended. Its message repeats no values, since they may be secret.

    Attributes:
        problem: what is wrong.
        problem_mark: where, as in PyYAML's own errors.
    """

    def __init__(self, problem: str, mark: Any = None) -> None:
        self.problem, self.problem_mark = problem, mark
        super().__init__(f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem)


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which PyYAML would keep the last, and values that cannot be converted to Python objects."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See `yaml.SafeLoader`."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        duplicates = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        if duplicates:
            raise RejectedYAML(f"{', '.join(duplicates)}: given twice in the same place; keep one", node.start_mark)
        mapping = super().construct_mapping(node, deep)
        not_text = [key for key in mapping if not isinstance(key, str)]
        if not_text:
            raise RejectedYAML(f"{not_text[0]} cannot be a key, as it is not text; quote it", node.start_mark)
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See `yaml.SafeLoader`."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError):  # a number of thousands of digits, the 30th of February
            raise RejectedYAML("a number or date that cannot be read", node.start_mark) from None


def load(text: str) -> Any:
    """Parse a YAML document into plain Python types.

    Raises:
        yaml.YAMLError: the text is not YAML.
        RejectedYAML: it is nested too deeply, too large (including through nested aliases), or cyclic, or has a duplicate
            key, a key that is not text, or a value that cannot be read.
    """
    if len(text) > _CHARACTERS:
        raise RejectedYAML(f"{len(text):,} characters; at most {_CHARACTERS:,} are read. Is this the right file?")
    if not _PLAIN.fullmatch(text):
        _check_size(text)
    return yaml.load(text, Loader=_Loader)


def _check_size(text: str) -> None:
    """Reject a document by its parse events, which need neither memory nor recursion, whatever the document contains."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor of a collection, and the number of nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise RejectedYAML(f"alias *{event.anchor} refers to a collection that contains it", event.start_mark)
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
            raise RejectedYAML(f"more than {_NODES:,} values, counting aliases as what they stand for", event.start_mark)
