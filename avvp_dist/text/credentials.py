"""Keeps credentials out of configs, files and messages: the one place that knows what a secret looks like.

Three doors:
    `redact`            text without secrets: every message, log line and text file goes through it
    `detach`, `attach`  the address of a tracking server, which alone may hold a secret: taken apart where it is read, put
                        together again where a connection is opened. What is in between holds the address without it.
    `guard_output`      log records, warnings and tracebacks of a whole process, libraries included, go through `redact`

An address without secrets is scheme, host, port and path (and a few query parameters known to be harmless); user names,
passwords, other query values and fragments are secrets, since a token may stand in any of them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import quote, quote_plus, unquote

CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with ~/.aws/credentials, or give the machine a role"
)
TRACKING_VARIABLE = "AVVP_TRACKING_SECRET"
"""Environment variable by which a process hands whole addresses of tracking servers, one a line, to those it starts."""

_HIDDEN = "***"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*\Z")
_REST = re.compile(r"\S+")
_END = re.compile(r"[\"'<>`\\]")  # what ends a URL inside longer text
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:@/?#\[\]]*)(?::\d*)?(?:,[^\s:@/?#\[\],]+(?::\d*)?)*")
# schemes in which a name before the host says where something is
_USER_IS_PLACE = {"abfs", "abfss", "wasb", "wasbs", "ssh", "sftp", "hdfs", "webhdfs"}
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "adl", "file", "local", "memory"} | _USER_IS_PLACE  # "#" is part of a path
_HARMLESS = {
    "sslmode", "sslrootcert", "sslcert", "sslcrl", "ssl", "ssl_ca", "ssl_cert", "ssl_verify_cert", "charset", "timeout",
    "connect_timeout", "application_name", "client_encoding", "target_session_attrs", "driver", "check_same_thread", "mode",
    "keepalives", "keepalives_idle", "versionId", "version", "generation", "raw", "download",
}  # fmt: skip
_SECRET_NAME = re.compile(
    r"(?i)(token|secret|passw(or)?d|passphrase|credentials?|api_?key|(access|private|account|signing|encryption|auth)_?key"
    r"|signature|connection_string)$"
)
_SECRET_VARIABLE = re.compile(rf"{_SECRET_NAME.pattern}|(?i:_(key|pass|pwd|sas|auth|cookie)$)")
_VALUE = re.compile(r"=[^&\s\"',;]+")
_ITS_NAME = re.compile(
    r"(?i)(password|passwd|token|secret|signature|credential|access_?key|api_?key|awsaccesskeyid|\bsig|\bpwd)\Z"
)
_NEAR = 40  # characters that are looked at before a sign: a long text must not take long


class _State:
    """Secrets that this process has seen; never written anywhere."""

    whole: ClassVar[dict[str, str]] = {}  # a tracking server's address without secrets -> with them
    values: ClassVar[set[str]] = set()


@dataclass(frozen=True)
class Address:
    """A URL in its parts; ``user`` and ``password`` as they are written, None where there are none."""

    scheme: str
    host: str
    path: str
    user: str | None = None
    password: str | None = None
    query: tuple[tuple[str, str | None], ...] = ()
    fragment: str = ""

    @property
    def secrets(self) -> list[str]:
        """Values that must not be seen."""
        found = [value for name, value in self._hidden_query()] + [self.fragment, self.password or ""]
        if self.password is None and self.user and self.scheme.lower() not in _USER_IS_PLACE:
            found.append(self.user)
        return [value for value in found if value and value != _HIDDEN]

    def without_secrets(self) -> str:
        """The address without secrets; `redact` leaves it as it is."""
        shown = [(name, value) for name, value in self.query if name in _HARMLESS]
        place = f"{self.user}@" if self._user_stays() else ""
        return f"{self.scheme}://{place}{self.host}{self.path}" + _query(shown)

    def redacted(self) -> str:
        """The address with ``***`` in the place of each secret."""
        hidden = dict(self._hidden_query())
        shown = [
            (name if value is not None else _HIDDEN, _HIDDEN if name in hidden and value is not None else value)
            for name, value in self.query
        ]
        place = f"{self.user}@" if self._user_stays() else "" if self.user is None else f"{_HIDDEN}@"
        fragment = f"#{_HIDDEN}" if self.fragment else ""
        return f"{self.scheme}://{place}{self.host}{self.path}{_query(shown)}{fragment}"

    def with_secrets(self) -> str:
        """The address with secrets, encoded as URL libraries want it."""
        login = "" if self.user is None else quote(unquote(self.user), safe="")
        login += "" if self.password is None else f":{quote(unquote(self.password), safe='')}"
        return f"{self.scheme}://{login + '@' if login else ''}{self.host}{self.path}{_query(list(self.query))}"

    def _user_stays(self) -> bool:
        return self.user is not None and self.password is None and self.scheme.lower() in _USER_IS_PLACE

    def _hidden_query(self) -> list[tuple[str, str]]:
        return [(name, value if value is not None else name) for name, value in self.query if name not in _HARMLESS]


def parse(url: str, greedy: bool = False) -> Address | None:
    """The parts of one URL; None for what is none (a path, `databricks`, ``sqlite:`` without slashes).

    Passwords are often not encoded as they ought to be: what stands before the last ``@`` with a host behind it is taken for
    user and password, even where it holds ``/``, ``#``, ``?`` or ``@``.

    Args:
        url: the URL and nothing else.
        greedy: for a server's address: an ``@`` behind what might be a host belongs to the credentials, not to the path.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.\-]*", scheme):
        return None
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    sound = _HOST.fullmatch(authority.rpartition("@")[2]) is not None
    region = re.split(r"\?(?=[\w.\-]+=)", rest, maxsplit=1)[0] if sound else rest  # not into a query
    user, password = None, None
    if authority and ("@" in authority or not sound or greedy):
        for match in reversed(list(re.finditer("@", region))):
            host = re.split(r"[/?#]", rest[match.end() :], maxsplit=1)[0]
            if _HOST.fullmatch(host):
                user, colon, word = rest[: match.start()].partition(":")
                password, rest = (word if colon else None), rest[match.end() :]
                break
        else:
            if not sound and not greedy:  # a password that was cut off before its "@"
                user, colon, word = authority.partition(":")
                return Address(scheme, "", "", user, word if colon else None)
    return _split(scheme, rest, user, password)


def _split(scheme: str, rest: str, user: str | None, password: str | None) -> Address:
    found = re.match(r"([^/?#]*)(.*)", rest, re.DOTALL)
    assert found
    host, path = found.groups()
    fragment = query = ""
    if scheme.lower() in _OBJECT_STORES:  # both signs may be part of an object's name
        if re.search(r"\?[^=?/]+=", path):
            path, _, query = path.partition("?")
    else:
        path, _, fragment = path.partition("#")
        path, _, query = path.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    listed = tuple((name, value if equals else None) for name, equals, value in pairs)
    return Address(scheme, host, path, user, password, listed, fragment)


def _query(pairs: list[tuple[str, str | None]]) -> str:
    return "?" + "&".join(name if value is None else f"{name}={value}" for name, value in pairs) if pairs else ""


def redact(text: str) -> str:
    """``text`` without the secrets of addresses in it, of the environment, and of configs that this process has read."""
    return _redact(text, _known())


def redact_all(value: Any) -> Any:
    """``value`` with every text in its mappings, lists and tuples redacted."""
    known = _known()

    def walk(each: Any) -> Any:
        if isinstance(each, str):
            return _redact(each, known)
        if isinstance(each, Mapping):
            return {walk(key): walk(inner) for key, inner in each.items()}
        return type(each)(map(walk, each)) if type(each) in (list, tuple) else each

    return walk(value)


def holds_credentials(url: str) -> bool:
    """Whether a path or URL carries a user name, a password, a query value or a fragment that may be secret."""
    chained = re.split(r"::(?=[A-Za-z][\w+.\-]*://)", url)  # as fsspec has them
    return any(address.redacted() != address.without_secrets() for address in map(parse, chained) if address is not None)


def remember(*secrets: str) -> None:
    """Has `redact` know these values from now on, wherever they stand."""
    for secret in secrets:
        for value in (secret, unquote(secret)):
            if _telling(value):
                _State.values.update(_spellings(value))


def remember_secrets_in(content: Any) -> None:
    """The same for what a config that was read holds: values of keys named like secrets, and secrets of addresses."""
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
    """Whether a key's value is a secret by the key's name."""
    return _SECRET_NAME.search(key) is not None


def detach(address: str) -> str:
    """A tracking server's address without its secrets, which this process keeps in memory for `attach`."""
    parts = parse(address.strip(), greedy=True)
    if parts is None or (not parts.secrets and parts.user in (None, _HIDDEN)):
        return address if parts is None else parts.without_secrets()
    bare = parts.without_secrets()
    _State.whole[bare] = address.strip()
    remember(*parts.secrets, *_basic(parts))
    return bare


def attach(address: str) -> Address | None:
    """The whole address of ``address``: of a config of this process, its parent's, or MLFLOW_TRACKING_URI; None without."""
    known = _State.whole.get(address)
    given = [*os.environ.get(TRACKING_VARIABLE, "").splitlines(), os.environ.get("MLFLOW_TRACKING_URI", "")]
    for candidate in [known] if known else filter(None, given):
        parts = parse(candidate, greedy=True)
        if parts is not None and parts.without_secrets() == address and (parts.secrets or parts.user):
            remember(*parts.secrets, *_basic(parts))
            return parts
    return None


def child_environment() -> dict[str, str]:
    """Environment variables by which processes started here can `attach` what this one can; empty without secrets."""
    known = dict.fromkeys([*os.environ.get(TRACKING_VARIABLE, "").splitlines(), *_State.whole.values()])
    return {TRACKING_VARIABLE: "\n".join(known)} if known else {}


def redact_setting(setting: str) -> str:
    """A ``key=value`` (or an option with its value) as it may be kept: tracking addresses detached, other secrets hidden."""
    key, equals, value = setting.partition("=")
    if not equals:
        return setting
    if key.startswith("--") and key != "--uri":
        return f"{key}={redact_setting(value)}"
    name = key.strip()
    if name in ("--uri", "tracking.uri", "tracking"):
        whole = parse(value.strip(), greedy=True) is not None and not value.strip().startswith("{")
        return f"{key}={detach(value) if whole else _each_url(value, detach)}"
    if is_secret_name(name) and value:
        remember(value)
        return f"{key}='{_HIDDEN}'"  # quoted, since it is read as YAML
    if not holds_credentials(value):
        return f"{key}={value}"
    remember_secrets_in(value)
    return f"{key}={redact(value)}"


def redact_command_line(settings: list[str]) -> list[str]:
    """A command line as it may be seen; see `redact_setting`. The value of ``--uri`` may be an argument of its own."""
    return [
        detach(each) if before == "--uri" else redact_setting(each)
        for before, each in zip(["", *settings], settings, strict=False)
    ]


@contextlib.contextmanager
def redacted_errors() -> Iterator[None]:
    """Replaces an error whose traceback shows a secret: for code whose errors others write to files (Ray)."""
    try:
        yield
    except Exception as error:
        told = "".join(traceback.format_exception(error))
        if redact(told) == told:
            raise
        raise RuntimeError(redact(told)) from None


def guard_output() -> None:
    """Has every log record, warning and uncaught traceback of this process pass through `redact`; once is enough."""
    if getattr(logging.getLogRecordFactory(), "redacts", False):
        return
    logging.setLogRecordFactory(_guarded(logging.getLogRecordFactory()))
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: redact(plain(*args, **kwargs))
    sys.excepthook = _tell_uncaught
    threading.excepthook = lambda told: _tell_uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def _guarded(plain: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = plain(*args, **kwargs)
        try:
            message = made.getMessage()
        except Exception:  # arguments that do not fit: logging says so itself
            return made
        if redact(message) != message:
            made.msg, made.args = redact(message), ()
        if made.exc_info and made.exc_info[0]:
            told = "".join(traceback.format_exception(*made.exc_info)).rstrip()
            if redact(told) != told:
                made.exc_info, made.exc_text = None, redact(told)
        return made

    record.redacts = True  # type: ignore[attr-defined]
    return record


def _tell_uncaught(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, where))))


def _redact(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, _HIDDEN)
    text = _each_url(text, lambda url: address.redacted() if (address := parse(url)) else url)
    if "=" not in text:
        return text

    def hide(value: re.Match[str]) -> str:
        named = _ITS_NAME.search(text, max(0, value.start() - _NEAR), value.start())
        return f"={_HIDDEN}" if named else value[0]

    return _VALUE.sub(hide, text)


def _each_url(text: str, change: Callable[[str], str]) -> str:
    """``text`` with every URL in it changed."""
    parts, done = [], 0
    for sign in re.finditer("://", text):
        scheme = _SCHEME.search(text, max(done, sign.start() - _NEAR), sign.start())
        rest = _REST.match(text, sign.end())
        if sign.start() < done or scheme is None or rest is None:
            continue
        end = sign.end() + _length(rest[0])
        parts += [text[done : scheme.start()], change(text[scheme.start() : end])]
        done = end
    return "".join([*parts, text[done:]])


def _length(rest: str) -> int:
    """Of a URL at the start of a longer text: it ends at a quote, unless that is part of a password, or before a stop."""
    end = found.start() if (found := _END.search(rest)) else len(rest)
    authority = re.split(r"[/?#]", rest[:end], maxsplit=1)[0]
    if "@" not in rest[:end] and not _HOST.fullmatch(authority) and "@" in rest:
        behind = _END.search(rest, rest.rindex("@"))
        end = behind.start() if behind else len(rest)
    return len(rest[:end].rstrip(".,;:)]}")) or end


def _known() -> list[str]:
    """Secret values, the longest first: one may be part of another."""
    found = set(_State.values)
    for name, value in os.environ.items():
        if "://" in value:
            for part in value.split():
                address = parse(part, greedy=name == "MLFLOW_TRACKING_URI" or name == TRACKING_VARIABLE)
                for secret in address.secrets if address else ():
                    found.update(*(_spellings(each) for each in (secret, unquote(secret)) if _telling(each)))
        elif _SECRET_VARIABLE.search(name) and _telling(value) and not os.path.exists(value):
            found |= _spellings(value)
    return sorted(found, key=len, reverse=True)


def _telling(value: str) -> bool:
    """Whether a value is a secret by its looks; a word or a number would be struck out of texts that mean something else."""
    if len(value) < 8 or not any(sign.isalpha() for sign in value):
        return False
    mixed = any(sign.isdigit() for sign in value) or value.lower() != value != value.upper()
    return mixed or len(value) >= 20 or re.fullmatch(r"[\w./-]+", value) is None


def _spellings(value: str) -> set[str]:
    return {value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1], repr(value)[1:-1]}


def _basic(address: Address) -> list[str]:
    """What an HTTP header makes of user and password."""
    login = f"{unquote(address.user or '')}:{unquote(address.password or '')}"
    return [base64.b64encode(login.encode()).decode()] if address.password else []
