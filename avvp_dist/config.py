"""How a configuration is made: sections, YAML, ``key=value`` overrides, and errors a person can act on.

Each section is a pydantic model beside the class it configures; `avvp_dist.experiments.recipe` composes them.
"""

from __future__ import annotations

import json
import re
import types as pytypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from avvp_dist.errors import ConfigError
from avvp_dist.text import checked_yaml
from avvp_dist.text.credentials import WHERE_THEY_GO, holds_credentials, names_a_secret, redact, remember_in, without_secrets
from avvp_dist.text.suggest import did_you_mean
from avvp_dist.text.urls import malformed

LARGEST = 2**63 - 1
"""Largest whole number that a setting takes."""


class Section(BaseModel):
    """Base of every section: no unknown keys, finite numbers, no change after it was made, help text under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class PathMarker:
    """Marks a string field that may name a local file or folder, so that a relative path in it can be made absolute.

    Attributes:
        absolute: how, for a field that is neither a plain path nor a URL; None for `storage.absolute`.
    """

    absolute: Callable[[str], str] | None = None


def _usable(url: str) -> str:
    if holds_credentials(url):
        raise ValueError(f"credentials do not belong into a URL; {WHERE_THEY_GO}")
    wrong = malformed(url)
    if wrong:
        raise ValueError(wrong)
    return url


Url = Annotated[str, AfterValidator(_usable), PathMarker()]
"""A path or URL; one with credentials in it is refused, and so is what cannot be one.

Every field that holds one is annotated so: see `convert_paths`."""
Text = Annotated[str, AfterValidator(redact)]
"""Free text, which is written down without the credentials that may stand in it."""
KeyValue = Annotated[str, AfterValidator(without_secrets), AfterValidator(redact)]
"""A ``key=value`` that is written down, without credentials; those of a tracking server are kept in memory."""


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A YAML mapping as a plain dict.

    Raises:
        ConfigError: not YAML, not a mapping, or refused by `checked_yaml.load`; names ``source`` and the line.
    """
    try:
        content = checked_yaml.load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {_yaml_problem(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected keys with values, got {type(content).__name__}")
    return content


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without any of the text: there may be a password in it."""
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    said = ": ".join(part for part in parts if part) or "cannot be read"
    # YAML's own words for tokens stand in <>, single characters are what a parser stumbled over
    harmless = re.compile(r".<[a-z ]+>.|.(\\?.)?.")
    said = re.sub(r"'[^']*'|\"[^\"]*\"", lambda each: each[0] if harmless.fullmatch(each[0]) else "...", said)
    mark = getattr(error, "problem_mark", None)
    return said if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {said}"


def parse_overrides(overrides: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    """``["optim.lr=1e-3", ...]`` as ``[(("optim", "lr"), 0.001), ...]``; values are read as YAML.

    Raises:
        ConfigError: every override without a key or an ``=``, together.
    """
    parsed, problems = [], []
    for override in map(without_secrets, overrides):
        key, separator, value = override.partition("=")
        path = tuple(key.strip().split("."))
        if not separator or not all(path):
            problems.append(f"{redact(override)!r}: expected key=value, e.g. optim.lr=0.0003")
            continue
        try:
            parsed.append((path, _scalar(value)))
        except checked_yaml.Refused as error:
            problems.append(f"{key.strip()}: {error}")
        except yaml.YAMLError:
            # without the value, which may be a secret
            problems.append(f"{key.strip()}: the value is not valid YAML; quote it for YAML as well as for the shell")
    if problems:
        raise ConfigError(problems, "overrides that cannot be read")
    return parsed


def _scalar(text: str) -> Any:
    value = checked_yaml.load(text) if text else None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def assignment(key: str, value: Any) -> str:
    """``key=value`` that `parse_overrides` reads back."""
    plain = isinstance(value, str) and value == value.strip() and _reads_as(value)
    return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"


def _reads_as(text: str) -> bool:
    try:
        return _scalar(text) == text
    except yaml.YAMLError:
        return False


def convert_paths(kind: Any, value: Any, convert: Callable[[str, PathMarker], str], marks: Sequence[Any] = ()) -> Any:
    """``value`` with ``convert`` applied to each string in it that a `PathMarker` marks.

    Args:
        kind: type of ``value``: a section, whose content may be incomplete, or the annotation of a field.
        value: content as read from YAML or dumped.
        convert: given the string and its mark, what to put in its place; must leave what it returned alone.
        marks: metadata of ``kind``, where it was taken off the annotation.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return convert_paths(arguments[0], value, convert, (*marks, *arguments[1:]))
    mark = next((each for each in marks if isinstance(each, PathMarker)), None)
    if mark and isinstance(value, str):
        return convert(value, mark)
    if origin in (Union, pytypes.UnionType):
        for member in arguments:
            value = convert_paths(member, value, convert, marks)
        return value
    if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, Mapping):
        fields = kind.model_fields
        variants = get_args(fields["name"].annotation) if "name" in fields else ()
        if variants and value.get("name", variants[0]) not in variants:
            return value  # of another member of the union
        return {
            key: convert_paths(fields[key].annotation, child, convert, fields[key].metadata) if key in fields else child
            for key, child in value.items()
        }
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return type(value)(convert_paths(arguments[0], child, convert) for child in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: convert_paths(arguments[1], child, convert) for key, child in value.items()}
    return value


def merge(base: Mapping[str, Any], overrides: Iterable[tuple[tuple[str, ...], Any]], shorthand: Mapping[str, str]) -> dict:
    """``base`` with each override put in its place.

    ``shorthand`` names, for a section, the key that a bare value stands for: ``{"launch": "name"}`` lets ``launch=ray`` mean
    ``launch.name=ray``. A new ``name`` in such a section picks another variant of it, so the old variant's keys go; variants
    are picked before anything else is put, so their keys may stand before or after.
    """
    merged = _copy(base)
    places = []
    for path, value in overrides:
        key = shorthand.get(path[0])
        if len(path) == 1 and key and not isinstance(value, Mapping):
            path = (path[0], key)
        places.append((path, value))
    places.sort(key=lambda place: place[0][1:] != ("name",))  # keeps the order of the others
    for path, value in places:
        _put(merged, path, value, shorthand)
    return merged


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any, shorthand: Mapping[str, str]) -> None:
    *parents, last = path
    node = tree
    for depth, name in enumerate(parents):
        child = node.get(name)
        if not isinstance(child, dict):
            key = shorthand.get(name) if depth == 0 else None
            child = {key: child} if key and child is not None else {}
            node[name] = child
        node = child
    if last == "name" and shorthand.get(path[0]) == "name" and "name" in node and node["name"] != value:
        node.clear()
    node[last] = value


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def validate(section: type[S], content: Mapping[str, Any], source: str) -> S:
    """``content`` as a section.

    Raises:
        ConfigError: every unknown key, missing key and value out of range at once, with full path and valid names.
    """
    remember_in(content)
    too_large = list(_too_large(content))
    if too_large:
        raise ConfigError(too_large, f"{source}: numbers that no setting takes")
    try:
        return section.model_validate(content)
    except ValidationError as error:
        problems = [_explain(section, content, detail) for detail in error.errors(include_url=False)]
        raise ConfigError(problems, f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}") from None


def _too_large(content: Any, path: str = "") -> Iterable[str]:
    """Whole numbers beyond 64 bits, which torch, NumPy and pyarrow take nowhere."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _too_large(value, f"{path}.{key}".lstrip("."))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _too_large(value, f"{path}.{number}")
    elif isinstance(content, int) and abs(content) > LARGEST:
        shown = str(content) if content.bit_length() < 200 else f"a number of {content.bit_length()} bits"
        yield f"{path}: too large, a whole number of at most {LARGEST} is meant, got {shown}"


def _explain(section: type[Section], content: Mapping[str, Any], detail: Any) -> str:
    path, holder = _walk(section, content, detail["loc"])
    name = ".".join(path) or "(whole config)"
    given = detail.get("input")
    if detail["type"] == "extra_forbidden":
        valid = sorted(holder.model_fields) if holder else []
        hint = did_you_mean(path[-1], valid)
        return f"{name}: unknown key{hint} Valid names: {', '.join(valid)}"
    if detail["type"] == "missing":
        return f"{name}: missing; give it as {name}=..."
    if detail["type"] == "union_tag_not_found":
        variants = _sections(section.model_fields[path[-1]].annotation)
        names = ", ".join(repr(get_args(variant.model_fields["name"].annotation)[0]) for variant in variants)
        return f"{name}.name: missing; give it as {name}=... Valid names: {names}"
    if detail["type"] == "union_tag_invalid":
        valid_tags, tag = detail["ctx"]["expected_tags"], detail["ctx"]["tag"]
        return f"{name}.name: unknown {name} {tag!r}. Valid names: {valid_tags}".replace("''", "'")
    message = detail["msg"].removeprefix("Value error, ")
    shown = not isinstance(given, Mapping) and not any(map(names_a_secret, path))
    return f"{name}: {message}" + (f", got {redact(repr(given))}" if shown else "")


def _walk(section: type[Section], content: Any, location: Sequence[int | str]) -> tuple[list[str], type[Section] | None]:
    """The dotted path of a pydantic location, without union tags, and the section that holds its last key."""
    path: list[str] = []
    holder: type[Section] | None = section
    inner: type[Section] | None = section
    for part in location:
        members = (
            _sections(inner.model_fields[path[-1]].annotation) if inner and path and path[-1] in inner.model_fields else ()
        )
        if members and isinstance(content, Mapping) and part == content.get("name") and len(members) > 1:
            holder = inner = next(m for m in members if part in get_args(m.model_fields["name"].annotation))
            continue  # the tag of a union of sections, not a key
        if len(members) == 1:
            inner = members[0]
        if inner is not None and path:
            holder = inner
        path.append(str(part))
        content = content.get(part) if isinstance(content, Mapping) else None
    return path, holder


def _sections(annotation: Any) -> tuple[type[Section], ...]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    if get_origin(annotation) in (Annotated, Union, pytypes.UnionType):
        return tuple(found for argument in get_args(annotation) for found in _sections(argument))
    return ()
