"""Reads a source, every byte of it: in this process until workers are there, then on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from datasets import storage
from datasets.fingerprint import Scan, read_scan, recognize
from datasets.source import OfFiles, Samples, Source, stamps_of
from pipeline.job import check_environment, environment
from pipeline.memory import keep_freed_memory
from pipeline.workers import run, when_there

if TYPE_CHECKING:
    from concurrent.futures import Future

    from distributed import Client

    from datasets.index import Entry

PART = 256  # samples that a worker reads at a time


@dataclass(frozen=True)
class Part:
    """Files that a worker reads.

    number: Of this part among others. environment: What `environment` must give on the worker too.
    files: Their folder, where the worker may see others under these names; else None.
    """

    number: int
    source: Source
    samples: Samples
    environment: dict[str, str]
    files: Path | None


class Parts(Sequence[Part]):
    """A part for each of these (split, positions): made when it is asked for, since all of a large
    source would not fit in memory once more."""

    def __init__(
        self,
        source: Source,
        samples: dict[str, Samples],
        where: list[tuple[str, np.ndarray]],
        files: Path | None,
    ) -> None:
        self.source, self.samples, self.where, self.files = source, samples, where, files
        self.environment = environment()

    def __len__(self) -> int:
        return len(self.where)

    @overload
    def __getitem__(self, i: int) -> Part: ...
    @overload
    def __getitem__(self, i: slice) -> list[Part]: ...
    def __getitem__(self, i: int | slice) -> Part | list[Part]:
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        split, positions = self.where[i]
        some = self.samples[split].take(positions)
        return Part(i, self.source, some, self.environment, self.files)


def read_part(part: Part) -> tuple[int, Scan, list[str | None] | None]:
    """The number of the part, a scan of its samples without stamps, and the stamps that its files
    have for this worker, where it has a folder.

    Raises: EnvironmentFailed if this worker has other libraries than the process that asks.
    """
    check_environment(part.environment)
    stamps = stamps_of(part.files, part.samples.refs) if part.files else None
    return part.number, read_scan(part.source, part.samples), stamps


def scan_all(
    source: Source,
    samples: dict[str, Samples],
    known: Mapping[str, Entry],
    advance: Callable[[int], None],
    n_workers: int,
    scheduler: str | None,
    begin: Callable[[int], Future[Client] | None],
    say: Callable[..., None],
) -> dict[str, Scan]:
    """Split -> a scan of its samples.

    known: Sample id -> how it was before; what has its stamp still is not read.
    advance: Told of each number of samples that are done.
    n_workers, scheduler, say: As of `pipeline.workers.run`.
    begin: Told how many samples are new, 0 where that is not known; gives the client of the workers
      to come, or None: this process reads all, as it does where samples are not files.
    Raises: what `pipeline.workers.run` does.
    """
    keep_freed_memory()
    files = source.image_folder if isinstance(source, OfFiles) else None
    scans: dict[str, Scan] = {}
    left: list[tuple[str, np.ndarray]] = []
    n_new = 0
    for split, some in samples.items():
        scans[split], unknown = recognize(source, some, known)
        advance(len(some) - len(unknown))
        n_new += sum(some.ids[i] not in known for i in unknown.tolist()) if known else 0
        size = PART if files is not None else max(1, len(unknown))
        cuts = [*range(0, len(unknown), size), len(unknown)]
        left += [(split, unknown[a:b]) for a, b in pairwise(cuts)]
    coming = begin(n_new)

    def read_here(split: str, where: np.ndarray) -> None:
        scans[split].put(where, read_scan(source, samples[split].take(where), advance))

    are_there = when_there(coming, scheduler)
    seen: Path | None = None  # a file that workers must see too
    while left and not (seen is not None and are_there()):
        split, where = left.pop()
        read_here(split, where)
        if files is not None and seen is None:
            good = [i for i in where.tolist() if scans[split].digests[i]]
            seen = files / samples[split].refs[good[0]] if good else None
    if not left or files is None:
        return scans
    # Of local workers, and of objects, it is known that they are the same.
    far = scheduler is not None and not storage.is_object(files)
    parts = Parts(source, samples, left, files if far else None)
    for number, found, stamps in run(read_part, parts, n_workers, scheduler, coming, seen, say):
        split, where = left[number]
        same = np.array([bool(digest) for digest in found.digests])  # perhaps only there unreadable
        if stamps is not None:
            here = [scans[split].stamps[i] for i in where.tolist()]
            same &= [a is not None and a == b for a, b in zip(here, stamps, strict=True)]
        scans[split].put(where[same], found.take(np.flatnonzero(same)))
        advance(int(same.sum()))
        if not same.all():
            read_here(split, where[~same])
    return scans
