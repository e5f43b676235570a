"""Keeps credentials out of configs, files and messages: the only module that decides what is a secret.

    `redact`            returns text without secrets; every message, log line and text file passes through it
    `detach`, `attach`  remove the secrets from the address of a tracking server, the only setting that may contain any,
                        where it is read, and restore them where a connection is opened. Everything in between has the
                        address without secrets.

`redacted_output.guard_output` applies `redact` to the log records, warnings and tracebacks of a whole process.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote, quote_plus, unquote

from avvp_dist.text.address import HIDDEN, Address, parse, replace_urls

CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with ~/.aws/credentials, or give the machine a role"
)
TRACKING_VARIABLE = "AVVP_TRACKING_SECRET"
"""Environment variable with complete addresses of tracking servers, one per line, for the child processes of a process."""

_SECRET_NAME = re.compile(
    r"(?i)(token|secret|passw(or)?d|passphrase|credentials?|api_?key|(access|private|account|signing|encryption|auth)_?key"
    r"|signature|connection_string)$"
)
_SECRET_VARIABLE = re.compile(rf"{_SECRET_NAME.pattern}|(?i:_(key|pass|pwd|sas|auth|cookie)$)")
_VALUE = re.compile(r"=[^&\s\"',;]+")
_SECRET_KEY_BEFORE_VALUE = re.compile(
    r"(?i)(password|passwd|token|secret|signature|credential|access_?key|api_?key|awsaccesskeyid|\bsig|\bpwd)\Z"
)
_KEY_WINDOW = 40  # characters searched before "=" for a key, which keeps the search linear in long texts


class _State:
    """Secrets that this process has read; never written anywhere."""

    addresses: ClassVar[dict[str, str]] = {}  # address of a tracking server without secrets -> with secrets
    values: ClassVar[set[str]] = set()


def redact(text: str) -> str:
    """Return ``text`` without secrets: those of addresses in it, of the environment, and of configs that were read."""
    return _redact(text, _known_secrets())


def redact_all(value: Any) -> Any:
    """Return ``value`` with every string in its mappings, lists and tuples redacted."""
    known = _known_secrets()

    def walk(item: Any) -> Any:
        if isinstance(item, str):
            return _redact(item, known)
        if isinstance(item, Mapping):
            return {walk(key): walk(inner) for key, inner in item.items()}
        return type(item)(map(walk, item)) if type(item) in (list, tuple) else item

    return walk(value)


def holds_credentials(url: str) -> bool:
    """Whether a path or URL contains a user name, password, query value or fragment that may be secret."""
    chained = re.split(r"::(?=[A-Za-z][\w+.\-]*://)", url)  # fsspec's chained URLs
    return any(address.redacted() != address.without_secrets() for address in map(parse, chained) if address is not None)


def remember(*secrets: str) -> None:
    """Make `redact` hide these values from now on, wherever they occur."""
    for secret in secrets:
        for value in (secret, unquote(secret)):
            if _looks_secret(value):
                _State.values.update(_spellings(value))


def remember_secrets_in(content: Any) -> None:
    """`remember` the secrets of a parsed config: values of keys with secret names, and secrets of addresses."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if is_secret_name(str(key)) and isinstance(value, str | int):
                remember(str(value))
            remember_secrets_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            remember_secrets_in(value)
    elif isinstance(content, str) and "://" in content and (address := parse(content)):
        remember(*address.secrets)


def is_secret_name(key: str) -> bool:
    """Whether the name of a key marks its value as a secret."""
    return _SECRET_NAME.search(key) is not None


def detach(address: str) -> str:
    """Return the address of a tracking server without its secrets, which stay in this process's memory for `attach`."""
    parts = parse(address.strip(), greedy=True)
    if parts is None or (not parts.secrets and parts.user in (None, HIDDEN)):
        return address if parts is None else parts.without_secrets()
    public = parts.without_secrets()
    _State.addresses[public] = address.strip()
    remember(*parts.secrets, *_basic_auth(parts))
    return public


def attach(address: str) -> Address | None:
    """Return the complete form of ``address``, the inverse of `detach`.

    Its secrets come from a config of this process, from the parent process, or from MLFLOW_TRACKING_URI; None if none of
    them has the address.
    """
    known = _State.addresses.get(address)
    inherited = [*os.environ.get(TRACKING_VARIABLE, "").splitlines(), os.environ.get("MLFLOW_TRACKING_URI", "")]
    for candidate in [known] if known else filter(None, inherited):
        parts = parse(candidate, greedy=True)
        if parts is not None and parts.without_secrets() == address and (parts.secrets or parts.user):
            remember(*parts.secrets, *_basic_auth(parts))
            return parts
    return None


def child_environment() -> dict[str, str]:
    """Environment variables with which child processes can `attach` the same addresses; empty without secrets."""
    known = dict.fromkeys([*os.environ.get(TRACKING_VARIABLE, "").splitlines(), *_State.addresses.values()])
    return {TRACKING_VARIABLE: "\n".join(known)} if known else {}


def redact_setting(setting: str) -> str:
    """Return a ``key=value`` (or an option with its value) that can be stored.

    Addresses of tracking servers are detached, other secrets hidden.
    """
    key, equals, value = setting.partition("=")
    if not equals:
        return setting
    if key.startswith("--") and key != "--uri":
        return f"{key}={redact_setting(value)}"
    name = key.strip()
    if name in ("--uri", "tracking.uri", "tracking"):
        is_address = parse(value.strip(), greedy=True) is not None and not value.strip().startswith("{")
        return f"{key}={detach(value) if is_address else replace_urls(value, detach)}"
    if is_secret_name(name) and value:
        remember(value)
        return f"{key}='{HIDDEN}'"  # quoted, since it is parsed as YAML
    if not holds_credentials(value):
        return f"{key}={value}"
    remember_secrets_in(value)
    return f"{key}={redact(value)}"


def redact_command_line(arguments: list[str]) -> list[str]:
    """Apply `redact_setting` to each argument; the value of ``--uri`` can be an argument of its own."""
    return [
        detach(argument) if previous == "--uri" else redact_setting(argument)
        for previous, argument in zip(["", *arguments], arguments, strict=False)
    ]


def _redact(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    text = replace_urls(text, lambda url: address.redacted() if (address := parse(url)) else url)
    if "=" not in text:
        return text

    def hide(value: re.Match[str]) -> str:
        named = _SECRET_KEY_BEFORE_VALUE.search(text, max(0, value.start() - _KEY_WINDOW), value.start())
        return f"={HIDDEN}" if named else value[0]

    return _VALUE.sub(hide, text)


def _known_secrets() -> list[str]:
    """Secret values of this process and its environment, the longest first, since one can be part of another."""
    found = set(_State.values)
    for name, value in os.environ.items():
        if "://" in value:
            for part in value.split():
                address = parse(part, greedy=name in ("MLFLOW_TRACKING_URI", TRACKING_VARIABLE))
                for secret in address.secrets if address else ():
                    found.update(*(_spellings(text) for text in (secret, unquote(secret)) if _looks_secret(text)))
        elif _SECRET_VARIABLE.search(name) and _looks_secret(value) and not os.path.exists(value):
            found |= _spellings(value)
    return sorted(found, key=len, reverse=True)


def _looks_secret(value: str) -> bool:
    """Whether a value has the form of a secret; hiding a plain word or number would corrupt unrelated text."""
    if len(value) < 8 or not any(character.isalpha() for character in value):
        return False
    mixed = any(character.isdigit() for character in value) or value.lower() != value != value.upper()
    return mixed or len(value) >= 20 or re.fullmatch(r"[\w./-]+", value) is None


def _spellings(value: str) -> set[str]:
    """``value`` as it is written in plain text, URLs, JSON and Python."""
    return {value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1], repr(value)[1:-1]}


def _basic_auth(address: Address) -> list[str]:
    """User and password as an HTTP Basic authorization header contains them."""
    login = f"{unquote(address.user or '')}:{unquote(address.password or '')}"
    return [base64.b64encode(login.encode()).decode()] if address.password else []
