"""How an output comes to be, whole: the folder a run works in, its lock, the commit, the cleaning.

A run works in a hidden sibling of OUT, `.NAME.partial-HASH`:

    train-00000-of-00008.parquet   a finished shard (written under a dotted name, then renamed)
    .records/train-00000-of-...    its record, written after it: the shard counts as done
    .run.json                      job, versions and probe that every resume must share
    _manifest.json                 written when all shards are there
    _SUCCESS                       empty, last

Commit is the rename of that folder to OUT. What it replaces waits as `.NAME.replaced-HASH` until
the new one stands. The index of OUT (see `datasets.index`) is written before; others go after it.

In object storage nothing can be renamed: a run works in `OUT/VERSION` itself, where nobody looks
until a pointer says so (`datasets.versions`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from datasets import storage
from datasets.errors import EnvironmentFailed, OutputBusy, OutputError
from datasets.lease import leased, refuse_if_leased
from datasets.manifest import (
    MANIFEST,
    SUCCESS,
    UNFINISHED,
    Manifest,
    Record,
    encode_manifest,
    is_output,
    read_record,
)
from datasets.many_files import read_all
from datasets.schema import canonical_json
from datasets.storage import write_atomically
from datasets.storage_errors import translating_errors
from datasets.versions import latest

RECORDS = ".records"
RECORD = re.compile(r"\.records/[^./][^/]*\.json")  # no file that a killed process has left
RUN = ".run.json"


def sync_folder(path: Path) -> None:
    """Makes renames inside the folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_folder(out: Path, job_sha256: str) -> Path:
    """Where a run works; in object storage that is where its output will stand."""
    if storage.is_object(out):
        return out
    return out.with_name(f".{out.name}.partial-{job_sha256[:16]}")


def replaced_folder(partial: Path) -> Path:
    """Where the output that a finished run replaces waits to be removed."""
    return partial.with_name(partial.name.replace(".partial-", ".replaced-"))


def is_replaced(path: Path) -> bool:
    """Whether that unfinished folder is an output that was being replaced."""
    return path == replaced_folder(path)


def tidy(partial: Path) -> None:
    """Removes what a committed run does not need any more, and may have left when it was killed."""
    if storage.is_object(partial):
        for name in (RECORDS, RUN):
            storage.remove(partial / name)
    elif (replaced := replaced_folder(partial)).exists():
        with ThreadPoolExecutor() as pool:  # a system takes its time to free large files
            deque(pool.map(Path.unlink, filter(Path.is_file, replaced.iterdir())), 0)
        shutil.rmtree(replaced)


def partial_folders(out: Path) -> list[Path]:
    """Unfinished runs of any job into `out`, and outputs on their way out."""
    if storage.is_object(out) or not out.parent.is_dir():
        return []
    found = ((UNFINISHED.fullmatch(path.name), path) for path in out.parent.iterdir())
    return sorted(p for match, p in found if match and match["out"] == out.name and p.is_dir())


def unfinished_runs(out: Path, is_published: bool) -> list[Path]:
    """The folders of unfinished runs of any job into `out`, or into a version in it."""
    if not is_published:
        found = partial_folders(out)
    elif storage.is_object(out) or not out.is_dir():
        found = []
    else:
        found = sorted(p for p in out.iterdir() if UNFINISHED.fullmatch(p.name) and p.is_dir())
    return [path for path in found if not (is_replaced(path) or path.is_symlink())]


def is_unfinished(folder: Path) -> bool:
    """Whether a run has begun to write a version there, in object storage, and has not committed
    it; on a disk it would lie under another name."""
    is_begun = storage.is_object(folder) and storage.kind(folder / RUN) == "file"
    return is_begun and storage.kind(folder / SUCCESS) != "file"


def refuse_if_held(out: Path) -> None:
    """Raises: OutputBusy if another process holds `out`. Makes nothing, so may be asked early."""
    if storage.is_object(out):
        refuse_if_leased(out)
    elif lock_file(out).exists():
        with hold(out):
            pass


def is_held(out: Path) -> bool:
    """Whether another process holds it, asked by one that may only read there.

    Raises: EnvironmentFailed if that cannot be asked.
    """
    path = lock_file(out)
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as err:
        raise EnvironmentFailed(
            f"{path}: cannot be asked whether a run is going ({err.strerror}); fix that"
        ) from err
    return False


def lock_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


@contextmanager
def hold(out: Path, wait: bool = False) -> Iterator[Callable[[], None]]:
    """Yields a function that raises OutputBusy if the lease was lost. Holds `out` for this process
    until the block ends or the process dies; only a lease in object storage can be lost before.

    wait: Until no other process holds it, instead of giving up.
    Raises: OutputBusy if another process holds it; EnvironmentFailed if its parent folder cannot
      be written.
    """
    if storage.is_object(out):
        with leased(out) as lease:
            yield lease.check
        return
    path = lock_file(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                # The holder before us may have removed the file since it was opened.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), path.stat()):
                        break
            except BlockingIOError:
                os.close(handle)
                raise OutputBusy(
                    f"{out}: another run is writing it; wait for that one or choose another --out"
                ) from None
            os.close(handle)
    except OSError as err:
        raise EnvironmentFailed(
            f"{out.parent}: cannot be written ({err.strerror}); choose another --out"
        ) from err
    try:
        yield lambda: None
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def is_empty(out: Path) -> bool:
    """Whether there is nothing at that place that a run could destroy."""
    if storage.is_object(out):
        return storage.kind(out / SUCCESS) != "file"
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Raises: OutputError if `out` holds anything that a run must not move out of its way."""
    if is_empty(out):
        return
    if latest(out) is not None:
        raise OutputError(
            f"{out}: holds published versions; add one with --publish, or choose another --out"
        )
    if not is_output(out):
        raise OutputError(
            f"{out}: exists and was not written by `pipeline augment`, or its manifest is damaged; "
            "it is left alone: move it away, or choose another --out"
        )
    if not overwrite:
        raise OutputError(
            f"{out}: holds an output; choose another --out, or replace it with --overwrite"
        )


def read_records(partial: Path) -> dict[str, Record]:
    """The shards that are done, by name: those whose record and whole file are there."""
    sizes, done = storage.files_below(partial), {}
    names = list(filter(RECORD.fullmatch, sorted(sizes)))
    for data in read_all(partial, names):
        try:
            record = read_record(json.loads(data))
        except (ValueError, KeyError, TypeError):  # cut by a crash of the machine: written again
            continue
        if sizes.get(record.name) == record.bytes:
            done[record.name] = record
    return done


def write_record(partial: Path, record: Record) -> None:
    text = canonical_json(asdict(record))
    write_atomically(partial / RECORDS / f"{record.name}.json", text.encode())


def seal(partial: Path, manifest: Manifest, sidecars: dict[str, bytes]) -> None:
    """Writes the manifest, and the files beside the shards that it names: the data are complete."""
    for name, data in sidecars.items():
        write_atomically(partial / name, data)
    write_atomically(partial / MANIFEST, encode_manifest(manifest).encode())


def is_sealed(partial: Path) -> bool:
    return storage.kind(partial / MANIFEST) == "file"


def attempt_mark(partial: Path, name: str) -> Path:
    return partial / RECORDS / f"{name}.attempt"


@contextmanager
def attempt(partial: Path, name: str) -> Iterator[None]:
    """Leaves a mark where the block does not come to its end, for `has_died`; locally that is the
    unfinished file. After an error it stays too: a storage that is gone would be waited for."""
    if not storage.is_object(partial):
        yield
        return
    mark = attempt_mark(partial, name)
    write_atomically(mark, b"")
    yield
    with suppress(EnvironmentFailed), translating_errors(mark):
        storage.remove(mark)


def has_died(partial: Path, name: str) -> bool:
    """Whether an earlier attempt at a shard has not come to its end; it may also be slow."""
    if storage.is_object(partial):
        return storage.kind(attempt_mark(partial, name)) == "file"
    return storage.attempt_file(partial / name, 0).exists()


def commit(partial: Path, out: Path, overwrite: bool) -> None:
    """Turns a sealed partial folder into `out`, in one rename; may be repeated after a crash.

    Raises: OutputError if something has come to stand there that must not be replaced.
    """
    if storage.is_object(out):
        write_atomically(out / SUCCESS, b"")
        tidy(partial)
        return
    if (partial / RECORDS).exists():
        shutil.rmtree(partial / RECORDS)
    for leftover in partial.glob(".*"):
        leftover.unlink()
    write_atomically(partial / SUCCESS, b"")
    sync_folder(partial)
    replaced = replaced_folder(partial)
    refuse_to_replace(out, overwrite)
    if not is_empty(out):
        tidy(partial)  # a crash after an earlier commit: what it holds was replaced
        with unstoppable():
            out.rename(replaced)
            try:
                partial.rename(out)
            except OSError:
                replaced.rename(out)
                raise
    else:
        partial.rename(out)
    sync_folder(out.parent)
    tidy(partial)


@contextmanager
def unstoppable() -> Iterator[None]:
    """Signals that end a run wait for the end of the block. In the main thread, where Python sees
    to them; a mask would not do, since they come to any thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: noted.append(n))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for n in noted:
            signal.raise_signal(n)


def moved_aside(out: Path) -> Path | None:
    """The old output, where a commit was killed between its two renames and nothing stands at
    `out`."""
    return next(filter(is_replaced, partial_folders(out)), None) if is_empty(out) else None


def restore(out: Path) -> str | None:
    """Ends a commit that was killed between its two renames: the new output stands at `out` if it
    is whole, else the old one. Who holds `out` may. What was done; None if nothing had to be."""
    replaced = moved_aside(out)
    if replaced is None:
        return None
    partial = replaced.with_name(replaced.name.replace(".replaced-", ".partial-"))
    if is_sealed(partial):
        commit(partial, out, overwrite=False)
        return f"finished {out}"
    replaced.rename(out)
    return f"put back {out}"
