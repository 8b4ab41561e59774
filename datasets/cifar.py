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

from datasets.download import extract, fetch
from datasets.errors import SourceError
from datasets.source import Listing, Samples

URL = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32  # channel by channel


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

    def listing(self) -> Listing:
        folder = self.root / self.folder
        if not folder.is_dir():
            archive = fetch(URL + self.archive, f"md5:{self.md5}", self.root / self.archive)
            extract(archive, self.folder, self.root)
        splits = {split: self._samples(split) for split in self.files}
        try:
            names = (folder / self.names).read_text().split()
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
        for file in self.files[split]:
            path = self.root / self.folder / file
            try:
                data = np.fromfile(path, np.uint8)
            except OSError as err:
                raise self._broken(path, err) from err
            if data.size == 0 or data.size % record:
                why = f"{data.size:,} bytes, expected a multiple of {record}"
                raise self._broken(path, why)
            column = data.reshape(-1, record)[:, self.n_labels - 1]
            if labels and len(column) != len(labels[0]):
                why = f"{len(column):,} images, but {self.files[split][0]} has {len(labels[0]):,}"
                raise self._broken(path, why)
            labels.append(column.astype(np.int64))
            refs += [(file, i) for i in range(len(column))]
        ids = [f"{split}/{i:05d}" for i in range(len(refs))]
        return Samples(ids, np.concatenate(labels), refs)

    def read(self, refs: Sequence[tuple[str, int]]) -> Iterator[np.ndarray]:
        record = self.n_labels + PIXELS
        with ExitStack() as stack:
            handles: dict[str, int] = {}
            for file, i in refs:
                if file not in handles:
                    handles[file] = os.open(self.root / self.folder / file, os.O_RDONLY)
                    stack.callback(os.close, handles[file])
                data = os.pread(handles[file], PIXELS, i * record + self.n_labels)
                if len(data) < PIXELS:
                    raise OSError(f"{file}: ends before image {i}")
                planes = np.frombuffer(data, np.uint8).reshape(3, 32, 32)
                yield np.ascontiguousarray(planes.transpose(1, 2, 0))


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
