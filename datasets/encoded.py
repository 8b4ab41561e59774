"""Encoded images as Arrow holds them: a shard's rows go into another without being copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa


class Encoded(Sequence[bytes]):
    """n encoded files; one of them is `bytes`, several are a view that keeps all of them.

    column: Of type binary, in as many chunks as there are pieces.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.column.to_pylist())

    @overload
    def __getitem__(self, where: int) -> bytes: ...
    @overload
    def __getitem__(self, where: slice) -> Encoded: ...
    def __getitem__(self, where: int | slice) -> bytes | Encoded:
        found = self.column[where]
        return Encoded(found) if isinstance(where, slice) else found.as_py()

    def take(self, positions: np.ndarray) -> Encoded:
        """The files at these (n,) int64 positions, in this order."""
        starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)  # of runs without a gap
        lengths = np.diff(starts, append=len(positions)).tolist()
        firsts = positions[starts].tolist()
        runs = [self.column.slice(i, n) for i, n in zip(firsts, lengths, strict=True)]
        return Encoded(chunks_of(runs))

    @staticmethod
    def join(parts: Sequence[Sequence[bytes]]) -> Encoded:
        """All files of all parts, in their order."""
        return Encoded(
            chunks_of([p.column if isinstance(p, Encoded) else as_column(p) for p in parts])
        )


def as_column(files: Sequence[bytes]) -> pa.ChunkedArray:
    """A copy of the files, in one chunk."""
    return pa.chunked_array([pa.array(files, pa.binary())])


def chunks_of(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Columns of type binary one behind the other, not copied."""
    return pa.chunked_array([chunk for c in columns for chunk in c.chunks], pa.binary())


def in_one_piece(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; where there is one chunk Arrow's own way copies it."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
