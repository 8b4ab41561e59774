"""One shard of a source that has changed a little: kept whole, or made of the rows of an earlier
output, undecoded, and of its new or changed samples."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets import storage
from datasets.commit import write_record
from datasets.errors import Damaged, EnvironmentFailed
from datasets.formats import FORMATS
from datasets.manifest import Record, crc32c_file
from datasets.schema import Rows
from datasets.storage_errors import translating_errors
from pipeline.base import Carried
from pipeline.shard import (
    HashingFile,
    augmented,
    batch_samples,
    decode_block,
    disk_message,
    finished,
    write_rows,
    write_shard,
)
from pipeline.task import Task


@dataclass(frozen=True)
class Made:
    """A shard that is done, and how: rows carried over, whether it is an earlier shard as it was,
    and why nothing could be taken from the earlier output where it was meant to."""

    record: Record
    n_carried: int = 0
    is_kept: bool = False
    damage: str = ""
    worker: str = ""  # host:pid of the process that made it
    seconds: float = 0.0


def make_shard(task: Task) -> Made:
    """Writes the shard with as little work as its earlier output allows; always the same bytes.

    Raises: what `write_shard` does.
    """
    started = time.monotonic()
    with translating_errors(task.folder):
        made = make(task)
    worker = f"{os.uname().nodename}:{os.getpid()}"
    return replace(made, worker=worker, seconds=time.monotonic() - started)


def make(task: Task) -> Made:
    carried = task.carried
    if carried is None:
        return Made(write_shard(task))
    try:
        if carried.is_whole:
            return Made(keep_shard(task, carried), is_kept=True)
        record = write_shard(task, partial(fill_carried, task, carried))
    except Damaged as err:
        return Made(write_shard(task), damage=str(err))
    bad = {name for name, _ in record.quarantined}
    old = np.flatnonzero(carried.origins >= 0).tolist()
    n_old = sum(task.samples.ids[i] not in bad for i in old)
    return Made(record, n_carried=n_old * len(task.job.copies(task.split)))


def check(path: Path, record: Record) -> None:
    """Raises: Damaged unless the file is what the record says."""
    try:
        found = crc32c_file(path)
    except OSError as err:
        raise Damaged(f"{path}: {err.strerror}") from err
    if found != (record.bytes, record.crc32c):
        raise Damaged(f"{path}: its checksum is not the manifest's")


def keep_shard(task: Task, carried: Carried) -> Record:
    """The record of the earlier shard under its new name, which is one more name of its file or,
    where there can be none, a copy."""
    (old,) = carried.shards
    path, new = carried.folder / old.name, replace(old, name=task.name)
    check(path, old)
    if storage.is_object(path):
        storage.copy(path, task.folder / task.name)
        write_record(task.folder, new)
        return new
    temporary = task.folder / f".{task.name}.{uuid.uuid4().hex}.tmp"
    try:
        os.link(path, temporary)
    except OSError:  # another file system, or one without links

        def fill(file: BinaryIO) -> Record:
            hashing = HashingFile(file)
            with path.open("rb") as source:
                shutil.copyfileobj(source, hashing)
            if hashing.digest.hexdigest() != old.sha256:
                raise Damaged(f"{path}: changed while it was copied")
            return new

        return finished(task.folder, task.name, fill)
    try:
        temporary.rename(task.folder / task.name)
        temporary.unlink(missing_ok=True)  # to another name of the same file, a rename does nothing
        write_record(task.folder, new)
    except OSError as err:
        raise EnvironmentFailed(disk_message(task.folder, err)) from err
    return new


def fill_carried(task: Task, carried: Carried, file: BinaryIO, in_child: bool) -> Record:
    """Writes what `fill_shard` would, but decodes only what the earlier shards do not have.

    Raises: Damaged if one of these is not what it was.
    """
    ids = task.samples.ids
    for record in carried.shards:
        check(carried.folder / record.name, record)
    was_bad = dict(item for record in carried.shards for item in record.quarantined)
    is_new = carried.origins < 0
    bad = {ids[i]: was_bad[ids[i]] for i in np.flatnonzero(~is_new).tolist() if ids[i] in was_bad}
    part = task.take(np.flatnonzero(is_new))
    good, decoded, newly_bad = decode_block(part, in_child)
    bad |= dict(newly_bad)
    usable = np.array([i for i, name in enumerate(ids) if name not in bad], np.int64)
    origins = np.where(is_new, len(carried.shards), carried.origins)[usable]
    streams = [
        stored(
            task.job.format,
            carried.folder / record.name,
            set(task.samples.take(usable[origins == n]).ids),
        )
        for n, record in enumerate(carried.shards)
    ]
    rows = merged(task, usable, origins, [*streams, augmented(part, good, decoded)])
    quarantined = [(name, bad[name]) for name in ids if name in bad]
    return write_rows(task, file, usable, quarantined, rows)


def stored(format: str, path: Path, wanted: set[str]) -> Iterator[Rows]:
    """The rows of these samples in an earlier shard, copy by copy and in the order of its block,
    which is that of every block."""
    for rows in FORMATS[format].read(path):
        chosen = np.array([i for i, name in enumerate(rows.ids) if name in wanted], np.int64)
        if len(chosen):
            yield rows.take(chosen)


def merged(
    task: Task, usable: np.ndarray, origins: np.ndarray, streams: Sequence[Iterator[Rows]]
) -> Iterator[Rows]:
    """The rows of all copies of these samples, in the batches of a run from nothing.

    origins: Which of the streams has each of them, in its turn.
    Raises: Damaged if a stream has others.
    """
    feeds = [Feed(stream) for stream in streams]
    size = batch_samples(task.job.shape)
    for copy in task.job.copies(task.split):
        for start in range(0, len(usable), size):
            part = slice(start, start + size)
            counts = np.bincount(origins[part], minlength=len(feeds)).tolist()
            parts = [rows for feed, n in zip(feeds, counts, strict=True) for rows in feed.take(n)]
            # Row k of what came, feed by feed, is row order[k] of the batch.
            order = np.argsort(origins[part], kind="stable")
            rows = Rows.join(parts).take(np.argsort(order)) if len(parts) > 1 else parts[0]
            ids = [task.samples.ids[i] for i in usable[part].tolist()]
            if rows.ids != ids or {p.copy for p in parts} != {copy}:
                raise Damaged(
                    f"{task.name}: the index of the earlier output is not that of its rows"
                )
            yield replace(rows, labels=task.samples.labels[usable[part]])


class Feed:
    """Hands out the rows of a stream in its order, as many at a time as are asked for."""

    def __init__(self, batches: Iterator[Rows]) -> None:
        self.batches = batches
        self.rest: Rows | None = None

    def take(self, n: int) -> list[Rows]:
        """The next n rows, in parts. Raises: Damaged if there are fewer."""
        parts = []
        while n:
            rows = self.rest or next(self.batches, None)
            if rows is None:
                raise Damaged("an earlier shard has fewer rows than its index says")
            parts.append(rows.part(0, n))
            self.rest = rows.part(n, len(rows)) if n < len(rows) else None
            n -= len(parts[-1])
        return parts
