"""The columns of a shard, whatever its format, and the rows that go into it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

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


@dataclass(frozen=True)
class Rows:
    """Rows of one copy, as columns of equal length n.

    images: (n, H, W, C) uint8 where raw, (n, d) float32 features, else a list of n encoded files.
    labels: (n,) int64. ids: n strings. copy: the number of the copy, the same for all rows.
    params: name -> (n,) float32, for each of the schema's.
    library: n JSON strings where the schema has `library`, else None.
    """

    images: np.ndarray | list[bytes]
    labels: np.ndarray
    ids: list[str]
    copy: int
    params: dict[str, np.ndarray]
    library: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, i: int) -> Rows:
        """Row i by itself, in memory of its own."""
        stored = self.images[i]
        return Rows(
            images=stored[None].copy() if isinstance(stored, np.ndarray) else [stored],
            labels=self.labels[i : i + 1].copy(),
            ids=[self.ids[i]],
            copy=self.copy,
            params={name: values[i : i + 1].copy() for name, values in self.params.items()},
            library=None if self.library is None else [self.library[i]],
        )


def canonical_json(value: object) -> str:
    """The one way this project writes JSON that is hashed: sorted keys, two-space indent, a final
    newline, UTF-8."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
