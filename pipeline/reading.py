"""Reads a source, every byte of it: in this process until workers are there, then on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np

from datasets.errors import EnvironmentFailed
from datasets.fingerprint import Scan, parts, read_scan, recognize
from datasets.source import Samples, Source, Stamped
from pipeline.job import check_environment, environment
from pipeline.workers import run

if TYPE_CHECKING:
    from concurrent.futures import Future

    from distributed import Client

    from datasets.index import Entry


@dataclass(frozen=True)
class Part:
    """Samples that a worker reads.

    number: Of this part among others. environment: What `environment` must give on the worker too.
    """

    number: int
    source: Source
    samples: Samples
    environment: dict[str, str]


class Parts(Sequence[Part]):
    """A part for each of these (split, positions): made when it is asked for, since all of a large
    source would not fit in memory once more."""

    def __init__(
        self, source: Source, samples: dict[str, Samples], where: list[tuple[str, np.ndarray]]
    ) -> None:
        self.source, self.samples, self.where = source, samples, where
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
        return Part(i, self.source, self.samples[split].take(positions), self.environment)


def read_part(part: Part) -> tuple[int, Scan]:
    """The number of the part, and a scan of its samples, without stamps.

    Raises: EnvironmentFailed if this worker has other libraries than the process that asks.
    """
    check_environment(part.environment)
    return part.number, read_scan(part.source, part.samples)


def read_all(
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
    begin: Told how many samples are new or changed, 0 where that cannot be told; gives the client
      of the workers to come, or None: this process reads all.
    Raises: what `pipeline.workers.run` does; EnvironmentFailed if a worker of a cluster cannot read
      what this process can.
    """
    scans: dict[str, Scan] = {}
    left: list[tuple[str, np.ndarray]] = []
    for split, some in samples.items():
        scans[split], unknown = recognize(source, some, known)
        advance(len(some) - len(unknown))
        left += [(split, where) for where in parts(source, some, unknown)]
    n_changed = sum(len(where) for _, where in left) if isinstance(source, Stamped) else 0
    coming = begin(n_changed)

    def read_here(split: str, where: np.ndarray) -> None:
        scans[split].put(where, read_scan(source, samples[split].take(where)))

    while left and not (coming and coming.done()):
        split, where = left.pop()
        read_here(split, where)
        advance(len(where))
    if not left:
        return scans
    tasks = Parts(source, samples, left)
    for number, found in run(read_part, tasks, n_workers, scheduler, coming, say=say):
        split, where = left[number]
        scans[split].put(where, found)
        advance(len(where))
    for split, scan in scans.items():
        unread = np.array([i for i, digest in enumerate(scan.digests) if not digest], np.int64)
        read_here(split, unread)
        if scheduler and (seen := [i for i in unread.tolist() if scan.digests[i]]):
            raise EnvironmentFailed(
                f"--scheduler {scheduler}: a worker cannot read {samples[split].ids[seen[0]]}, "
                "which can be read here; give all workers the data set under the same path"
            )
    return scans
