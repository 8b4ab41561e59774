"""What a job will write: the shards, and the task that makes each one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

from datasets.blocks import count_blocks, default_block_samples, place
from datasets.errors import UserError
from datasets.fingerprint import Scan
from datasets.formats import FORMATS
from datasets.schema import Encoding
from datasets.source import Samples, Source
from pipeline.base import Base, Carried, plan_carried
from pipeline.job import Job, environment

MAX_RAW_SIDE = 64  # pixels; up to here raw rows are smaller than what opening a PNG costs


@dataclass(frozen=True)
class Task:
    """All that a worker needs to write one shard, in any process on any machine.

    name: The shard's file name. folder: Where it goes.
    digests: sha256 of each sample as it was when the job was planned.
    unreadable: Position -> reason, for samples that could not be read then.
    environment: What `pipeline.job.environment` must give on the worker too.
    carried: What the shard takes over from an earlier output.
    """

    name: str
    folder: Path
    job: Job
    classes: tuple[str, ...]
    split: str
    source: Source
    samples: Samples
    digests: list[bytes]
    environment: dict[str, str]
    unreadable: dict[int, str] = field(default_factory=dict)
    carried: Carried | None = None

    def take(self, positions: np.ndarray) -> Task:
        """The task of the samples at these positions alone, which takes nothing over."""
        chosen = positions.tolist()
        return replace(
            self,
            samples=self.samples.take(positions),
            digests=[self.digests[i] for i in chosen],
            unreadable={
                n: self.unreadable[i] for n, i in enumerate(chosen) if i in self.unreadable
            },
            carried=None,
        )


def usable_shapes(scans: dict[str, Scan]) -> np.ndarray:
    """(n, 3) height, width, channels of all samples that can be read."""
    shapes = np.concatenate([scan.shapes for scan in scans.values()])
    return shapes[shapes[:, 2] > 0]


def extreme_shapes(
    scans: dict[str, Scan], shape: tuple[int, int, int] | None
) -> list[tuple[int, int, int]]:
    """The one shape, or of several the one with the shortest side and the one of most pixels."""
    if shape:
        return [shape]
    shapes = usable_shapes(scans)
    shortest, largest = shapes[:, :2].min(axis=1).argmin(), shapes.prod(axis=1).argmax()
    return [tuple(shapes[i].tolist()) for i in (shortest, largest)]


def common_shape(
    scans: dict[str, Scan], image_size: tuple[int, int] | None
) -> tuple[int, int, int] | None:
    """(height, width, channels) if every image will have it, else None."""
    shapes = usable_shapes(scans)
    if image_size is not None:
        shapes[:, :2] = image_size
    if len(shapes) == 0 or (shapes != shapes[0]).any():
        return None
    height, width, channels = shapes[0].tolist()
    return height, width, channels


def resolve_encoding(asked: str, shape: tuple[int, int, int] | None) -> Encoding:
    """`auto` is raw where every image has one size of at most 64 px, else jpeg.

    Raises: UserError if raw was asked for and the sizes differ.
    """
    if asked == "auto":
        return "raw" if shape and max(shape[:2]) <= MAX_RAW_SIDE else "jpeg"
    if asked == "raw" and shape is None:
        raise UserError(
            "--encoding raw: the images have different sizes; give --image-size, or use png or jpeg"
        )
    return asked  # type: ignore[return-value]  # cli offers no other values


def resolve_block_samples(
    asked: int | None, scans: dict[str, Scan], shape: tuple[int, int, int] | None
) -> int:
    """--block-samples, or the default from the mean size of the images."""
    if asked is not None:
        return asked
    sizes = usable_shapes(scans) if shape is None else np.array([shape])
    return default_block_samples(int(sizes.prod(axis=1, dtype=np.int64).mean()))


def plan_splits(
    samples: dict[str, Samples], copies: dict[str, int], block_samples: int
) -> dict[str, dict[str, int]]:
    """Split -> how many blocks and augmented copies it gets, as the job records it."""
    return {
        split: {"blocks": count_blocks(len(s), block_samples), "copies": copies[split]}
        for split, s in samples.items()
    }


def shard_names(job: Job) -> dict[str, list[str]]:
    """Split -> the file names of its shards."""
    return {
        split: [
            FORMATS[job.format].shard_name(job.dataset, split, i, plan["blocks"])
            for i in range(plan["blocks"])
        ]
        for split, plan in job.splits.items()
    }


class Tasks(Sequence[Task]):
    """The tasks of a job, a shard each, those of most images first: each is made when it is asked
    for, since a million of them would not fit in memory.

    sizes: Name -> images of the shard if every input is good, in the order of the tasks.
    n_images_to_write: Images of those shards that are not taken over whole.
    """

    def __init__(
        self,
        job: Job,
        classes: tuple[str, ...],
        source: Source,
        samples: dict[str, Samples],
        scans: dict[str, Scan],
        folder: Path,
        without: Collection[str] = (),
        base: Base | None = None,
    ) -> None:
        self.job, self.classes, self.source = job, classes, source
        self.samples, self.scans, self.folder = samples, scans, folder
        self.environment = environment()
        shards: list[tuple[str, str, np.ndarray, Carried | None]] = []
        for split, names in shard_names(job).items():
            part = samples[split]
            blocks = place(part, job.seed, len(names))
            taken: Iterable[Carried | None] = [None] * len(names)
            if base is not None:
                taken = plan_carried(base, classes, split, part, scans[split], blocks)
            shards += [
                (name, split, positions, carried)
                for name, positions, carried in zip(names, blocks, taken, strict=True)
                if name not in without
            ]
        n_copies = {split: len(job.copies(split)) for split in job.splits}
        # The last tasks decide when a run ends, so the largest come first.
        shards.sort(key=lambda shard: len(shard[2]) * n_copies[shard[1]], reverse=True)
        self.shards = shards
        self.sizes = {name: len(where) * n_copies[split] for name, split, where, _ in shards}
        self.n_images_to_write = sum(
            self.sizes[name]
            for name, *_, carried in shards
            if carried is None or not carried.is_whole
        )

    def __len__(self) -> int:
        return len(self.shards)

    @overload
    def __getitem__(self, i: int) -> Task: ...
    @overload
    def __getitem__(self, i: slice) -> list[Task]: ...
    def __getitem__(self, i: int | slice) -> Task | list[Task]:
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        name, split, positions, carried = self.shards[i]
        scan, where = self.scans[split], positions.tolist()
        return Task(
            name=name,
            folder=self.folder,
            job=self.job,
            classes=self.classes,
            split=split,
            source=self.source,
            samples=self.samples[split].take(positions),
            digests=[scan.digests[n] for n in where],
            environment=self.environment,
            unreadable={n: scan.errors[p] for n, p in enumerate(where) if p in scan.errors},
            carried=carried,
        )
