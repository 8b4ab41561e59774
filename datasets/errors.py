"""Errors that a user can cause or fix: one line each, and the exit code of its class.

UserError                2   wrong use or configuration
 ├─ PolicyError          2   a policy string that cannot be read
 ├─ SourceError          2   a data set that cannot be found or read
 ├─ OutputError          2   the output folder holds something else
 ├─ JobError             2   a job file that cannot be read
 ├─ NotCommitted         3   more inputs were bad than --max-bad allows
 ├─ Damaged              3   verify found damage
 ├─ OutputBusy           4   another run holds the output
 └─ EnvironmentFailed    5   disk, network or workers failed: worth a retry
     └─ StorageRefused   2   wrong credentials, or no such bucket

A job that its deadline has ended has the code 6 (`pipeline.service`): not worth a retry at once.

ImageError is no UserError: it is one unusable input, which is quarantined by name.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable

# What a terminal obeys and does not show: control characters, line breaks, marks that turn the
# direction of writing, and halves of characters.
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
PATHLIB = ("Could not determine home directory", "Symlink loop from")  # how its errors begin
SHOWN_NAMES = 40  # of those that are known, where none is near
MAX_LINE = 4_000  # characters of a line that is printed
HANDLES = {errno.EMFILE, errno.ENFILE}
# What the system says of whichever file is next where a mount has gone away, or a process is out of
# handles or memory. Not EIO: a bad sector gives it for one file, and for that one always.
NOT_OF_THE_FILE = {
    *(errno.ESTALE, errno.ENODEV, errno.EREMOTEIO, errno.ENOTCONN, errno.ESHUTDOWN),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET),
    *(errno.ENOMEM, *HANDLES),
}


class UserError(Exception):
    """Says where, what was found, what was expected and what to do, in one line.

    mistakes: A line each, where there is more to tell than that one.
    """

    exit_code = 2
    mistakes: tuple[str, ...] = ()


class PolicyError(UserError):
    """A policy that cannot be read or run."""


class SourceError(UserError):
    """A data set that cannot be found, read or trusted."""


class OutputError(UserError):
    """An output folder that holds something else than this job's output."""


class JobError(UserError):
    """A job file that cannot be read, or asks for what there is not."""

    def __init__(self, message: str, mistakes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.mistakes = mistakes


class NotCommitted(UserError):
    """More inputs were bad than the job allows; finished shards are kept for a resume."""

    exit_code = 3


class Damaged(UserError):
    """A committed folder that is not what its manifest says."""

    exit_code = 3


class OutputBusy(UserError):
    """Another run holds the output folder."""

    exit_code = 4


class EnvironmentFailed(UserError):
    """The disk, the network or the workers failed; the same command may work later."""

    exit_code = 5


class StorageRefused(EnvironmentFailed):
    """Object storage does not let this user in, or has no such bucket; no new try fixes that."""

    exit_code = 2


class ImageError(Exception):
    """One input that is not a usable image; the message is the reason in the manifest."""


def system_failure(err: Exception) -> UserError | None:
    """What to tell where the system refuses a path that cannot be (of nobody's home, through a loop
    of links, or with too long a name) or is not this user's, or where a disk or mount fails."""
    if isinstance(err, OSError):
        if err.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return UserError(f"{err.filename}: {err.strerror}; choose another path")
        if err.errno in (errno.EACCES, errno.EPERM) and err.filename:
            return UserError(
                f"{err.filename}: {err.strerror}; choose another path, or give this user the right"
            )
        if err.errno in NOT_OF_THE_FILE and err.filename:  # without a file it may be of anything
            return system_error(err.filename, err)
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            where = err.filename or "what is written or printed"
            return EnvironmentFailed(
                f"{where}: {err.strerror}; fix that and run the same command again"
            )
    told = str(err)
    if isinstance(err, RuntimeError) and told.startswith(PATHLIB):
        return UserError(f"a path cannot be followed: {told.rstrip('.')}; write it in full")
    return None


def as_system_error(what: object, err: BaseException) -> EnvironmentFailed | None:
    """What to tell the user where any other file would meet the error as well (a mount is gone, no
    handle is left); None where it is about this file."""
    if isinstance(err, OSError) and err.errno in NOT_OF_THE_FILE:
        return system_error(err.filename or what, err)
    return None


def system_error(what: object, err: OSError) -> EnvironmentFailed:
    """What to tell the user of that place; the machine too, since it may be a worker's."""
    advice = "look at the disk or mount that it is on"
    if err.errno in HANDLES:
        advice = "allow more open files (ulimit -n)"
    elif err.errno == errno.ENOMEM:
        advice = "free some memory"
    # Not the error's own text, in which pyarrow has the path once more.
    return EnvironmentFailed(
        f"{what}: {os.strerror(err.errno or 0)} on {os.uname().nodename}; {advice}, and run the "
        "same command again"
    )


def similar(word: str, known: Iterable[str]) -> str:
    """`did you mean 'rotate'?` where one of the known words is near, else nothing."""
    as_typed = {name.lower(): name for name in reversed([*known])}
    match = difflib.get_close_matches(word.lower(), as_typed, n=1)
    return f"did you mean {as_typed[match[0]]!r}?" if match else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'rotate'?` where one of the known words is near, else the first of them."""
    names = list(known)
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return similar(word, names) or f"known: {', '.join(names[:SHOWN_NAMES])}{more}"


def first_line(err: BaseException) -> str:
    """What another library says of an error, in one line without its full stop."""
    return (str(err).splitlines() or [type(err).__name__])[0].rstrip(" .;:")


def printable(text: str) -> str:
    """The text as one line that a terminal shows and does not obey: names of files may hold line
    breaks and escape sequences. The middle of a very long one is left out."""
    line = UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)
    return line if len(line) <= MAX_LINE else f"{line[:3000]} ... {line[-900:]}"
