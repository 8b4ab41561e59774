"""What the libraries of object storage, or the system, raise where a storage fails, as errors that
a user can act upon."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.errors import (
    EnvironmentFailed,
    StorageRefused,
    UserError,
    as_system_error,
    first_line,
    system_error,
)

LIBRARIES = (  # whose errors are the storage's; `google` alone would be protobuf's too
    *("botocore.", "aiobotocore.", "aiohttp.", "gcsfs.", "azure."),
    *("google.auth.", "google.api_core.", "google.cloud."),
)
# Of S3: codes of answers, and errors of its library, that the same request would get again. Not
# here: clocks that differ and tokens that have expired, which a later run may find fixed.
REFUSALS = {
    *("AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"),
    *("InvalidBucketName", "NoSuchBucket"),
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
}
# S3's codes for what is wrong with one object: it is not for us, or shorter than it was.
NOT_ALLOWED, TOO_SHORT = ("AccessDenied", "403"), ("InvalidRange", "416")


def hide_credentials(url: str) -> str:
    """The text with `***` for what stands before an `@` in the URLs in it."""
    return re.sub(r"//[^/@]*@", "//***@", url)


def cause_of(err: BaseException) -> BaseException | None:
    """The error of a storage's library: `err` itself, or the first one behind it, or None."""
    cause: BaseException | None = err
    while cause is not None and not f"{type(cause).__module__}.".startswith(LIBRARIES):
        cause = cause.__cause__
    return cause


def code_of(err: BaseException) -> str | None:
    """What S3 has answered, in its own words; None of other storages and errors."""
    answer = getattr(cause_of(err), "response", None)
    return answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None


def as_storage_error(what: Path | str, err: BaseException) -> EnvironmentFailed | None:
    """What to tell the user where the error, or its cause, is one of a storage's library."""
    cause = cause_of(err)
    return None if cause is None else storage_error(what, cause)


def storage_error(what: Path | str, err: BaseException) -> EnvironmentFailed:
    """What to tell the user of that place: StorageRefused where no new try would fix it."""
    told = hide_credentials(first_line(err))
    if REFUSALS & {type(err).__name__, code_of(err)}:
        return StorageRefused(
            f"{what}: the storage refuses it: {told}; fix the URL, or the address or credentials "
            "in the environment"
        )
    return EnvironmentFailed(
        f"{what}: the storage fails: {told}; look at its address and credentials in the "
        "environment, and run the same command again"
    )


def as_folder_error(folder: Path | str, err: OSError) -> EnvironmentFailed | None:
    """What to tell the user where a disk or mount keeps a folder from being read; None where the
    error is about the folder itself. EIO counts as the disk's: of a file it costs one input, of a
    folder all that is in it."""
    return system_error(folder, err) if err.errno == errno.EIO else as_system_error(folder, err)


@contextmanager
def translating_errors(what: Path | str) -> Iterator[None]:
    """Raises: EnvironmentFailed where the storage, a disk or a mount does not answer;
    StorageRefused, which is one of these, where object storage does not allow it. That something is
    not there is the FileNotFoundError it was.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as err:
        told = as_storage_error(what, err) or as_system_error(what, err)
        is_absent = isinstance(err, FileNotFoundError) and not isinstance(told, StorageRefused)
        if told is None or is_absent:
            raise
        raise told from err


def of_one_object(err: BaseException) -> OSError | None:
    """The error of a file for what the storage says of that object alone, if it does."""
    code = code_of(err)
    if isinstance(err, FileNotFoundError) and code != "NoSuchBucket":
        return FileNotFoundError(errno.ENOENT, "no such object")
    if isinstance(err, PermissionError) and code in (None, *NOT_ALLOWED):
        return PermissionError(errno.EACCES, "not allowed")
    return OSError(errno.EINVAL, "ends too early") if code in TOO_SHORT else None
