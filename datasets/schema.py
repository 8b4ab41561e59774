"""The columns of a shard, whatever its format, and the rows that go into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from datasets.encoded import Encoded

Encoding = Literal["raw", "png", "jpeg", "float32"]


@dataclass(frozen=True)
class Schema:
    """What one output's rows hold.

    encoding: How `image` is stored; `raw` is the uint8 pixels in C order. With `float32` a row has
      `features` instead, what a network made of an image.
    shape: (height, width, channels), where every image has it; always for `raw`, else maybe None.
      Of features their number alone.
    classes: Class names in label order.
    params: Names of the float32 parameter columns, in order.
    library: Whether there is a `library_ops` column (string, JSON).
    """

    encoding: Encoding
    shape: tuple[int, ...] | None
    classes: tuple[str, ...]
    params: tuple[str, ...]
    library: bool

    def fixed_shape(self) -> tuple[int, ...]:
        """The one shape of all images.

        Raises: ValueError if there is none.
        """
        if self.shape is None:
            raise ValueError("raw images need one shape")
        return self.shape


@dataclass(frozen=True)
class Rows:
    """Rows of one copy, as columns of equal length n.

    images: (n, H, W, C) uint8 where raw, (n, d) float32 features, else n encoded files.
    labels: (n,) int64. ids: n strings. copy: the number of the copy, the same for all rows.
    params: name -> (n,) float32, for each of the schema's.
    library: n JSON strings where the schema has `library`, else None.
    """

    images: np.ndarray | Sequence[bytes]
    labels: np.ndarray
    ids: list[str]
    copy: int
    params: dict[str, np.ndarray]
    library: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, i: int) -> Rows:
        """Row i by itself, in memory of its own."""
        return self.map(
            lambda column: column[[i]] if isinstance(column, np.ndarray) else [column[i]]
        )

    def take(self, positions: np.ndarray) -> Rows:
        """The rows at these positions, in this order."""
        chosen = positions.tolist()

        def of(column: Any) -> Any:
            if isinstance(column, np.ndarray):
                return column[positions]
            is_encoded = isinstance(column, Encoded)
            return column.take(positions) if is_encoded else [column[i] for i in chosen]

        return self.map(of)

    def part(self, start: int, end: int) -> Rows:
        """The rows from `start` up to `end`; arrays are views."""
        return self.map(lambda column: column[start:end])

    def map(self, function: Callable[[Any], Any]) -> Rows:
        """What the function makes of each column."""
        return Rows(
            images=function(self.images),
            labels=function(self.labels),
            ids=function(self.ids),
            copy=self.copy,
            params={name: function(values) for name, values in self.params.items()},
            library=None if self.library is None else function(self.library),
        )

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, which are of one copy, in their order."""

        def of(columns: list[Any]) -> Any:
            if isinstance(columns[0], np.ndarray):
                return np.concatenate(columns)
            if any(isinstance(column, Encoded) for column in columns):
                return Encoded.join(columns)
            return [x for column in columns for x in column]

        first = parts[0]
        return Rows(
            images=of([p.images for p in parts]),
            labels=of([p.labels for p in parts]),
            ids=of([p.ids for p in parts]),
            copy=first.copy,
            params={name: of([p.params[name] for p in parts]) for name in first.params},
            library=None if first.library is None else of([p.library for p in parts]),
        )


def as_utf8(text: str) -> bytes:
    """The bytes of a text. What names of files have and UTF-8 has not becomes `\\udcff`, which in
    JSON is the same name again."""
    return text.encode(errors="backslashreplace")


def canonical_json(value: object) -> str:
    """The one way this project writes JSON that is hashed: sorted keys, two-space indent, a final
    newline, UTF-8."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
