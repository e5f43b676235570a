"""Configuration: sections, YAML, ``key=value`` overrides, and error messages that name the key and the remedy.

Each section is a pydantic model beside the class that it configures; `avvp_dist.experiments.recipe` composes them.
"""

from __future__ import annotations

import json
import re
import types as pytypes
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from avvp_dist.errors import ConfigError
from avvp_dist.text import checked_yaml
from avvp_dist.text.credentials import (
    CREDENTIALS_HINT,
    holds_credentials,
    is_secret_name,
    redact,
    redact_setting,
    remember_secrets_in,
)
from avvp_dist.text.suggest import did_you_mean
from avvp_dist.text.urls import malformed

LARGEST = 2**63 - 1
"""Largest integer that a setting accepts."""


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, finite numbers only; each field's docstring is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class PathMarker:
    """Marks a string field that can name a local file or folder, so that a relative path in it can be made absolute.

    Attributes:
        absolute: makes a value absolute if the field is neither a plain path nor a URL; None for `storage.absolute`.
    """

    absolute: Callable[[str], str] | None = None


def _checked_url(url: str) -> str:
    if holds_credentials(url):
        raise ValueError(f"credentials must not be part of a URL; {CREDENTIALS_HINT}")
    problem = malformed(url)
    if problem:
        raise ValueError(problem)
    return url


Url = Annotated[str, AfterValidator(_checked_url), PathMarker()]
"""A path or URL. Malformed URLs and URLs with credentials are refused.

All fields that hold paths must have this type or another one with a `PathMarker`, see `convert_paths`."""
Text = Annotated[str, AfterValidator(redact)]
"""Free text; credentials in it are redacted, because configs are written to files."""
KeyValue = Annotated[str, AfterValidator(redact_setting), AfterValidator(redact)]
"""A ``key=value`` override without credentials; those of a tracking server are kept in memory only."""


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse a YAML mapping into a plain dict.

    Raises:
        ConfigError: the text is not YAML, not a mapping, or refused by `checked_yaml.load`; names ``source`` and the line.
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
    """Describe a YAML error and its position without quoting the text, which may contain a password."""
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    message = ": ".join(part for part in parts if part) or "cannot be read"
    # names of tokens in <> and single characters are the parser's own words; other quoted text is from the file
    harmless = re.compile(r".<[a-z ]+>.|.(\\?.)?.")
    message = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: quoted[0] if harmless.fullmatch(quoted[0]) else "...", message)
    mark = getattr(error, "problem_mark", None)
    return message if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {message}"


def parse_overrides(overrides: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    """Parse ``["optim.lr=1e-3", ...]`` into ``[(("optim", "lr"), 0.001), ...]``; values are YAML.

    Raises:
        ConfigError: all overrides that cannot be parsed.
    """
    parsed, problems = [], []
    for override in map(redact_setting, overrides):
        key, separator, value = override.partition("=")
        path = tuple(key.strip().split("."))
        if not separator or not all(path):
            problems.append(f"{redact(override)!r}: expected key=value, e.g. optim.lr=0.0003")
            continue
        try:
            parsed.append((path, _scalar(value)))
        except checked_yaml.RejectedYAML as error:
            problems.append(f"{key.strip()}: {error}")
        except yaml.YAMLError:
            # the message does not quote the value, which may be a secret
            problems.append(f"{key.strip()}: the value is not valid YAML; quote it for YAML as well as for the shell")
    if problems:
        raise ConfigError(problems, "invalid overrides")
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
    """Return the ``key=value`` override that `parse_overrides` parses into ``key`` and ``value``."""
    plain = isinstance(value, str) and value == value.strip() and _reads_as(value)
    return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"


def _reads_as(text: str) -> bool:
    try:
        return _scalar(text) == text
    except yaml.YAMLError:
        return False


def convert_paths(kind: Any, value: Any, convert: Callable[[str, PathMarker], str], metadata: Sequence[Any] = ()) -> Any:
    """Return ``value`` with ``convert`` applied to each string that a `PathMarker` marks.

    Args:
        kind: type of ``value``: a section, whose content may be incomplete, or the annotation of a field.
        value: content as parsed from YAML or dumped.
        convert: maps a string and its marker to the new string; must be idempotent.
        metadata: metadata of ``kind`` if pydantic has separated it from the annotation.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return convert_paths(arguments[0], value, convert, (*metadata, *arguments[1:]))
    marker = next((item for item in metadata if isinstance(item, PathMarker)), None)
    if marker and isinstance(value, str):
        return convert(value, marker)
    if origin in (Union, pytypes.UnionType):
        for member in arguments:
            value = convert_paths(member, value, convert, metadata)
        return value
    if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, Mapping):
        fields = kind.model_fields
        variants = get_args(fields["name"].annotation) if "name" in fields else ()
        if variants and value.get("name", variants[0]) not in variants:
            return value  # belongs to another member of the union
        return {
            key: convert_paths(fields[key].annotation, child, convert, fields[key].metadata) if key in fields else child
            for key, child in value.items()
        }
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return type(value)(convert_paths(arguments[0], child, convert) for child in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: convert_paths(arguments[1], child, convert) for key, child in value.items()}
    return value


def merge(
    base: Mapping[str, Any],
    overrides: Iterable[tuple[tuple[str, ...], Any]],
    shorthand: Mapping[str, str],
    variants: Collection[str] = (),
) -> dict[str, Any]:
    """Return ``base`` with the overrides applied.

    Args:
        base: content of a recipe.
        overrides: from `parse_overrides`.
        shorthand: for some sections, the key that a bare value stands for: with ``{"launch": "name"}``, ``launch=ray`` means
            ``launch.name=ray``.
        variants: sections whose ``name`` selects a class with keys of its own, such as a network. Another name there
            discards the keys of ``base``, see `discarded`. Names are applied before all other overrides, in any order.
    """
    merged = _copy(base)
    assignments = []
    for path, value in overrides:
        key = shorthand.get(path[0])
        if len(path) == 1 and key and not isinstance(value, Mapping):
            path = (path[0], key)
        assignments.append((path, value))
    names = {path[0]: value for path, value in assignments if path[1:] == ("name",) and path[0] in variants}
    for section, name in names.items():
        content = merged.get(section)
        if isinstance(content, dict) and content.get("name", name) != name:
            merged[section] = {}
    assignments.sort(key=lambda assignment: assignment[0][1:] != ("name",))  # stable: keeps the order of the others
    for path, value in assignments:
        _assign(merged, path, value, shorthand)
    return merged


def discarded(base: Mapping[str, Any], merged: Mapping[str, Any], section: str) -> dict[str, Any] | None:
    """Return the keys of a section of ``base`` that `merge` discarded and no override set again.

    Returns:
        keys and values; None if the section still has the same name.
    """
    before, after = base.get(section), merged.get(section)
    if not isinstance(before, Mapping) or not isinstance(after, Mapping) or "name" not in before:
        return None
    if before["name"] == after.get("name"):
        return None
    return {key: value for key, value in before.items() if key not in after}


def _assign(tree: dict[str, Any], path: tuple[str, ...], value: Any, shorthand: Mapping[str, str]) -> None:
    *parents, last = path
    node = tree
    for depth, name in enumerate(parents):
        child = node.get(name)
        if not isinstance(child, dict):
            key = shorthand.get(name) if depth == 0 else None
            child = {key: child} if key and child is not None else {}
            node[name] = child
        node = child
    node[last] = value


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def validate(section: type[S], content: Mapping[str, Any], source: str) -> S:
    """Validate ``content`` as a section.

    Raises:
        ConfigError: all unknown keys, missing keys and invalid values, with full path and valid names.
    """
    remember_secrets_in(content)
    too_large = list(_too_large(content))
    if too_large:
        raise ConfigError(too_large, f"{source}: numbers out of range")
    try:
        return section.model_validate(content)
    except ValidationError as error:
        problems = [_explain(section, content, detail) for detail in error.errors(include_url=False)]
        raise ConfigError(problems, f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}") from None


def _too_large(content: Any, path: str = "") -> Iterable[str]:
    """Yield a problem for each integer beyond 64 bits, which torch, NumPy and pyarrow do not support."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _too_large(value, f"{path}.{key}".lstrip("."))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _too_large(value, f"{path}.{number}")
    elif isinstance(content, int) and abs(content) > LARGEST:
        shown = str(content) if content.bit_length() < 200 else f"a number of {content.bit_length()} bits"
        yield f"{path}: too large; expected an integer of at most {LARGEST}, got {shown}"


def _explain(section: type[Section], content: Mapping[str, Any], detail: Any) -> str:
    path, holder = _walk(section, content, detail["loc"])
    name = ".".join(path) or "(whole config)"
    given = detail.get("input")
    if detail["type"] == "extra_forbidden":
        valid = sorted(holder.model_fields) if holder else []
        hint = did_you_mean(path[-1], valid)
        return f"{name}: unknown key{_of_variant(path, holder)}{hint} Valid names: {', '.join(valid)}"
    if detail["type"] == "missing":
        return f"{name}: missing; this key is required"
    if detail["type"] == "union_tag_not_found":
        variants = _sections(section.model_fields[path[-1]].annotation)
        names = ", ".join(repr(get_args(variant.model_fields["name"].annotation)[0]) for variant in variants)
        return f"{name}.name: missing; this key is required. Valid names: {names}"
    if detail["type"] == "union_tag_invalid":
        valid_tags, tag = detail["ctx"]["expected_tags"], detail["ctx"]["tag"]
        return f"{name}.name: unknown {name} {tag!r}. Valid names: {valid_tags}".replace("''", "'")
    if detail["type"] == "model_type":
        return f"{name}: is a section; set its keys instead, e.g. {name}.{_example_key(holder, path[-1])}=..."
    message = detail["msg"].removeprefix("Value error, ")
    shown = not isinstance(given, Mapping) and not any(map(is_secret_name, path)) and repr(given) not in message
    return f"{name}: {message}" + (f", got {redact(repr(given))}" if shown else "")


def _example_key(holder: type[Section] | None, name: str) -> str:
    """Return a key of the section ``name`` of ``holder``."""
    sections = _sections(holder.model_fields[name].annotation) if holder and name in holder.model_fields else ()
    return next(iter(sections[0].model_fields)) if sections else "KEY"


def _of_variant(path: Sequence[str], holder: type[Section] | None) -> str:
    """For a key of one of several variants, such as a network: `` of model 'han'``; else empty."""
    field = holder.model_fields.get("name") if holder else None
    names = get_args(field.annotation) if field else ()
    return f" of {path[-2]} {names[0]!r}" if len(names) == 1 and len(path) > 1 else ""


def _walk(section: type[Section], content: Any, location: Sequence[int | str]) -> tuple[list[str], type[Section] | None]:
    """Return the path of a pydantic location, without union tags, and the section that holds its last key."""
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
