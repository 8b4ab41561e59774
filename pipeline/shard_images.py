"""Committed shards as a source of copies for training, in the order of the online path."""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets import images, storage
from datasets.blocks import blocks_per_group
from datasets.errors import Damaged, OutputError, UserError
from datasets.formats import FORMATS
from datasets.manifest import Record, damages, read_manifest, repair_advice
from datasets.source import mix, sample_keys
from datasets.versions import open_version, replaced_error, was_replaced
from pipeline.check import job_of
from pipeline.memory import aligned


class ShardImages:
    """The copies of one split of an output, as `pipeline.stream.Images`; shards are read when they
    are due, as many at a time as are permuted together.

    ids, labels, keys, blocks: By position: shard after shard, in the order of their rows.
    """

    def __init__(self, folder: Path, split: str, verify: bool = False) -> None:
        """Raises: UserError if the folder is no committed output, is damaged (sizes and footers are
        looked at, with `verify` every hash), or its images differ in size."""
        folder, self.handle = open_version(folder)
        if self.handle is not None:
            weakref.finalize(self, os.close, self.handle)  # till then nobody removes that version
        self.manifest = manifest = read_manifest(folder)
        self.folder, self.job = folder, job_of(folder, manifest)
        self.reader = FORMATS[self.job.format]
        self.records = [record for record in manifest.shards if record.split == split]
        if not self.records:
            known = ", ".join(self.job.splits)
            raise UserError(f"{folder}: has no split {split!r}, only {known}")
        if self.job.shape is None:
            raise UserError(
                f"{folder}: its images have different sizes, and a batch has one; write them again "
                "with --image-size"
            )
        sizes = storage.files_below(folder)
        for record in self.records:
            path = folder / record.name
            if sizes.get(record.name) != record.bytes:
                raise Damaged(f"{path}: not as it was written; {repair_advice(folder)}")
            found = self.reader.read_schema(path)
            if (found.encoding, found.shape) != (self.job.encoding, self.job.shape):
                raise Damaged(f"{path}: not as the manifest says; {repair_advice(folder)}")
        broken = next(iter(damages(folder, manifest)), None) if verify else None
        if broken:
            raise Damaged(f"{folder / broken[0]}: {broken[1]}; {repair_advice(folder)}")
        self.classes, self.shape = tuple(manifest.classes), self.job.shape
        self.content = manifest.job_sha256
        self.policy, self.seed = self.job.policy, self.job.seed
        network = self.job.network
        self.dtype = "float32" if network else "uint8"
        self.sample_bytes = int(np.prod(network["shape"] if network else self.shape))
        self.is_in_memory = self.job.encoding in ("raw", "float32")
        self.copies = self.job.copies(split)
        self.n_copies, self.n_blocks = max(self.copies), len(self.records)
        tables = [self.first_copy(record) for record in self.records]
        n_samples = [len(names) for names, _ in tables]
        self.ids = [name for names, _ in tables for name in names]
        self.labels = np.concatenate([labels for _, labels in tables])
        if not np.isin(self.labels, np.arange(len(self.classes))).all():
            raise Damaged(f"{folder}: has labels without a class; {repair_advice(folder)}")
        self.keys = sample_keys(self.ids)
        self.blocks = np.repeat(np.arange(self.n_blocks, dtype=np.uint64), n_samples)
        self.offsets = np.cumsum([0, *n_samples])
        self.n_total = len(self.ids) + sum(len(r.quarantined) for r in self.records)
        if network:
            self.n_total = network["n_total"]
        self.usable = np.arange(len(self.ids))
        n_kept = 2 * blocks_per_group(self.n_total, self.n_blocks, self.sample_bytes)
        self.read = lru_cache(maxsize=n_kept)(self._read)
        self.lock = threading.Lock()  # or two threads would decode the same shard at once
        self.refuse_replaced()

    def refuse_replaced(self) -> None:
        """Raises: EnvironmentFailed if other shards have come in the place of those of the
        manifest."""
        if not was_replaced(self.folder, self.handle):
            return
        with suppress(Damaged, OutputError):  # none there, in the moment of a commit
            if read_manifest(self.folder) == self.manifest:
                return
        raise replaced_error(self.folder)

    def first_copy(self, record: Record) -> tuple[list[str], np.ndarray]:
        """Sample ids and labels of a shard's samples, in the order of the rows of each copy."""
        span = record.copy_ranges.get(str(self.copies[0]))
        columns = ["sample_id", "label"]
        table = self.reader.read_columns(self.folder / record.name, columns, span)
        n = record.rows // len(self.copies)  # copy after copy, each with the same samples
        labels = table["label"].to_numpy()[:n].astype(np.int64)
        return table["sample_id"].slice(0, n).to_pylist(), labels

    def images(self, positions: np.ndarray, copy: int) -> np.ndarray:
        """(B, *shape): that copy of the samples at these positions."""
        if copy not in self.copies:
            raise UserError(
                f"{self.folder}: has no originals, which validation needs; write it with --original"
            )
        out = aligned((len(positions), *self.shape), self.dtype)
        shards = self.blocks[positions].astype(np.int64)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            with self.lock:
                stored = self.read(shard, copy)
            out[here] = stored[positions[here] - self.offsets[shard]]
        return out

    def _read(self, shard: int, copy: int) -> np.ndarray:
        """(n, *shape): one copy of all samples of a shard."""
        record = self.records[shard]
        path, n = self.folder / record.name, record.rows // len(self.copies)
        span, parts = record.copy_ranges.get(str(copy)), []
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for found in self.reader.read_copy(path, copy, span):
                if not isinstance(found, np.ndarray):
                    decoded = pool.map(lambda data: images.decode(data, self.shape[2]), found)
                    found = np.stack(list(decoded))
                parts.append(found)
        self.refuse_replaced()  # and not before, since it may have happened in between
        if sum(map(len, parts)) != n:
            raise Damaged(
                f"{path}: has {sum(map(len, parts))} rows of copy {copy}, expected {n}; it changed "
                "while it was read: start again"
            )
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class AllCopies:
    """Every stored copy of every sample as one of its own, as `pipeline.stream.Images`: an epoch
    shows what lies in the shards.

    Row r is copy copies[r // n] of the sample at position r % n. Each copy of a shard counts as a
    block, since that much is read at a time.
    """

    def __init__(self, source: ShardImages) -> None:
        self.source, self.n = source, len(source.ids)
        k = len(source.copies)
        self.classes, self.shape, self.content = source.classes, source.shape, source.content
        self.policy, self.seed, self.n_copies = source.policy, source.seed, 1
        self.dtype, self.sample_bytes = source.dtype, source.sample_bytes
        self.is_in_memory = source.is_in_memory
        self.ids, self.labels = source.ids * k, np.tile(source.labels, k)
        self.keys = np.concatenate([mix(source.keys, copy, "copy") for copy in source.copies])
        first = np.repeat(np.arange(k, dtype=np.uint64) * np.uint64(source.n_blocks), self.n)
        self.blocks = first + np.tile(source.blocks, k)
        self.n_blocks, self.n_total = k * source.n_blocks, k * source.n_total
        self.usable = self.rows(source.usable)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """All rows of the samples at these positions."""
        starts = np.arange(len(self.source.copies)) * self.n
        return (starts[:, None] + positions).ravel()

    def images(self, positions: np.ndarray, copy: int) -> np.ndarray:
        """(B, *shape): the images of these rows; there is no other copy of a row."""
        out = aligned((len(positions), *self.shape), self.dtype)
        numbers, samples = np.divmod(positions, self.n)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            out[here] = self.source.images(samples[here], self.source.copies[number])
        return out
