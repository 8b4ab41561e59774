"""Handwritten digits, 1,797 grey images of 8x8; bundled with scikit-learn, so always there."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from datasets.errors import SourceError
from datasets.folder import split_by_hash
from datasets.source import Listing


@cache
def load() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8 images, (1797,) int64 labels.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998; read
    from scikit-learn's file without importing scikit-learn, which takes a second.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise SourceError("digits: scikit-learn, whose data this is, is not installed; install it")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.array([line.split(",") for line in file], dtype=np.float64)
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8), table[:, 64].astype(np.int64)


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, 8x8 grey, 10 classes, 1,797 images; bundled, needs no download."""

    root: Path
    name = "digits"
    channels = 1

    def listing(self) -> Listing:
        labels = load()[1]
        ids = [f"{i:05d}" for i in range(len(labels))]
        return Listing(tuple("0123456789"), split_by_hash(ids, labels, range(len(labels))))

    def read(self, refs: Sequence[int]) -> Iterator[np.ndarray]:
        images = load()[0]
        return (images[ref] for ref in refs)
