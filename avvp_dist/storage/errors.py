"""Errors of object storage: which of them are retried, and what the others report.

botocore itself retries (storage.retries times, with growing delays) after a 500, 502, 503, 504 or a known code for too many
requests. `call_with_retries` adds what botocore does not retry: responses that break off (a truncated body, a connection
reset, a stall), and responses that mean "not now" (408, 409, 425, 429). After an expired session token, credentials are read
once more from their source, since the token's file may have been renewed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from avvp_dist.errors import AvvpError, StorageError
from avvp_dist.text.credentials import CREDENTIALS_HINT, redact

T = TypeVar("T")

LOGGER = logging.getLogger(__name__)

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_UNKNOWN_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"} | _EXPIRED
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "TokenRetrievalError",
    "SSOError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "MetadataRetrievalError", "InvalidConfigError",
    "ConfigParseError",
}  # fmt: skip
_OTHER_REGION = {
    "PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "307", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}  # fmt: skip
_UNREACHABLE = {"EndpointConnectionError", "ConnectTimeoutError", "SSLError", "ProxyConnectionError"}
_BY_BOTOCORE = _UNREACHABLE | {"ConnectionClosedError", "ReadTimeoutError"}  # raised after botocore's own attempts
_PERMANENT = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
)
_TEMPORARY = {408, 409, 425, 429}  # and 500 and above
# conflicts with an existing object or state, which do not resolve themselves
_LASTING_CONFLICTS = {
    "BucketAlreadyExists", "BucketAlreadyOwnedByYou", "BucketNotEmpty", "InvalidBucketState", "RestoreAlreadyInProgress",
    "ObjectAlreadyInActiveTierError", "FileAlreadyExists",
}  # fmt: skip


def call_with_retries(
    call: Callable[[], T], url: str, doing: str, retries: int, renew: Callable[[], None] = lambda: None
) -> T:
    """Return the result of ``call``, which must be safe to repeat: it reads, lists, or writes a whole object.

    Args:
        call: sends the request.
        url: its target, for messages.
        doing: "read", "write", ..., for messages.
        retries: how often a response that broke off, or that means "not now", is requested again.
        renew: makes ``call`` read its credentials again; called once, if the store reports that they have expired.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: the store refused, or no attempt got a complete response.
    """
    started = 0

    def counted() -> T:
        nonlocal started
        started += 1
        return call()

    retrying = Retrying(
        stop=stop_after_attempt(retries + 1),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        retry=retry_if_exception(_is_retryable),
        before_sleep=lambda state: _log_retry(state, url, doing),
        reraise=True,
    )

    def call_with_renewed_credentials() -> T:
        try:
            return retrying(counted)
        except Exception as error:
            if _code(error) not in _EXPIRED | {"400"}:  # the response to a HEAD request has no body, only this code
                raise
            LOGGER.warning("%s: the token may have expired (%s), reading credentials again", redact(url), _code(error))
            renew()
            return retrying(counted)

    try:
        return call_with_renewed_credentials()
    except AvvpError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket":
            raise
        raise _storage_error(error, url, doing, started, retries) from error


def unreachable(url: str, endpoint: str, reason: object) -> StorageError:
    """The error for a store whose address does not answer."""
    return StorageError(
        f"{redact(url)}: cannot connect to {redact(endpoint)} ({reason}); is the server running, and is storage.endpoint "
        "(AWS_ENDPOINT_URL) correct?",
        transient=True,
    )


def precondition_failed(error: BaseException) -> bool:
    """Whether a store refused a write because the object exists or is being written."""
    return _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict") or isinstance(error, FileExistsError)


def rejects_conditional_writes(error: BaseException) -> bool:
    """Whether a store refused a request because it does not implement its condition."""
    status = (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in (400, 501) or _code(error) == "NotImplemented" or isinstance(error, NotImplementedError)


def _log_retry(state: RetryCallState, url: str, doing: str) -> None:
    error = state.outcome and state.outcome.exception()
    assert error
    failure = "broke off" if _response(error) is None else "was put off"
    LOGGER.warning(
        "%s: %s %s (%s), attempt %d follows", redact(url), doing, failure, _brief(error), state.attempt_number + 1
    )


def _is_retryable(error: BaseException) -> bool:
    """Whether a retry may help that botocore has not made."""
    if not isinstance(error, Exception) or isinstance(error, AvvpError) or _is_refusal(error):
        return False
    response = _response(error)
    if response is not None:
        metadata = response.get("ResponseMetadata", {})
        return metadata.get("HTTPStatusCode") in _TEMPORARY and not metadata.get("RetryAttempts")
    names = _names(error)
    if names & _NO_CREDENTIALS:
        return False
    # a stall while a body is read is also a ReadTimeoutError, but of a class of its own
    return not names & _BY_BOTOCORE or "AioReadTimeoutError" in names


def _storage_error(error: Exception, url: str, doing: str, attempts: int, retries: int) -> StorageError:
    """The error that states in one line what is wrong and what to do."""
    code, names, shown = _code(error), _names(error), redact(url)
    bucket = shown.split("://", 1)[-1].split("/", 1)[0]
    if code == "NoSuchBucket":
        return StorageError(f"{shown}: there is no bucket {bucket!r}; create it, or fix the name or storage.endpoint")
    if code in _UNKNOWN_CREDENTIALS:
        return StorageError(f"{shown}: the store does not accept these credentials ({code}); {CREDENTIALS_HINT}")
    if names & _NO_CREDENTIALS:
        return StorageError(f"{shown}: no usable credentials ({_brief(error)}); {CREDENTIALS_HINT}")
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{shown}: refused, this machine's clock differs too much from the store's; set the clock")
    if code in _OTHER_REGION:
        return StorageError(f"{shown}: bucket {bucket!r} is in another region ({_brief(error)}); set storage.region")
    if isinstance(error, PermissionError) or code in ("AccessDenied", "403"):
        return StorageError(
            f"{shown}: these credentials have no permission to {doing} it (access denied); request it, or use others"
        )
    if _is_refusal(error):
        return StorageError(f"{shown}: cannot {doing} it, the store refuses: {_brief(error)}")
    if names & _BY_BOTOCORE and "AioReadTimeoutError" not in names:
        attempts += retries
    else:
        attempts += (_response(error) or {}).get("ResponseMetadata", {}).get("RetryAttempts", 0)
    tries = f"{attempts} attempt{'s' if attempts > 1 else ''}"
    return StorageError(
        f"{shown}: gave up trying to {doing} it after {tries}, the last one failed with {_brief(error)}; once the store is "
        "available, run the same command again, and it resumes",
        transient=True,
    )


def _is_refusal(error: Exception) -> bool:
    """Whether the store rejects a request, or the form of the URL, permanently."""
    response = _response(error)
    if response is None:
        return isinstance(error, (ValueError, *_PERMANENT)) or "ParamValidationError" in _names(error)
    if _code(error) in _LASTING_CONFLICTS:
        return True
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status < 500 and status not in _TEMPORARY and not _code(error).startswith("RequestTimeout")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _names(error: BaseException) -> set[str]:
    """Class names of an error and its causes; botocore and aiohttp may not be installed, so isinstance cannot be used."""
    return {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}


def _response(error: BaseException) -> dict[str, Any] | None:
    """The response of an S3 server, if there was one."""
    found = (getattr(link, "response", None) for link in _chain(error))
    return next((response for response in found if isinstance(response, dict) and "Error" in response), None)


def _code(error: BaseException) -> str:
    response = _response(error)
    return str(response["Error"].get("Code", "")) if response else ""


def _brief(error: BaseException) -> str:
    cause = list(_chain(error))[-1]  # the errors that it caused are less specific
    text = " ".join(redact(str(cause)).split())
    return f"{type(cause).__name__}: {text[:200]}" if text else type(cause).__name__
