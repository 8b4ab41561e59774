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
        data = next(iter(self.read([self._first_ref()])))
        if isinstance(data, np.ndarray):
            return data.shape[2]
        try:
            with opened(data) as image:
                return 1 if image.mode in ("1", "L") else 3
        except ImageError:
            return 3

    def _first_ref(self) -> tuple[Any, ...]:
        if self.is_parquet:
            return str(self.first), 0, 0
        record = next(tfrecord.records(self.first))
        return str(self.first), record.offset, record.length

    def listing(self) -> Listing:
        try:
            splits = {split: self._samples(split, paths) for split, paths in self.paths.items()}
        except Damaged as err:
            raise SourceError(str(err)) from err
        classes = self.columns.classes if self.is_parquet else self._tfds_classes()
        top = max((int(s.labels.max()) for s in splits.values() if len(s)), default=0)
        if classes and top >= len(classes):
            raise SourceError(f"{self.root}: label {top} has no name; {len(classes)} are given")
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
        if not self.is_parquet:
            for record in tfrecord.records(path):
                known = record.example.features.feature
                if not {"image", "label"} <= set(known):
                    raise SourceError(
                        f"{path}: expected features image and label, found {list(known)}"
                    )
                is_ours = {"sample_id", "copy"} <= set(known)
                origin = (record.one("sample_id").decode(), record.one("copy")) if is_ours else ()
                ref = str(path), record.offset, record.length
                yield ref, record.one("label"), *(origin or (None, None))
            return
        import pyarrow.parquet as pq

        columns = self.columns
        wanted = [columns.label, *(["sample_id", "copy"] if columns.has_origin else [])]
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, wanted).to_pydict()
                n = len(table[columns.label])
                names = table.get("sample_id", [None] * n)
                copies = table.get("copy", [None] * n)
                for i, label in enumerate(table[columns.label]):
                    if label is None or label < 0:
                        raise SourceError(f"{path}: row {i} of group {group} has no label")
                    yield (str(path), group, i), label, names[i], copies[i]

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
        path = self.root / tfrecord.LABELS
        return tuple(path.read_text().split("\n")[:-1]) if path.is_file() else ()

    @cached_property
    def raw_shape(self) -> tuple[int, int, int] | None:
        """Of a TFRecord's images where they are stored as plain pixels."""
        if not (self.root / tfrecord.FEATURES).is_file():
            return None
        schema = tfrecord.read_schema(self.first)
        return schema.shape if schema.encoding == "raw" else None

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
        """A row group is read once for all the refs in it, so a block of scattered samples costs
        the row groups they lie in."""
        import pyarrow.parquet as pq

        columns, shape = self.columns, self.columns.shape
        wanted: dict[tuple[str, int], list[int]] = {}
        for position, (path, group, _) in enumerate(refs):
            wanted.setdefault((path, group), []).append(position)
        found: dict[int, Any] = {}
        for (path, group), positions in wanted.items():
            with pq.ParquetFile(path) as file:
                images = file.read_row_group(group, [columns.image])[columns.image]
            for position in positions:
                value = images[refs[position][2]].as_py()
                found[position] = value["bytes"] if isinstance(value, dict) else value
        for position in range(len(refs)):
            data = found.pop(position)
            if data is None:
                raise OSError(f"{refs[position]}: has no bytes in the image column")
            yield np.frombuffer(data, np.uint8).reshape(shape) if shape else data
