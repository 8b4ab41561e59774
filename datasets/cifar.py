"""CIFAR-10 and CIFAR-100 in their binary versions; the Python ones are pickles, which can run code.

Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from datasets import storage
from datasets.download import Log, extract, fetch
from datasets.errors import SourceError
from datasets.source import Listing, Samples, read_file

URL = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32  # channel by channel
MAX_RUN = 256  # records read at a time, 0.8 MB


@dataclass(frozen=True)
class Cifar:
    """What both have in common. A record: `n_labels` bytes, the last one the class, then pixels."""

    root: Path
    name: ClassVar[str]
    folder: ClassVar[str]
    archive: ClassVar[str]
    md5: ClassVar[str]
    names: ClassVar[str]  # the file of class names
    files: ClassVar[Mapping[str, tuple[str, ...]]]
    n_labels: ClassVar[int]
    channels = 3

    def download(self, log: Log) -> None:
        if not (self.root / self.folder).is_dir():
            archive = fetch(URL + self.archive, f"md5:{self.md5}", self.root / self.archive, log)
            extract(archive, self.folder, self.root)

    def listing(self) -> Listing:
        folder = self.root / self.folder
        splits = {split: self._samples(split) for split in self.files}
        try:
            names = read_file(folder / self.names).decode().split()
        except (OSError, UnicodeDecodeError) as err:
            raise self._broken(folder / self.names, err) from err
        return Listing(tuple(names), splits)

    def _broken(self, path: Path, why: object) -> SourceError:
        return SourceError(
            f"{path}: {getattr(why, 'strerror', None) or why}; remove {path.parent} and the data "
            "set is fetched again"
        )

    def _samples(self, split: str) -> Samples:
        refs: list[tuple[str, int]] = []
        labels: list[np.ndarray] = []
        record = self.n_labels + PIXELS
        buffer = bytearray(MAX_RUN * record)
        for file in self.files[split]:
            path = self.root / self.folder / file
            size, column = 0, bytearray()
            try:
                with storage.open_file(path) as records:
                    while n := records.readinto(buffer):
                        size += n
                        column += buffer[self.n_labels - 1 : n : record]
            except OSError as err:
                raise self._broken(path, err) from err
            if size == 0 or size % record:
                why = f"{size:,} bytes, expected a multiple of {record}"
                raise self._broken(path, why)
            if labels and len(column) != len(labels[0]):
                why = f"{len(column):,} images, but {self.files[split][0]} has {len(labels[0]):,}"
                raise self._broken(path, why)
            labels.append(np.frombuffer(column, np.uint8).astype(np.int64))
            refs += [(file, i) for i in range(len(column))]
        ids = [f"{split}/{i:05d}" for i in range(len(refs))]
        return Samples(ids, np.concatenate(labels), refs)

    def read(self, refs: Sequence[tuple[str, int]]) -> Iterator[np.ndarray]:
        record, done = self.n_labels + PIXELS, 0
        with ExitStack() as stack:
            handles: dict[str, int] = {}
            while done < len(refs):
                file, first = refs[done]
                if file not in handles:
                    handles[file] = os.open(self.root / self.folder / file, os.O_RDONLY)
                    stack.callback(os.close, handles[file])
                n = run_length(refs, done)
                data = os.pread(handles[file], n * record, first * record)
                n_whole = len(data) // record
                rows = np.frombuffer(data, np.uint8, n_whole * record).reshape(-1, record)
                images = np.empty((n_whole, PIXELS // 3, 3), np.uint8)
                for channel in range(3):  # three times as fast as to transpose them
                    start = self.n_labels + channel * PIXELS // 3
                    images[..., channel] = rows[:, start : start + PIXELS // 3]
                yield from images.reshape(-1, 32, 32, 3)
                if n_whole < n:
                    raise OSError(f"{file}: ends before image {first + n_whole}")
                done += n


def run_length(refs: Sequence[tuple[str, int]], start: int) -> int:
    """How many records from there on lie one behind the other, up to what is read at a time."""
    file, first = refs[start]
    n, most = 1, min(MAX_RUN, len(refs) - start)
    while n < most and refs[start + n] == (file, first + n):
        n += 1
    return n


class Cifar10(Cifar):
    """CIFAR-10, 32x32 colour, 10 classes, 50,000 + 10,000 images; downloads 162 MB."""

    name = "cifar10"
    folder = "cifar-10-batches-bin"
    archive = "cifar-10-binary.tar.gz"
    md5 = "c32a1d4ab5d03f1284b67883e8d87530"
    names = "batches.meta.txt"
    files: ClassVar = {
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    }
    n_labels = 1


class Cifar100(Cifar):
    """CIFAR-100, 32x32 colour, 100 classes, 50,000 + 10,000 images; downloads 161 MB."""

    name = "cifar100"
    folder = "cifar-100-binary"
    archive = "cifar-100-binary.tar.gz"
    md5 = "03b5dce01913d631647c71ecec9e9cb8"
    names = "fine_label_names.txt"
    files: ClassVar = {"train": ("train.bin",), "test": ("test.bin",)}
    n_labels = 2  # coarse, fine
