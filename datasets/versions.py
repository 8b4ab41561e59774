"""Published outputs: `OUT/<version>/` beside one another, and which of them is the latest.

A version is named by its job, so the same job is the same version. The latest is what `OUT/latest`
links to; in object storage, where nothing can be renamed, it is what the highest of the pointers
`OUT/_versions/00000001.json`, `00000002.json`, ... names, each of which is created once and never
changed. Everything else about a version may be written before, and is nothing without that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import iglob
from itertools import pairwise
from pathlib import Path

from datasets import storage
from datasets.errors import Damaged, EnvironmentFailed, OutputBusy, OutputError
from datasets.lease import modified, storage_time
from datasets.manifest import LATEST, SUCCESS, VERSION, is_output
from datasets.schema import canonical_json
from datasets.storage_errors import translating_errors

POINTERS = "_versions"
# Nobody can tell who reads from object storage: what was replaced stays for this long.
STAYS_S = 24 * 3600.0
# How a file system says that it has no symbolic links: vfat, SMB, FUSE.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def version_name(job_sha256: str) -> str:
    return job_sha256[:16]


def pointer_numbers(out: Path) -> list[int]:
    """Of the pointers in object storage, in the order in which they were created."""
    found = (name.removesuffix(".json") for name in storage.files_below(out / POINTERS))
    return sorted(int(name) for name in found if name.isdecimal())


def pointer_file(out: Path, number: int) -> Path:
    return out / POINTERS / f"{number:08d}.json"


def read_pointer(out: Path, number: int) -> str:
    """The version that it names. Raises: Damaged if it names none."""
    path = pointer_file(out, number)
    try:
        with storage.open_file(path) as file:
            version = json.load(file)["version"]
        if not VERSION.fullmatch(version):
            raise ValueError(version)
    except (ValueError, KeyError, TypeError) as err:
        raise Damaged(f"{path}: names no version; remove it, and the one before counts") from err
    return str(version)


def latest(out: Path) -> str | None:
    """The version that readers of `out` get; None where nothing was published there."""
    if storage.is_object(out):
        last = last_pointer(out)
        return read_pointer(out, last) if last else None
    with suppress(OSError):
        name = os.readlink(out / LATEST)
        return name if VERSION.fullmatch(name) else None
    return None


def output_of(folder: Path) -> Path:
    """The output that this folder, or the pointer of that name, is a version of; else itself."""
    found = folder if storage.is_object(folder) else folder.resolve()
    is_version = VERSION.fullmatch(found.name) and latest(found.parent) is not None
    return found.parent if is_version else found


def last_pointer(out: Path) -> int:
    """The number of the last pointer, 0 where there is none or none is needed."""
    return max(pointer_numbers(out), default=0) if storage.is_object(out) else 0


def publish(out: Path, version: str, after: int) -> None:
    """Makes a committed version the latest one, in one step.

    after: From `last_pointer`, when the run began.
    Raises: OutputBusy if another run has published since.
    """
    if latest(out) == version:
        return
    if storage.is_object(out):
        body = {"version": version, "run": uuid.uuid4().hex}
        if not storage.create(pointer_file(out, after + 1), canonical_json(body).encode()):
            raise OutputBusy(
                f"{out}: another run has published there meanwhile; run the same command again"
            )
        return
    os.utime(out / version / SUCCESS)  # the order of publishing, which `prune` goes by
    temporary = out / f".{LATEST}.tmp"
    temporary.unlink(missing_ok=True)  # of a run that was killed right here
    temporary.symlink_to(version)
    temporary.rename(out / LATEST)


def refuse_others(out: Path) -> None:
    """Raises: OutputError if something lies at `out` that was not published there."""
    if not storage.is_object(out) and not out.exists():
        return
    if not storage.is_object(out) and not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out")
    for name, is_folder in storage.entries(out):
        is_copied = name == LATEST and not storage.is_object(out) and not (out / name).is_symlink()
        known = (name in (LATEST, POINTERS) and not is_copied) or name.startswith(".")
        if not known and not (is_folder and VERSION.fullmatch(name)):
            what = "an output that was not published" if is_output(out) else f"{name!r}"
            raise OutputError(
                f"{out}: holds {what}; published versions need a folder of their own: choose "
                "another --out"
            )


def refuse_without_links(out: Path) -> None:
    """Raises: OutputError if the disk where `out` will lie has no links, as `latest` is one: to be
    asked before hours of work. Leaves nothing there."""
    if storage.is_object(out) or latest(out) is not None:
        return
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    link = above / f".{out.name}.{LATEST}.tmp"
    try:
        link.symlink_to(LATEST)
    except FileExistsError:  # of a run that was killed right here
        pass
    except OSError as err:
        if err.errno not in NO_LINKS:
            return  # whoever writes there tells of that
        raise OutputError(
            f"{above}: no link can be made there ({err.strerror}), as --publish needs one to the "
            "latest version; choose another --out, or leave out --publish"
        ) from err
    link.unlink(missing_ok=True)


def versions(out: Path) -> list[str]:
    """Committed versions on disk, the last published first."""
    found = [
        (path.stat().st_mtime_ns, path.parent.name)
        for path in out.glob(f"*/{SUCCESS}")
        if VERSION.fullmatch(path.parent.name) and not path.parent.is_symlink()
    ]
    return [name for _, name in sorted(found, reverse=True)]


def prune(out: Path, keep: int) -> Iterator[tuple[str, bool]]:
    """(version, whether it was removed) of all but the last `keep` ones; one that is being read
    stays. In object storage, where no reader can be seen, it stays for a day."""
    if storage.is_object(out):
        yield from prune_objects(out, keep)
        return
    for leftover in out.glob(".*.removed"):
        storage.remove(leftover)
    current = latest(out)
    others = [version for version in versions(out) if version != current]
    for version in others[keep - 1 :]:
        gone = out / f".{version}.removed"  # nobody finds half of it
        is_gone = rename_unread(out / version, gone)
        if is_gone:
            storage.remove(gone)
        yield version, is_gone


def prune_objects(out: Path, keep: int) -> Iterator[tuple[str, bool]]:
    """(version, whether it was removed) of those in object storage but the last `keep` ones, and
    of those that no pointer has ever named, if they were removed. One that was replaced less than
    `STAYS_S` ago stays.

    Raises: EnvironmentFailed if the storage does not answer.
    """
    numbers = pointer_numbers(out)
    known = {number: read_pointer(out, number) for number in numbers}
    kept = set(list(dict.fromkeys(reversed(known.values())))[:keep])
    now = storage_time(out)
    for number, successor in pairwise(numbers):
        version = known[number]
        if version in kept:
            continue
        if now - modified(pointer_file(out, successor)) < STAYS_S:
            yield version, False
            continue
        if version not in (known[n] for n in numbers if n > number):
            remove_version(out / version)
            yield version, True
        storage.remove(pointer_file(out, number))  # last: after a kill it leads here again
    # Of a run that was killed after it was done and before its pointer, with none like it since.
    names = (name for name, is_folder in storage.entries(out) if is_folder)
    for version in sorted(filter(VERSION.fullmatch, {*names} - {*known.values()})):
        success = out / version / SUCCESS
        if storage.kind(success) == "file" and now - modified(success) > STAYS_S:
            remove_version(out / version)
            yield version, True


def remove_version(folder: Path) -> None:
    storage.remove(folder / SUCCESS)  # `clean` takes what a kill leaves
    storage.remove(folder)


def rename_unread(folder: Path, new: Path) -> bool:
    """Gives a version another name, unless a process has opened it: one of ours by a shared lock,
    any other by an open file, of which Linux tells those who ask for a lease. Whether it did."""
    handle = os.open(folder / SUCCESS, os.O_RDWR)  # for NFS, whose locks are of bytes, as flock(2)
    try:
        # Until it is renamed: a reader of ours that comes now waits, and then finds it gone.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files = (path for path in folder.iterdir() if path.is_file() and path.name != SUCCESS)
        if any(map(is_open, files)) and knows_who_opens(folder.parent):
            return False
        folder.rename(new)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def is_open(path: Path) -> bool:
    """Whether any process has the file open, as far as can be told under this name: it may be in
    another version too. False where the file system says that it cannot tell, but see
    `knows_who_opens`."""
    with path.open("rb") as file:
        is_refused, found = is_refused_a_lease(file.fileno()), os.fstat(file.fileno())
    if not is_refused or found.st_nlink == 1:
        return is_refused
    # A lease is of the file, whatever its names. None is known of a process that is another user's.
    names = names_opened(found)
    return not names or (path.parent.name, path.name) in names


def names_opened(file: os.stat_result) -> set[tuple[str, ...]]:
    """(folder, name) by which processes that this one may look into have the file open."""
    names = set()
    for link in iglob("/proc/[0-9]*/fd/*"):
        with suppress(OSError):  # it may have been closed
            if os.path.samestat(os.stat(link), file):
                names.add(Path(os.readlink(link)).parts[-2:])
    return names


def knows_who_opens(folder: Path) -> bool:
    """Whether a lease is granted on a file that nobody else has open: NFS 4 refuses it too."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return not is_refused_a_lease(file.fileno())


def is_refused_a_lease(handle: int) -> bool:
    try:
        # Who opens it in this moment waits, and the signal about that must not end this process.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as err:
        return err.errno == errno.EAGAIN
    return False


def open_version(folder: Path) -> tuple[Path, int | None]:
    """The output to read at `folder`: itself, or the latest version that was published there, and
    a handle that keeps a version in its place until it is closed."""
    while True:
        version = latest(folder)
        where = folder if version is None else folder / version
        if storage.is_object(where):
            return where, None
        # Who names `latest` itself gets what it names now, to the end.
        found = where.resolve() if where.is_symlink() else where
        try:
            handle = os.open(found / SUCCESS, os.O_RDONLY)
        except OSError:
            if latest(folder) == version and found in (where, where.resolve()):
                return found, None  # for `read_manifest` to complain of
            continue
        with suppress(OSError):  # no locks on that disk, so that `rename_unread` gets none either
            fcntl.flock(handle, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), (found / SUCCESS).stat()):
                return found, handle
        os.close(handle)  # removed in that moment


def was_replaced(found: Path, handle: int | None) -> bool:
    """Whether another output has come in the place of one that `open_version` gave."""
    if handle is None:
        return False
    with suppress(FileNotFoundError):
        return not os.path.samestat(os.fstat(handle), (found / SUCCESS).stat())
    return True


def replaced_error(found: Path) -> EnvironmentFailed:
    """What to raise then, where what was read may be half of each."""
    return EnvironmentFailed(
        f"{found}: another output took its place while it was read; run the same command again "
        "(what --publish writes stays whole while it is read)"
    )


@contextmanager
def reading(folder: Path) -> Iterator[Path]:
    """The output to read at `folder`; a version that was published stays whole until the block
    ends.

    Raises: EnvironmentFailed if another output took its place meanwhile, and half of each was read.
    """
    with translating_errors(folder):
        found, handle = open_version(folder)
        try:
            yield found
        except Damaged as err:
            if was_replaced(found, handle):
                raise replaced_error(found) from err
            raise
        finally:
            if handle is not None:
                os.close(handle)
