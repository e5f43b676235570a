"""Keeps credentials out of configs, URLs and messages."""

from __future__ import annotations

import re

WHERE_THEY_GO = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with ~/.aws/credentials, or give the machine a role"
)
_PASSWORD = re.compile(r"//[^/@\s]*:[^@\s]*@")  # a password may hold a slash: rather too much than too little
_SIGNED = re.compile(r"(?i)\b(password|token|secret|signature|credential|sig|awsaccesskeyid)=[^&\s]+")


def redact(text: str) -> str:
    """``text`` without the passwords, tokens and signatures of addresses in it."""
    return _SIGNED.sub(r"\1=***", _PASSWORD.sub("//***@", text))


def holds_credentials(url: str) -> bool:
    """Whether a URL carries a password or a signature."""
    place, _, query = url.partition("?")
    return re.search(r"//[^/@\s]*:[^/@\s]*@", place) is not None or _SIGNED.search(query) is not None
