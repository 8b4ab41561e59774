"""A folder of shards as a source: what Parquet and TFRecord have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import Damaged, ImageError, SourceError
from datasets.fingerprint import read_each
from datasets.folder import source_name
from datasets.images import opened
from datasets.labels import as_number
from datasets.source import Listing, Samples
from datasets.versions import output_of


def is_grey(data: np.ndarray | bytes | OSError) -> bool:
    """Whether a file is a grey image; also true of what is none, which has no say."""
    try:
        with opened(data if isinstance(data, bytes) else b"") as image:
            return image.mode in ("1", "L")
    except ImageError:
        return True


def as_shape(dimensions: Any) -> tuple[int, int, int]:
    """Raises: ValueError, TypeError if they are not (height, width, 1 or 3)."""
    height, width, channels = map(int, dimensions)
    if min(height, width) < 1 or channels not in (1, 3):
        raise ValueError(f"the shape {height}x{width}x{channels}")
    return height, width, channels


def as_pixels(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Raises: OSError if there are more or fewer than the shape has."""
    if len(data) != math.prod(shape):
        raise OSError(f"has {len(data):,} bytes, expected {'x'.join(map(str, shape))} pixels")
    return np.frombuffer(data, np.uint8).reshape(shape)


@dataclass(frozen=True)
class Shards(ABC):
    """Rows of shards. Of ours, the originals (or all rows, where there are none) under their sample
    ids; of others', every row under its split and number. A split without any label is left out.

    paths: Split -> its shards, in order.
    """

    root: Path
    paths: dict[str, list[Path]] = field(compare=False)

    @property
    def name(self) -> str:
        return source_name(output_of(self.root))

    @property
    def first(self) -> Path:
        return next(iter(self.paths.values()))[0]

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Their names; () where they have numbers alone."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int] | None:
        """(H, W, C) where images are stored as plain pixels; None where as files."""

    @abstractmethod
    def stored_rows(self, path: Path) -> Iterator[tuple[Any, ...]]:
        """(ref, label as it is stored) of each row of a shard; in ours sample id and copy too."""

    @abstractmethod
    def read(self, refs: Sequence[tuple[Any, ...]]) -> Iterator[np.ndarray | bytes]:
        """As of every source."""

    @cached_property
    def channels(self) -> int:
        """1 where every image is grey, by their headers up to the first in colour, else 3."""
        if self.shape:
            return self.shape[2]
        every = (path for paths in self.paths.values() for path in paths)
        images = (
            data
            for path in every
            for data in read_each(self, [ref for ref, *_ in self._rows(path)])
        )
        return 1 if all(map(is_grey, images)) else 3

    def listing(self) -> Listing:
        found, ignored = {}, []
        try:
            for split, paths in self.paths.items():
                found[split], n_copies = self._samples(split, paths)
                if n_copies:
                    what = f"{n_copies:,} augmented copies in {split}"
                    ignored.append(f"{what}, beside their originals")
        except Damaged as err:
            raise SourceError(f"{err}; fetch or write it again") from err
        classes = self.classes
        top = max((int(s.labels.max()) for s in found.values() if len(s)), default=0)
        if top < 0:
            raise SourceError(
                f"{self.root}: not one row has a label; expected whole numbers from 0"
            )
        splits = {split: s for split, s in found.items() if not len(s) or s.labels.max() >= 0}
        ignored += (f"{s} (a split without labels)" for s in found if s not in splits)
        return Listing(classes or tuple(str(i) for i in range(top + 1)), splits, tuple(ignored))

    def _samples(self, split: str, paths: list[Path]) -> tuple[Samples, int]:
        """Those of a split, and how many copies are passed over: all where there are originals."""
        rows = [row for path in paths for row in self._rows(path)]
        originals = [row for row in rows if row[3] == 0]
        n_copies = len(rows) - len(originals) if originals else 0
        rows = originals or rows
        ids = [
            f"{split}/{i:06d}" if name is None else name if not copy else f"{name}@{copy}"
            for i, (_, _, name, copy) in enumerate(rows)
        ]
        refs, labels = [ref for ref, *_ in rows], np.array([row[1] for row in rows], np.int64)
        if len(rows) and labels.min() < 0 <= labels.max():
            path, *row = refs[int(labels.argmin())]
            raise SourceError(
                f"{path}: its row {tuple(row)} has no label, but others have; expected one for "
                "each row of a split, or for none: fix or leave out that row"
            )
        return Samples(ids, labels, refs), n_copies

    def _rows(self, path: Path) -> Iterator[tuple[tuple[Any, ...], int, str | None, int | None]]:
        """(ref, label or -1, sample id, copy) of each row; the last two only in shards of ours."""
        for ref, value, *origin in self.stored_rows(path):
            try:
                label = as_number(value)
            except ValueError as err:
                raise SourceError(
                    f"{path}: its row {ref[1:]} has the label {repr(value)[:60]}; {err}: fix or "
                    "leave out that row"
                ) from err
            yield ref, label, *(origin or (None, None))
