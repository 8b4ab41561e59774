"""How an output comes to be, whole: the folder a run works in, its lock, the commit, the cleaning.

A run works in a hidden sibling of OUT, `.NAME.partial-HASH`:

    train-00000-of-00008.parquet   a finished shard (written under a dotted name, then renamed)
    .records/train-00000-of-...    its record, written after it: the shard counts as done
    .run.json                      job, versions and probe that every resume must share
    _manifest.json                 written when all shards are there
    _SUCCESS                       empty, last

Commit is the rename of that folder to OUT. What it replaces waits as `.NAME.replaced-HASH` until
the new one stands.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from datasets.errors import EnvironmentFailed, OutputBusy, OutputError
from datasets.manifest import (
    MANIFEST,
    SUCCESS,
    Manifest,
    Record,
    encode_manifest,
    is_output,
    read_record,
    walk,
)
from datasets.schema import canonical_json

RECORDS = ".records"
RUN = ".run.json"
UNFINISHED = re.compile(r"\.(?P<out>.+)\.(partial|replaced)-(?P<job>[0-9a-f]{16})", re.S)


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or none of it: to a dotted name beside it, flushed to disk, renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Makes renames inside the folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_folder(out: Path, job_sha256: str) -> Path:
    return out.with_name(f".{out.name}.partial-{job_sha256[:16]}")


def replaced_folder(partial: Path) -> Path:
    """Where the output that a finished run replaces waits to be removed."""
    return partial.with_name(partial.name.replace(".partial-", ".replaced-"))


def partial_folders(out: Path) -> list[Path]:
    """Unfinished runs of any job into `out`, and outputs on their way out."""
    if not out.parent.is_dir():
        return []
    found = ((UNFINISHED.fullmatch(path.name), path) for path in out.parent.iterdir())
    return sorted(p for match, p in found if match and match["out"] == out.name and p.is_dir())


def refuse_if_held(out: Path) -> None:
    """Raises: OutputBusy if another process holds `out`. Makes nothing, so may be asked early."""
    if lock_file(out).exists():
        with hold(out):
            pass


def lock_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


@contextmanager
def hold(out: Path, wait: bool = False) -> Iterator[None]:
    """Holds `out` for this process until the block ends or the process dies.

    wait: Until no other process holds it, instead of giving up.
    Raises: OutputBusy if another process holds it; EnvironmentFailed if its parent folder cannot
      be written.
    """
    path = lock_file(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                # The holder before us may have removed the file between open and flock.
                if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
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
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def is_empty(out: Path) -> bool:
    """Whether there is nothing at that place that a run could destroy."""
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Raises: OutputError if `out` holds anything that a run must not move out of its way."""
    if is_empty(out):
        return
    if not is_output(out):
        raise OutputError(
            f"{out}: exists and was not written by `pipeline augment`; it is left alone: choose "
            "another --out"
        )
    if not overwrite:
        raise OutputError(
            f"{out}: holds an output; choose another --out, or replace it with --overwrite"
        )


def read_records(partial: Path) -> dict[str, Record]:
    """The shards that are done, by name: those whose record and whole file are there."""
    done = {}
    for path in sorted((partial / RECORDS).glob("*.json")):
        try:
            record = read_record(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError):  # cut by a crash of the machine: written again
            continue
        shard = partial / record.name
        if shard.is_file() and shard.stat().st_size == record.bytes:
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
    return (partial / MANIFEST).is_file()


def commit(partial: Path, out: Path, overwrite: bool) -> None:
    """Turns a sealed partial folder into `out`, in one rename; may be repeated after a crash.

    Raises: OutputError if something has come to stand there that must not be replaced.
    """
    if (partial / RECORDS).exists():
        shutil.rmtree(partial / RECORDS)
    for leftover in partial.glob(".*"):
        leftover.unlink()
    write_atomically(partial / SUCCESS, b"")
    sync_folder(partial)
    replaced = replaced_folder(partial)
    refuse_to_replace(out, overwrite)
    if not is_empty(out):
        if replaced.exists():  # a crash after an earlier commit: what it holds was replaced
            shutil.rmtree(replaced)
        out.rename(replaced)
    partial.rename(out)
    sync_folder(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def clean(folder: Path) -> Iterator[str]:
    """Removes what unfinished runs left below `folder`, or beside it where it is an output itself,
    and yields a line about each. An output that was being replaced is put back, or the new one
    that was ready takes its place.

    Raises: OutputBusy, at the end, if some were left since a run is writing there.
    """
    busy: list[str] = []
    beside = partial_folders(folder.absolute())
    found = walk(folder) if folder.is_dir() else ()
    below = {path.absolute() for path in found if UNFINISHED.fullmatch(path.name)}
    for path in sorted({*beside, *below}):
        match = UNFINISHED.fullmatch(path.name)
        # What is no folder, or would belong to the folder itself, is no work of a run.
        if not match or match["out"] in (".", "..") or path.is_symlink() or not path.is_dir():
            continue
        out = path.with_name(match["out"])
        try:
            with hold(out):
                if path.is_dir():  # else an earlier line has dealt with it
                    yield clean_one(path, out, partial_folder(out, match["job"]))
        except OutputBusy as err:
            busy.append(str(err))
    if busy:
        raise OutputBusy("; ".join(busy))


def clean_one(path: Path, out: Path, partial: Path) -> str:
    """Deals with one unfinished folder of `out`; says what was done."""
    replaced = replaced_folder(partial)
    if replaced.exists() and is_empty(out):  # killed between the two renames of a commit
        if is_sealed(partial):
            commit(partial, out, overwrite=False)
            return f"finished {out}"
        replaced.rename(out)
        return f"put back {out}"
    shutil.rmtree(path)
    return f"removed {path}"
