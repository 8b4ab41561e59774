"""A folder of Parquet or TFRecord shards as a source: ours, Hugging Face's or TFDS's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets import storage, tfrecord
from datasets.errors import Damaged, ImageError, SourceError, first_line
from datasets.fingerprint import read_each
from datasets.folder import source_name
from datasets.images import opened
from datasets.labels import as_number, names_in
from datasets.many_files import read_ranges
from datasets.source import Listing, Samples, read_file
from datasets.versions import output_of

IMAGE = ("image", "img")
LABEL = ("label", "labels", "fine_label")
# Rows of a row group that are decoded at once, bytes of its images, and rows of a file: one of 1 MB
# may say one image, or one label, a billion times.
BATCH, MAX_BYTES, MAX_ROWS = 64, 2**31, 20_000_000
MAX_SHOWN = 60  # characters of class names in a message
UNREADABLE = "its row group cannot be read"


def is_grey(data: np.ndarray | bytes | OSError) -> bool:
    """Whether a file is a grey image; also true of what is none, which has no say."""
    try:
        with opened(data if isinstance(data, bytes) else b"") as image:
            return image.mode in ("1", "L")
    except ImageError:
        return True


def shown(names: tuple[str, ...]) -> str:
    """Names of classes in a message, cut where they are many."""
    text = ", ".join(names)
    return f"{text[:MAX_SHOWN]}..." if len(text) > MAX_SHOWN else text or "by their numbers alone"


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
class Column:
    """How the rows of Parquet shards are told: names of columns, class names, shape where raw."""

    image: str
    label: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int] | None
    has_origin: bool  # sample_id and copy, as ours have


@dataclass(frozen=True)
class Shards:
    """Rows of Parquet or TFRecord shards. Of ours, the originals (or all rows, where there are
    none) under their sample ids; of others', every row under its split and number. A split without
    any label is left out.

    A block of samples is scattered by hash over its whole split. Of TFRecord only their records
    are read; of Parquet the image column of every row group that holds one of them, which is
    nearly all of the split for each block: B blocks read it about B times, from the system's cache
    where it fits in there. Larger blocks, or shards with small row groups, read less.
    """

    root: Path
    paths: dict[str, list[Path]] = field(compare=False)

    @property
    def name(self) -> str:
        return source_name(output_of(self.root))

    @property
    def is_parquet(self) -> bool:
        return self.first.suffix == ".parquet"

    @property
    def first(self) -> Path:
        return next(iter(self.paths.values()))[0]

    @cached_property
    def channels(self) -> int:
        """1 where every image is grey, by their headers up to the first in colour, else 3."""
        shape = self.columns.shape if self.is_parquet else self.raw_shape
        if shape:
            return shape[2]
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
                    ignored.append(f"{split} ({n_copies:,} copies of originals that are there)")
        except Damaged as err:
            raise SourceError(f"{err}; fetch or write it again") from err
        classes = self.columns.classes if self.is_parquet else self._tfds_classes()
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
        for ref, value, *origin in (self._parquet_rows if self.is_parquet else self._records)(path):
            try:
                label = as_number(value)
            except ValueError as err:
                raise SourceError(
                    f"{path}: its row {ref[1:]} has the label {repr(value)[:60]}; {err}: fix or "
                    "leave out that row"
                ) from err
            yield ref, label, *(origin or (None, None))

    def _records(self, path: Path) -> Iterator[tuple[Any, ...]]:
        for record in tfrecord.records(path):
            features = record.example.features.feature.items()
            known = {
                n: len(getattr(f, kind).value)
                for n, f in features
                if (kind := f.WhichOneof("kind")) and getattr(f, kind).value
            }
            if not {"image", "label"} <= known.keys():
                raise SourceError(
                    f"{path}: expected features image and label, found {', '.join(sorted(known))}"
                )
            if not isinstance(record.one("image"), bytes):
                raise SourceError(
                    f"{path}: its feature image holds numbers; expected image files, or "
                    "features.Tensor of uint8 with encoding 'bytes'"
                )
            ref = str(path), record.offset, record.length
            for name in ("image", "label"):
                if known[name] > 1:
                    raise SourceError(
                        f"{path}: its row {ref[1:]} has {known[name]} values of {name}, expected "
                        "one; write it again with one image and one label a row"
                    )
            origin = [record.one(name) for name in ("sample_id", "copy") if name in known]
            if list(map(type, origin)) == [bytes, int]:  # else another's, of the same name
                yield (
                    ref,
                    record.one("label"),
                    origin[0].decode(errors="backslashreplace"),
                    origin[1],
                )
            else:
                yield ref, record.one("label")

    def _parquet_rows(self, path: Path) -> Iterator[tuple[Any, ...]]:
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

    @cached_property
    def damaged(self) -> set[tuple[str, int]]:
        """Row groups, by path and number, that are not read again for each of their rows."""
        return set()

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

    def _tfds_classes(self) -> tuple[str, ...]:
        path = self.first.parent / tfrecord.LABELS
        try:
            text = read_file(path).decode() if storage.kind(path) == "file" else ""
        except (OSError, UnicodeDecodeError) as err:
            raise SourceError(f"{path}: cannot be read: {err}; write it again") from err
        return tuple(text.removesuffix("\n").split("\n")) if text else ()

    @cached_property
    def raw_shape(self) -> tuple[int, int, int] | None:
        """Of a TFRecord's images where they are stored as plain pixels; None where as files.

        Raises: SourceError if they are stored in another way.
        """
        path = self.first.parent / tfrecord.FEATURES
        if storage.kind(path) != "file":
            return None
        try:
            image = json.loads(read_file(path))["featuresDict"]["features"]["image"]
            if "tensor" not in image:
                return None
            tensor = image["tensor"]
            shape = as_shape(tensor["shape"]["dimensions"])
            if (tensor["dtype"], tensor["encoding"]) != ("uint8", "bytes"):
                raise ValueError(f"{tensor['dtype']} with encoding {tensor['encoding']!r}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
            raise SourceError(
                f"{path}: images are {err}; expected features.Image, or features.Tensor of uint8 "
                "with encoding 'bytes' and a shape (height, width, 1 or 3)"
            ) from err
        return shape

    def read(self, refs: Sequence[tuple[Any, ...]]) -> Iterator[np.ndarray | bytes]:
        return self._read_parquet(refs) if self.is_parquet else self._read_tfrecord(refs)

    def _read_tfrecord(self, refs: Sequence[tuple[str, int, int]]) -> Iterator[np.ndarray | bytes]:
        from google.protobuf.message import DecodeError

        make, shape = tfrecord.example_class(), self.raw_shape
        for (_, offset, length), record in zip(refs, read_ranges(refs), strict=True):
            try:
                image = tfrecord.Stored(offset, length, make.FromString(record)).one("image")
            except DecodeError as err:  # another file since it was listed
                raise OSError("its record cannot be read") from err
            yield as_pixels(image, shape) if shape else image

    def _read_parquet(self, refs: Sequence[tuple[str, int, int]]) -> Iterator[np.ndarray | bytes]:
        """A row group is read once for all the refs in it, when the first of them has its turn: a
        split in its order costs one group at a time, a block of scattered samples those it needs.
        """
        shape = self.columns.shape
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
            yield as_pixels(data, shape) if shape else data

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
