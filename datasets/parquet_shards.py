"""Parquet shards as a source: ours and Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets import storage
from datasets.errors import SourceError, first_line
from datasets.labels import names_in
from datasets.shards import Shards, as_pixels, as_shape

IMAGE = ("image", "img")
LABEL = ("label", "labels", "fine_label")
# Rows of a row group that are decoded at once, bytes of its images, and rows of a file: one of 1 MB
# may say one image, or one label, a billion times.
BATCH, MAX_BYTES, MAX_ROWS = 64, 2**31, 20_000_000
MAX_SHOWN = 60  # characters of class names in a message
UNREADABLE = "its row group cannot be read"


def shown(names: tuple[str, ...]) -> str:
    """Names of classes in a message, cut where they are many."""
    text = ", ".join(names)
    return f"{text[:MAX_SHOWN]}..." if len(text) > MAX_SHOWN else text or "by their numbers alone"


@dataclass(frozen=True)
class Column:
    """How the rows of Parquet shards are told: names of columns, class names, shape where raw."""

    image: str
    label: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int] | None
    has_origin: bool  # sample_id and copy, as ours have


@dataclass(frozen=True)
class ParquetShards(Shards):
    """Rows of Parquet shards.

    A block of samples is scattered by hash over its whole split, and the image column is read of
    every row group that holds one of them, which is nearly all of the split for each block: B
    blocks read it about B times, from the system's cache where it fits in there. Larger blocks, or
    shards with small row groups, read less.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        return self.columns.classes

    @property
    def shape(self) -> tuple[int, int, int] | None:
        return self.columns.shape

    @cached_property
    def columns(self) -> Column:
        """Raises: SourceError if there is no image or label column."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with storage.for_arrow(self.first) as data:
                found = pq.read_schema(data)
        except (pa.ArrowException, OSError) as err:
            raise SourceError(f"{self.first}: not a Parquet file: {err}") from err
        image = next((n for n in IMAGE if found.names.count(n) == 1), None)
        label = next((n for n in LABEL if found.names.count(n) == 1), None)
        if image is None or label is None:
            raise SourceError(
                f"{self.first}: its columns are {', '.join(found.names)}; expected an image column "
                f"({' or '.join(IMAGE)}) and a label column ({' or '.join(LABEL)})"
            )
        kind = found.field(image).type
        if pa.types.is_struct(kind) and "bytes" in kind.names:
            kind = kind.field("bytes").type
        known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
        if not any(is_kind(kind) for is_kind in known):
            raise SourceError(
                f"{self.first}: its column {image!r} holds {found.field(image).type}; expected "
                "image files as binary or as struct<bytes, path>"
            )
        kind = found.field(label).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            raise SourceError(
                f"{self.first}: its column {label!r} holds text; expected the number of a class: "
                f"number them, as class_encode_column({label!r}) of Hugging Face's datasets does"
            )
        meta = found.field(image).metadata or {}
        try:
            is_raw = meta.get(b"encoding") == b"raw" and b"shape" in meta
            shape = as_shape(json.loads(meta[b"shape"])) if is_raw else None
            classes = names_in(found.metadata, label)
        except (ValueError, TypeError, AttributeError, RecursionError) as err:
            raise SourceError(
                f"{self.first}: its shape or `huggingface` metadata cannot be read: {err}; write "
                "it again"
            ) from err
        kinds = {n: found.field(n).type for n in ("sample_id", "copy") if found.names.count(n) == 1}
        return Column(
            image=image,
            label=label,
            classes=classes,
            shape=shape,
            has_origin=len(kinds) == 2  # else another's, of the same name
            and pa.types.is_string(kinds["sample_id"])
            and pa.types.is_integer(kinds["copy"]),
        )

    def stored_rows(self, path: Path) -> Iterator[tuple[Any, ...]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = self.columns
        wanted = [columns.label, *(["sample_id", "copy"] if columns.has_origin else [])]
        try:
            with storage.for_arrow(path) as data, pq.ParquetFile(data) as file:
                for name in (columns.image, *wanted):
                    if name not in file.schema_arrow.names:
                        raise SourceError(f"{path}: no column {name!r}, which {self.first} has")
                names = names_in(file.schema_arrow.metadata, columns.label)
                if names != columns.classes:
                    raise SourceError(
                        f"{path}: its classes are named {shown(names)}, those of {self.first} "
                        f"{shown(columns.classes)}; write all shards with the same names"
                    )
                if file.metadata.num_rows > MAX_ROWS:
                    raise SourceError(f"{path}: more than {MAX_ROWS:,} rows; split it")
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, wanted)
                    rows = zip(*(table[name].to_pylist() for name in wanted), strict=True)
                    for i, row in enumerate(rows):
                        yield (str(path), group, i), *row
        except (pa.ArrowException, OSError, ValueError, AttributeError, RecursionError) as err:
            raise SourceError(
                f"{path}: cannot be read: {first_line(err)}; fetch or write it again"
            ) from err

    def read(self, refs: Sequence[tuple[str, int, int]]) -> Iterator[np.ndarray | bytes]:
        """A row group is read once for all the refs in it, when the first of them has its turn: a
        split in its order costs one group at a time, a block of scattered samples those it needs.
        """
        wanted: dict[tuple[str, int], list[int]] = {}
        for position, (path, group, _) in enumerate(refs):
            wanted.setdefault((path, group), []).append(position)
        found: dict[int, Any] = {}
        for position, (path, group, _) in enumerate(refs):
            if position not in found:
                found |= self._row_group(path, group, {refs[n][2]: n for n in wanted[path, group]})
            value = found.pop(position)
            data = value["bytes"] if isinstance(value, dict) else value
            if data is None:
                raise OSError("has no bytes in the image column")
            yield as_pixels(data, self.shape) if self.shape else data

    @cached_property
    def damaged(self) -> set[tuple[str, int]]:
        """Row groups, by path and number, that are not read again for each of their rows."""
        return set()

    def _row_group(self, path: str, group: int, rows: dict[int, int]) -> dict[int, Any]:
        """Position -> image, for row -> position."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if (path, group) in self.damaged:
            raise OSError(UNREADABLE)
        found: dict[int, Any] = {}
        row = n_bytes = 0
        try:
            with storage.for_arrow(storage.place(path)) as data, pq.ParquetFile(data) as file:
                for batch in file.iter_batches(BATCH, [group], [self.columns.image]):
                    for i in range(len(batch)):
                        if row + i in rows:
                            found[rows[row + i]] = batch.column(0)[i].as_py()
                    row += len(batch)
                    n_bytes += batch.nbytes
                    if n_bytes > MAX_BYTES:
                        raise SourceError(
                            f"{path}: a row group holds more than {MAX_BYTES:,} bytes of images; "
                            "write it again with smaller ones"
                        )
        except (pa.ArrowException, OSError) as err:  # its text may hold the path
            if getattr(err, "errno", None) is None:  # not of the disk or the storage
                self.damaged.add((path, group))
            raise OSError(UNREADABLE) from err
        return found
