"""URLs taken apart, with and without the secrets in them, and URLs found inside longer text.

An address without secrets consists of scheme, host, port, path, and the few query parameters that are known to be harmless.
User names, passwords, other query values and fragments count as secrets, because any of them can hold a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, unquote

HIDDEN = "***"
"""Stands in place of a secret."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*\Z")
_SCHEME_WINDOW = 40  # characters searched before "://" for the scheme, which keeps the search linear in long texts
_REST = re.compile(r"\S+")
_END = re.compile(r"[\"'<>`\\]")  # characters that end a URL inside longer text
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:@/?#\[\]]*)(?::\d*)?(?:,[^\s:@/?#\[\],]+(?::\d*)?)*")
# schemes in which the name before the host is part of the location, not a login
_LOCATION_USERS = {"abfs", "abfss", "wasb", "wasbs", "ssh", "sftp", "hdfs", "webhdfs"}
_OBJECT_STORES = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "adl",
    "file",
    "local",
    "memory",
} | _LOCATION_USERS  # "#" belongs to a path
_HARMLESS = {
    "sslmode", "sslrootcert", "sslcert", "sslcrl", "ssl", "ssl_ca", "ssl_cert", "ssl_verify_cert", "charset", "timeout",
    "connect_timeout", "application_name", "client_encoding", "target_session_attrs", "driver", "check_same_thread", "mode",
    "keepalives", "keepalives_idle", "versionId", "version", "generation", "raw", "download",
}  # fmt: skip


@dataclass(frozen=True)
class Address:
    """The parts of a URL; ``user`` and ``password`` as written, None if absent."""

    scheme: str
    host: str
    path: str
    user: str | None = None
    password: str | None = None
    query: tuple[tuple[str, str | None], ...] = ()
    fragment: str = ""

    @property
    def secrets(self) -> list[str]:
        """Values that must not be shown."""
        found = [value for name, value in self._hidden_query()] + [self.fragment, self.password or ""]
        if self.password is None and self.user and self.scheme.lower() not in _LOCATION_USERS:
            found.append(self.user)
        return [value for value in found if value and value != HIDDEN]

    def without_secrets(self) -> str:
        """The address without its secrets; `credentials.redact` does not change it."""
        shown = [(name, value) for name, value in self.query if name in _HARMLESS]
        user = f"{self.user}@" if self._user_is_shown() else ""
        return f"{self.scheme}://{user}{self.host}{self.path}" + _join_query(shown)

    def redacted(self) -> str:
        """The address with ``***`` in place of each secret."""
        hidden = dict(self._hidden_query())
        shown = [
            (name if value is not None else HIDDEN, HIDDEN if name in hidden and value is not None else value)
            for name, value in self.query
        ]
        user = f"{self.user}@" if self._user_is_shown() else "" if self.user is None else f"{HIDDEN}@"
        fragment = f"#{HIDDEN}" if self.fragment else ""
        return f"{self.scheme}://{user}{self.host}{self.path}{_join_query(shown)}{fragment}"

    def with_secrets(self) -> str:
        """The complete address, percent-encoded as URL libraries require."""
        login = "" if self.user is None else quote(unquote(self.user), safe="")
        login += "" if self.password is None else f":{quote(unquote(self.password), safe='')}"
        return f"{self.scheme}://{login + '@' if login else ''}{self.host}{self.path}{_join_query(list(self.query))}"

    def _user_is_shown(self) -> bool:
        return self.user is not None and self.password is None and self.scheme.lower() in _LOCATION_USERS

    def _hidden_query(self) -> list[tuple[str, str]]:
        return [(name, value if value is not None else name) for name, value in self.query if name not in _HARMLESS]


def parse(url: str, greedy: bool = False) -> Address | None:
    """Split one URL into its parts; None for anything else (a path, `databricks`, ``sqlite:`` without slashes).

    Passwords are often not percent-encoded. Therefore everything before the last ``@`` that is followed by a valid host
    counts as user and password, even if it contains ``/``, ``#``, ``?`` or ``@``.

    Args:
        url: the URL and nothing else.
        greedy: for the address of a server: an ``@`` after a possible host belongs to the credentials, not to the path.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.\-]*", scheme):
        return None
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    valid_host = _HOST.fullmatch(authority.rpartition("@")[2]) is not None
    region = re.split(r"\?(?=[\w.\-]+=)", rest, maxsplit=1)[0] if valid_host else rest  # excludes the query
    user, password = None, None
    if authority and ("@" in authority or not valid_host or greedy):
        for match in reversed(list(re.finditer("@", region))):
            host = re.split(r"[/?#]", rest[match.end() :], maxsplit=1)[0]
            if _HOST.fullmatch(host):
                user, colon, word = rest[: match.start()].partition(":")
                password, rest = (word if colon else None), rest[match.end() :]
                break
        else:
            if not valid_host and not greedy:  # the text was cut off inside the password, before its "@"
                user, colon, word = authority.partition(":")
                return Address(scheme, "", "", user, word if colon else None)
    return _split_location(scheme, rest, user, password)


def replace_urls(text: str, replace: Callable[[str], str]) -> str:
    """Return ``text`` with ``replace`` applied to every URL in it."""
    parts, done = [], 0
    for separator in re.finditer("://", text):
        scheme = _SCHEME.search(text, max(done, separator.start() - _SCHEME_WINDOW), separator.start())
        rest = _REST.match(text, separator.end())
        if separator.start() < done or scheme is None or rest is None:
            continue
        end = separator.end() + _url_length(rest[0])
        parts += [text[done : scheme.start()], replace(text[scheme.start() : end])]
        done = end
    return "".join([*parts, text[done:]])


def _split_location(scheme: str, rest: str, user: str | None, password: str | None) -> Address:
    found = re.match(r"([^/?#]*)(.*)", rest, re.DOTALL)
    assert found
    host, path = found.groups()
    fragment = query = ""
    if scheme.lower() in _OBJECT_STORES:  # "?" and "#" can be part of an object's name
        if re.search(r"\?[^=?/]+=", path):
            path, _, query = path.partition("?")
    else:
        path, _, fragment = path.partition("#")
        path, _, query = path.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    listed = tuple((name, value if equals else None) for name, equals, value in pairs)
    return Address(scheme, host, path, user, password, listed, fragment)


def _join_query(pairs: list[tuple[str, str | None]]) -> str:
    return "?" + "&".join(name if value is None else f"{name}={value}" for name, value in pairs) if pairs else ""


def _url_length(rest: str) -> int:
    """Length of the URL at the start of a longer text.

    The URL ends at a quote, unless that quote is part of a password, and excludes final punctuation.
    """
    end = found.start() if (found := _END.search(rest)) else len(rest)
    authority = re.split(r"[/?#]", rest[:end], maxsplit=1)[0]
    if "@" not in rest[:end] and not _HOST.fullmatch(authority) and "@" in rest:
        after_login = _END.search(rest, rest.rindex("@"))
        end = after_login.start() if after_login else len(rest)
    return len(rest[:end].rstrip(".,;:)]}")) or end
