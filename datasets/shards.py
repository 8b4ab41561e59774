"""A folder of Parquet or TFRecord shards as a source: ours, Hugging Face's or TFDS's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets import tfrecord
from datasets.errors import Damaged, ImageError, SourceError
from datasets.folder import source_name
from datasets.images import opened
from datasets.source import Listing, Samples

PARQUET = re.compile(r"(?P<split>[a-z0-9_]+)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet", re.I)
TFRECORD = re.compile(r".+?-(?P<split>[a-z0-9_]+)\.tfrecord-\d{5}-of-\d{5}", re.I)
IMAGE = ("image", "img")
LABEL = ("label", "labels", "fine_label")


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Split -> its shards in order, in the folder or in the `data` folder in it; {} if none."""
    for folder in (root, root / "data"):
        for pattern in (PARQUET, TFRECORD):
            found: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if match := pattern.fullmatch(path.name):
                    found.setdefault(match["split"].lower(), []).append(path)
            if found:
                return found
    return {}


@dataclass(frozen=True)
class Column:
    """How the rows of Parquet shards are told: names of columns, class names, shape where raw."""

    image: str
    label: str
    classes: tuple[str, ...]
    shape: tuple[int, ...] | None
    has_origin: bool  # sample_id and copy, as ours have


@dataclass(frozen=True)
class Shards:
    """Rows of Parquet or TFRecord shards. Of ours, the originals (or all rows, where there are
    none) under their sample ids; of others', every row under its split and number."""

    root: Path
    paths: dict[str, list[Path]] = field(compare=False)

    @property
    def name(self) -> str:
        return source_name(self.root)

    @property
    def is_parquet(self) -> bool:
        return self.first.suffix == ".parquet"

    @property
    def first(self) -> Path:
        return next(iter(self.paths.values()))[0]

    @cached_property
    def channels(self) -> int:
        """1 where the first image is grey, else 3: the same for all of them."""
        every = (path for paths in self.paths.values() for path in paths)
        first = next(row[0] for path in every for row in self._rows(path))  # shards may be empty
        try:
            data = next(iter(self.read([first])))
            if isinstance(data, np.ndarray):
                return data.shape[2]
            with opened(data) as image:
                return 1 if image.mode in ("1", "L") else 3
        except (ImageError, OSError):
            return 3

    def listing(self) -> Listing:
        try:
            splits = {split: self._samples(split, paths) for split, paths in self.paths.items()}
        except Damaged as err:
            raise SourceError(f"{err}; fetch or write it again") from err
        classes = self.columns.classes if self.is_parquet else self._tfds_classes()
        top = max((int(s.labels.max()) for s in splits.values() if len(s)), default=0)
        return Listing(classes or tuple(str(i) for i in range(top + 1)), splits)

    def _samples(self, split: str, paths: list[Path]) -> Samples:
        rows = [row for path in paths for row in self._rows(path)]
        if any(copy == 0 for *_, copy in rows):
            rows = [row for row in rows if row[3] == 0]
        ids = [
            f"{split}/{i:06d}" if name is None else name if not copy else f"{name}@{copy}"
            for i, (_, _, name, copy) in enumerate(rows)
        ]
        labels = np.array([label for _, label, _, _ in rows], np.int64)
        return Samples(ids, labels, [ref for ref, *_ in rows])

    def _rows(self, path: Path) -> Iterator[tuple[tuple[Any, ...], int, str | None, int | None]]:
        """(ref, label, sample id, copy) of each row; the last two only in shards of ours."""
        for ref, label, *origin in (self._parquet_rows if self.is_parquet else self._records)(path):
            if not isinstance(label, int) or label < 0:
                raise SourceError(
                    f"{path}: its row {ref[1:]} has the label {label!r}; expected a whole number "
                    "from 0: mend or leave out that row"
                )
            yield ref, label, *(origin or (None, None))

    def _records(self, path: Path) -> Iterator[tuple[Any, ...]]:
        for record in tfrecord.records(path):
            known = {n for n, f in record.example.features.feature.items() if f.WhichOneof("kind")}
            if not {"image", "label"} <= known:
                raise SourceError(
                    f"{path}: expected features image and label, found {', '.join(sorted(known))}"
                )
            ref = str(path), record.offset, record.length
            is_ours = {"sample_id", "copy"} <= known
            origin = (record.one("sample_id").decode(), record.one("copy")) if is_ours else ()
            yield ref, record.one("label"), *origin

    def _parquet_rows(self, path: Path) -> Iterator[tuple[Any, ...]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = self.columns
        wanted = [columns.label, *(["sample_id", "copy"] if columns.has_origin else [])]
        try:
            with pq.ParquetFile(path) as file:
                for name in (columns.image, *wanted):
                    if name not in file.schema_arrow.names:
                        raise SourceError(f"{path}: no column {name!r}, which {self.first} has")
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, wanted)
                    rows = zip(*(table[name].to_pylist() for name in wanted), strict=True)
                    for i, row in enumerate(rows):
                        yield (str(path), group, i), *row
        except (pa.ArrowException, OSError) as err:
            raise SourceError(f"{path}: cannot be read: {err}; fetch or write it again") from err

    @cached_property
    def columns(self) -> Column:
        """Raises: SourceError if there is no image or label column."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found = pq.read_schema(self.first)
        except (pa.ArrowException, OSError) as err:
            raise SourceError(f"{self.first}: not a Parquet file: {err}") from err
        image = next((n for n in IMAGE if n in found.names), None)
        label = next((n for n in LABEL if n in found.names), None)
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
        features = json.loads((found.metadata or {}).get(b"huggingface", b"{}"))
        told = features.get("info", {}).get("features", {}).get(label, {})
        meta = found.field(image).metadata or {}
        shape = meta.get(b"shape") if meta.get(b"encoding") == b"raw" else None
        return Column(
            image=image,
            label=label,
            classes=tuple(told.get("names") or ()),
            shape=tuple(json.loads(shape)) if shape else None,
            has_origin={"sample_id", "copy"} <= set(found.names),
        )

    def _tfds_classes(self) -> tuple[str, ...]:
        path = self.first.parent / tfrecord.LABELS
        return tuple(path.read_text().removesuffix("\n").split("\n")) if path.is_file() else ()

    @cached_property
    def raw_shape(self) -> tuple[int, int, int] | None:
        """Of a TFRecord's images where they are stored as plain pixels; None where as files.

        Raises: SourceError if they are stored in another way.
        """
        path = self.first.parent / tfrecord.FEATURES
        if not path.is_file():
            return None
        try:
            image = json.loads(path.read_text())["featuresDict"]["features"]["image"]
            if "tensor" not in image:
                return None
            tensor = image["tensor"]
            height, width, channels = map(int, tensor["shape"]["dimensions"])
            if (tensor["dtype"], tensor["encoding"]) != ("uint8", "bytes"):
                raise ValueError(f"{tensor['dtype']} with encoding {tensor['encoding']!r}")
            if min(height, width) < 1 or channels not in (1, 3):
                raise ValueError(f"the shape {height}x{width}x{channels}")
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise SourceError(
                f"{path}: images are {err}; expected features.Image, or features.Tensor of uint8 "
                "with encoding 'bytes' and a shape (height, width, 1 or 3)"
            ) from err
        return height, width, channels

    def read(self, refs: Sequence[tuple[Any, ...]]) -> Iterator[np.ndarray | bytes]:
        return self._read_parquet(refs) if self.is_parquet else self._read_tfrecord(refs)

    def _read_tfrecord(self, refs: Sequence[tuple[str, int, int]]) -> Iterator[np.ndarray | bytes]:
        make = tfrecord.example_class()
        for path, offset, length in refs:
            with open(path, "rb") as file:
                file.seek(offset)
                example = make.FromString(file.read(length))
            data = tfrecord.Stored(offset, length, example).one("image")
            shape = self.raw_shape
            yield np.frombuffer(data, np.uint8).reshape(shape) if shape else data

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
                images = self._row_group(path, group)
                found |= {other: images[refs[other][2]].as_py() for other in wanted[path, group]}
            value = found.pop(position)
            data = value["bytes"] if isinstance(value, dict) else value
            if data is None:
                raise OSError("has no bytes in the image column")
            yield np.frombuffer(data, np.uint8).reshape(shape) if shape else data

    def _row_group(self, path: str, group: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                return file.read_row_group(group, [self.columns.image])[self.columns.image]
        except (pa.ArrowException, OSError) as err:  # its text may hold the path
            raise OSError("its row group cannot be read") from err
