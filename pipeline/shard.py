"""One shard: decode a block's samples once, write every copy of them, leave a record."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import cv2
import google_crc32c
import numpy as np

from datasets import images, storage
from datasets.commit import attempt, has_died, write_record
from datasets.errors import EnvironmentFailed, ImageError
from datasets.fingerprint import digest_of, not_read
from datasets.formats import FORMATS
from datasets.manifest import Record
from datasets.schema import Rows, Schema
from datasets.source import Samples, Source, sample_keys
from pipeline.cluster import how_to_share
from pipeline.decoder import DecoderProcess
from pipeline.job import Job, check_environment, parsed_policy
from pipeline.library_ops import LibraryStage
from pipeline.memory import keep_freed_memory
from pipeline.opencv_kernel import augment_batch, prepare
from pipeline.task import Task

BATCH_BYTES = 16 * 2**20  # decoded images that are augmented and written at a time

# Writes the rows of a shard to a file, decoding in a child process where asked to.
ShardFiller = Callable[[BinaryIO, bool], Record]


class HashingFile:
    """A binary file that counts and hashes what is written to it, so that nothing is read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.crc32c, self.n_bytes = file, hashlib.sha256(), 0, 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.crc32c = google_crc32c.extend(self.crc32c, data)
        self.file.write(data)
        self.n_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.n_bytes

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True


def write_shard(task: Task, fill: ShardFiller | None = None) -> Record:
    """The record of the shard, which is then complete under its name, flushed and hashed.

    fill: What writes the rows, in another way than `fill_shard`.
    Safe to run twice at once: each attempt has a file of its own, and both give the same bytes.
    Raises: EnvironmentFailed if the disk is full, an input changed since it was planned, or this
      machine has other libraries, pixels or storage than the one that planned the job.
    """
    cv2.setNumThreads(1)  # a worker is one process a core
    keep_freed_memory()
    check_worker(task)
    # An attempt that died has left its file: the inputs are decoded in a process of their own. The
    # file stays until the commit, since that attempt may also be slow and not dead.
    died = has_died(task.folder, task.name)
    fill = fill or partial(fill_shard, task)
    return finished(task.folder, task.name, lambda file: fill(file, died))


def check_worker(task: Task) -> None:
    """Raises: EnvironmentFailed if this worker would write other bytes or elsewhere."""
    check_environment(task.environment)
    if storage.kind(task.folder) != "directory":
        raise EnvironmentFailed(
            f"worker {os.uname().nodename}: does not see {task.folder}; {how_to_share(task.folder)}"
        )


def finished(folder: Path, name: str, fill: Callable[[BinaryIO], Record]) -> Record:
    """The record of a shard that `fill` writes, which is then flushed and under its name.

    Raises: EnvironmentFailed if it cannot be written.
    """
    try:
        with attempt(folder, name):
            with storage.new_file(folder / name) as file:
                record = fill(file)
            write_record(folder, record)
    except OSError as err:
        raise EnvironmentFailed(disk_message(folder, err)) from err
    return record


def disk_message(folder: Path, err: OSError) -> str:
    """One line about a failed write."""
    advice = "free some space" if err.errno == errno.ENOSPC else "fix that"
    return (
        f"{folder}: {err.strerror or err}; {advice} and run the same command again, finished "
        "shards are kept"
    )


def fill_shard(task: Task, file: BinaryIO, in_child: bool) -> Record:
    """Writes every copy of the task's samples to `file`."""
    good, decoded, quarantined = decode_block(task, in_child)
    # Fresh memory for every batch costs 5 % at 32 px; the writer keeps none of it.
    memory = np.empty_like(decoded[: batch_samples(task.job.shape)]) if task.job.shape else None
    return write_rows(task, file, good, quarantined, augmented(task, good, decoded, memory))


def augmented(
    task: Task,
    good: np.ndarray,
    decoded: np.ndarray | list[np.ndarray],
    memory: np.ndarray | None = None,
) -> Iterator[Rows]:
    """The rows of the task's samples at these positions, from their images: copy by copy, a batch
    at a time.

    memory: Of one batch, for the images of all of them in turn: each is gone with the next.
    """
    job, schema = task.job, task.job.schema(task.classes)
    policy = parsed_policy(job.policy)
    library = LibraryStage(policy.library) if policy.library else None
    ids = [task.samples.ids[i] for i in good]
    labels, keys = task.samples.labels[good], sample_keys(ids)
    batches = list(split_batches(decoded, batch_samples(job.shape)))
    prepared = [prepare(batch, policy.fill) for _, batch in batches]
    for copy in job.copies(task.split):
        for (start, batch), wide in zip(batches, prepared, strict=True):
            part = slice(start, start + len(batch))
            spare = None if memory is None else memory[: len(batch)]
            out, params, done = augment_batch(
                policy, batch, wide, keys[part], copy, job.seed, library, spare
            )
            yield Rows(encode(out, schema, job), labels[part], ids[part], copy, params, done)


def write_rows(
    task: Task,
    file: BinaryIO,
    good: np.ndarray,
    quarantined: list[tuple[str, str]],
    batches: Iterator[Rows],
) -> Record:
    """Writes all rows of the samples at the positions `good`, as they come, to the end."""
    job, labels = task.job, task.samples.labels[good]
    hashing = HashingFile(file)
    writer = FORMATS[job.format].Writer(hashing, job.schema(task.classes), job.compression)
    try:
        for rows in batches:
            writer.write(rows)
    except BaseException:
        with suppress(Exception):  # else the library complains of it once more, later
            writer.close()
        raise
    writer.close()

    n_copies = len(job.copies(task.split))
    counts = np.bincount(labels, minlength=len(task.classes)).tolist()
    return Record(
        name=task.name,
        split=task.split,
        rows=len(good) * n_copies,
        bytes=hashing.n_bytes,
        sha256=hashing.digest.hexdigest(),
        crc32c=hashing.crc32c,
        labels={str(i): n for i, n in enumerate(counts) if n},
        quarantined=quarantined,
        copy_ranges={str(copy): ends for copy, ends in writer.copy_ranges.items()},
    )


def decode_block(
    task: Task, in_child: bool
) -> tuple[np.ndarray, np.ndarray | list[np.ndarray], list[tuple[str, str]]]:
    """Positions of the usable samples, their images, and (id, reason) of the others.

    Images are (n, H, W, C) uint8 where the job has one shape, else a list of (H, W, C).
    """
    shape, samples = task.job.shape, task.samples
    stacked = np.empty((len(samples), *shape), np.uint8) if shape else None
    several: list[np.ndarray] = []
    good: list[int] = []
    quarantined: list[tuple[str, str]] = []
    child = DecoderProcess() if in_child else None
    try:
        for i, data in read_checked(task):
            try:
                if data is None:
                    raise ImageError(task.unreadable[i])
                image = decode_sample(
                    task.source, samples, i, data, task.job.image_size, shape, child
                )
                images.check_encodable(image, task.job.encoding)
            except ImageError as err:
                quarantined.append((samples.ids[i], str(err)))
                continue
            if stacked is not None:
                stacked[len(good)] = image
            else:
                several.append(image)
            good.append(i)
    finally:
        if child is not None:
            child.close()
    usable = stacked[: len(good)] if stacked is not None else several
    return np.array(good, np.int64), usable, quarantined


def read_checked(task: Task) -> Iterator[tuple[int, np.ndarray | bytes | None]]:
    """(position, what the source gives) for every sample; None for one that was unreadable.

    Raises: EnvironmentFailed if a sample is not what it was when the job was planned.
    """
    readable = [i for i in range(len(task.samples)) if i not in task.unreadable]
    found = task.source.read([task.samples.refs[i] for i in readable])
    for i in range(len(task.samples)):
        if i in task.unreadable:
            yield i, None
            continue
        name = task.samples.ids[i]
        try:
            data = next(found, None)
        except OSError as err:
            told = "is gone" if isinstance(err, FileNotFoundError) else err.strerror or err
            raise EnvironmentFailed(
                f"{name}: {told} on {os.uname().nodename}, and could be read a moment ago; run the "
                "same command again"
            ) from err
        if data is None or digest_of(data) != task.digests[i]:
            raise EnvironmentFailed(
                f"{name}: changed while the run read it; run the same command again"
            )
        yield i, data


def decode_sample(
    source: Source,
    samples: Samples,
    i: int,
    data: np.ndarray | bytes | OSError,
    image_size: tuple[int, int] | None,
    shape: tuple[int, ...] | None = None,
    child: DecoderProcess | None = None,
) -> np.ndarray:
    """(H, W, C) uint8: sample i, cropped to its box and fitted to the size.

    Args:
      data: What the source gives for it, or why it could not be read, as `read_each` has them.
      shape: Of the result, where it is known from the header.
      child: Decodes in its stead, if there is one.
    Raises: ImageError if it could not be read, or is not an image of that shape.
    """
    if isinstance(data, OSError):
        raise ImageError(not_read(data))
    image = decode_one(data, source.channels, samples.box(i), image_size, child)
    if shape is not None and image.shape != shape:
        raise ImageError(f"decodes to {image.shape}, its header said {shape}")
    return image


def decode_one(
    data: np.ndarray | bytes,
    channels: int,
    box: Sequence[int] | None,
    image_size: tuple[int, int] | None,
    child: DecoderProcess | None,
) -> np.ndarray:
    """(H, W, C) uint8, cropped to the box and fitted to the size. Raises ImageError."""
    if isinstance(data, np.ndarray):
        image = data if data.ndim == 3 else data[..., None]
    else:
        image = (child.decode if child else images.decode)(data, channels)
    if box is not None:
        image = images.crop(image, box)
    if image_size is not None and image.shape[:2] != image_size:
        image = images.fit(image, *image_size)
    return image


def batch_samples(shape: tuple[int, ...] | None) -> int:
    """Samples a batch: about 16 MB of them, or one where sizes differ."""
    return max(1, BATCH_BYTES // math.prod(shape)) if shape else 1


def split_batches(
    decoded: np.ndarray | list[np.ndarray], size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(first position, (b, H, W, C)): batches of that size, or of one where sizes differ."""
    if isinstance(decoded, list):
        yield from ((i, image[None]) for i, image in enumerate(decoded))
    else:
        yield from ((i, decoded[i : i + size]) for i in range(0, len(decoded), size))


def encode(out: np.ndarray, schema: Schema, job: Job) -> np.ndarray | list[bytes]:
    """(b, H, W, C) images as the schema stores them."""
    if schema.encoding == "raw":
        return out
    return [images.encode(image, schema.encoding, job.quality or 0) for image in out]
