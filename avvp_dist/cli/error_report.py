"""Errors of the operating system and of other packages, told as our own where a user can do something about them."""

from __future__ import annotations

import traceback

from avvp_dist.cli.messages import brief, write_temporary
from avvp_dist.errors import AvvpError, UserError
from avvp_dist.storage.system_errors import of_system
from avvp_dist.text.escape import line, shortened

BUG = 1
"""Exit code of an error that nobody expected."""
_EXTRAS = {
    **dict.fromkeys(("ray", "optuna"), "ray"),
    "mlflow": "mlflow",
    **dict.fromkeys(("s3fs", "aiobotocore", "botocore", "boto3", "aiohttp"), "s3"),
}
# what reading a file that is cut short or of another kind ends in, by the class's name: nothing has to be imported for it
_DAMAGED = {
    "SafetensorError",
    "BadZipFile",
    "JSONDecodeError",
    "UnpicklingError",
    "YAMLError",
    "ArrowInvalid",
    "RecursionError",
}
_NO_MEMORY = ("can't allocate memory", "out of memory", "Unable to allocate", "Storage size calculation overflowed")


def missing_package(error: ImportError) -> str | None:
    """How to install what is missing; None where it is no package that only some commands need."""
    name = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(name)
    return f"{name} is not installed, which this needs: pip install 'avvp_dist[{extra}]'" if extra else None


def as_ours(error: BaseException) -> AvvpError | None:
    """The error of ours that says what an expected error of others means; None for one that nobody expected."""
    if isinstance(error, AvvpError):
        return error
    if isinstance(error, OSError):
        return UserError(of_system(error))
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"a file is not the text that it should be: {error}")
    if isinstance(error, ImportError):
        found = missing_package(error)
        return UserError(found) if found else None
    said = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(each in said for each in _NO_MEMORY)):
        why = " ".join(said.split())[:200]
        return UserError(
            f"not enough memory{f' ({why})' if why else ''}; use a smaller train.batch_size or network, "
            "data.mode=streaming, or a larger machine"
        )
    return None


def report(error: BaseException) -> tuple[str, int]:
    """The message of an error and the exit code of a command that ends by it.

    One that nobody expected is a bug of ours; its traceback goes into a file, which the message names.
    """
    ours = as_ours(error)
    if ours is not None:
        return brief(ours), ours.exit_code
    trace = "".join(traceback.format_exception(error))
    where = write_temporary("traceback", trace)
    what = f"{type(error).__name__}: {shortened(line(error), 200)}"
    kept = f"the traceback is in {where}" if where else f"no temporary folder for its traceback, so here it is:\n{trace}"
    if {kind.__name__ for kind in type(error).__mro__} & _DAMAGED:
        return f"a file is damaged or not what it should be ({what}); {kept}, and says which", UserError.exit_code
    return f"this is a bug in avvp_dist: {what}; please report it, {kept}", BUG
