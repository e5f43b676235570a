"""What goes wrong with object storage: what is worth another try, and what to tell when it is not.

botocore tries a request again by itself (storage.retries times, waiting longer each time) where the answer is 500, 502, 503,
504 or a known code of too many requests. `attempt` repeats what botocore does not: an answer that breaks off after it has
begun (a body cut short, a connection reset, a stall), and answers that say "not now" (408, 409, 425, 429). A session token
that has expired is looked for once more where credentials come from, since its file may have been renewed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from avvp_dist.errors import AvvpError, StorageError
from avvp_dist.text.credentials import CREDENTIALS_HINT, redact

T = TypeVar("T")

_log = logging.getLogger(__name__)

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
_BY_BOTOCORE = _UNREACHABLE | {"ConnectionClosedError", "ReadTimeoutError"}  # raised once its own attempts are used up
_HOPELESS = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_MAY_PASS = {408, 409, 425, 429}  # and 500 and above
# conflicts with what is there, which stays
_LASTING_CONFLICTS = {
    "BucketAlreadyExists", "BucketAlreadyOwnedByYou", "BucketNotEmpty", "InvalidBucketState", "RestoreAlreadyInProgress",
    "ObjectAlreadyInActiveTierError", "FileAlreadyExists",
}  # fmt: skip


def call_with_retries(
    call: Callable[[], T], url: str, doing: str, retries: int, renew: Callable[[], None] = lambda: None
) -> T:
    """The answer of ``call``, which may be repeated: it reads, lists, or puts a whole object.

    Args:
        call: talks to the store.
        url: what it is about, for messages.
        doing: "read", "write", ..., likewise.
        retries: times an answer that broke off, or said "not now", is asked for again.
        renew: has ``call`` use credentials read anew; called once, where the store says that they have expired.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: the store refuses, or gave no whole answer in all attempts.
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

    def renewed() -> T:
        try:
            return retrying(counted)
        except Exception as error:
            if _code(error) not in _EXPIRED | {"400"}:  # which is all that an answer to HEAD, which has no body, says of it
                raise
            _log.warning("%s: the token may have expired (%s), credentials are read again", redact(url), _code(error))
            renew()
            return retrying(counted)

    try:
        return renewed()
    except AvvpError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket":
            raise
        raise _storage_error(error, url, doing, started, retries) from error


def unreachable(url: str, endpoint: str, reason: object) -> StorageError:
    """Nobody answers at the store's address."""
    return StorageError(
        f"{redact(url)}: cannot reach {redact(endpoint)} ({reason}); is the server up, and storage.endpoint "
        "(AWS_ENDPOINT_URL) right?",
        transient=True,
    )


def precondition_failed(error: BaseException) -> bool:
    """Whether a store refused to put an object because of one that is there, or just being put there."""
    return _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict") or isinstance(error, FileExistsError)


def rejects_conditional_writes(error: BaseException) -> bool:
    """Whether a store refused a request for the condition in it, which it does not implement."""
    status = (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in (400, 501) or _code(error) == "NotImplemented" or isinstance(error, NotImplementedError)


def _log_retry(state: RetryCallState, url: str, doing: str) -> None:
    error = state.outcome and state.outcome.exception()
    assert error
    how = "broke off" if _response(error) is None else "was put off"
    _log.warning("%s: %s %s (%s), attempt %d follows", redact(url), doing, how, _brief(error), state.attempt_number + 1)


def _is_retryable(error: BaseException) -> bool:
    """Whether another try may help that botocore has not made."""
    if not isinstance(error, Exception) or isinstance(error, AvvpError) or _is_refusal(error):
        return False
    response = _response(error)
    if response is not None:
        told = response.get("ResponseMetadata", {})
        return told.get("HTTPStatusCode") in _MAY_PASS and not told.get("RetryAttempts")
    names = _names(error)
    if names & _NO_CREDENTIALS:
        return False
    # a stall while a body is read is a ReadTimeoutError as well, of a class of its own
    return not names & _BY_BOTOCORE or "AioReadTimeoutError" in names


def _storage_error(error: Exception, url: str, doing: str, attempts: int, retries: int) -> StorageError:
    """The one line that says what is wrong and what to do."""
    code, names, shown = _code(error), _names(error), redact(url)
    bucket = shown.split("://", 1)[-1].split("/", 1)[0]
    if code == "NoSuchBucket":
        return StorageError(f"{shown}: there is no bucket {bucket!r}; make it, or mend the name or storage.endpoint")
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
            f"{shown}: these credentials may not {doing} it (access denied); ask for the right, or use others"
        )
    if _is_refusal(error):
        return StorageError(f"{shown}: cannot {doing} it, the store refuses: {_brief(error)}")
    if names & _BY_BOTOCORE and "AioReadTimeoutError" not in names:
        attempts += retries
    else:
        attempts += (_response(error) or {}).get("ResponseMetadata", {}).get("RetryAttempts", 0)
    tries = f"{attempts} attempt{'s' if attempts > 1 else ''}"
    return StorageError(
        f"{shown}: gave up trying to {doing} it after {tries}, the last one ended in {_brief(error)}; run the same command "
        "again once the store is well, it goes on",
        transient=True,
    )


def _is_refusal(error: Exception) -> bool:
    """Whether the store, or the way a URL is written, forbids it for good."""
    response = _response(error)
    if response is None:
        return isinstance(error, (ValueError, *_HOPELESS)) or "ParamValidationError" in _names(error)
    if _code(error) in _LASTING_CONFLICTS:
        return True
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status < 500 and status not in _MAY_PASS and not _code(error).startswith("RequestTimeout")


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _names(error: BaseException) -> set[str]:
    """Names of the classes of an error and its causes: botocore and aiohttp need not be installed, so no isinstance."""
    return {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}


def _response(error: BaseException) -> dict[str, Any] | None:
    """An S3 server's answer, where there was one."""
    found = (getattr(each, "response", None) for each in _chain(error))
    return next((response for response in found if isinstance(response, dict) and "Error" in response), None)


def _code(error: BaseException) -> str:
    response = _response(error)
    return str(response["Error"].get("Code", "")) if response else ""


def _brief(error: BaseException) -> str:
    first = list(_chain(error))[-1]  # what came of it says less
    text = " ".join(redact(str(first)).split())
    return f"{type(first).__name__}: {text[:200]}" if text else type(first).__name__
