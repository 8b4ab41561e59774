"""A CSV or Parquet list of paths and labels; paths are relative to the list."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets import storage
from datasets.errors import SourceError, first_line
from datasets.folder import source_name, split_by_hash
from datasets.labels import as_name, as_number, is_missing, names_in
from datasets.shard_files import EXAMPLE
from datasets.source import Listing, Samples, read_files

PATH = ("path", "image", "file", "file_name", "filename")
LABEL = ("label", "class")
SPLIT = ("split",)
# Rows of a Parquet list that are read at once, of all of it, and bytes of their texts: one of 1 MB
# may say one text a billion times.
BATCH, MAX_ROWS, MAX_BYTES = 4096, 20_000_000, 2**30
NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class ListFile:
    """A table with the columns `path`, `label` and, if wanted, `split`; ids are the paths. Labels
    are class names as they are written; whole numbers that are stored as floats read as integers.
    Where Hugging Face's metadata names the classes, they are the numbers of these.
    """

    file: Path
    channels = 3

    @property
    def name(self) -> str:
        return source_name(self.file.with_suffix(""))

    def listing(self) -> Listing:
        columns, names = self._columns()
        paths, given = self._column(columns, PATH), self._column(columns, LABEL)
        is_split = any(name in columns for name in SPLIT)
        sides = self._column(columns, SPLIT) if is_split else ["?"] * len(paths)
        for row, (path, label, side) in enumerate(zip(paths, given, sides, strict=True), 1):
            where = f"{self.file}: row {row}"
            if is_missing(path) or is_missing(label) or (names and label == -1):
                raise SourceError(f"{where} lacks a path or a label; fill it in")
            if is_missing(side):
                raise SourceError(f"{where} lacks a split; fill it in")
            if not isinstance(path, str) or "\0" in path:
                raise SourceError(
                    f"{where}: expected the path of an image, found {str(path)[:40]!r}; "
                    f"if these are the images themselves, name it {EXAMPLE} and give its folder"
                )
        self._refuse_two_spellings(paths)
        classes, labels = self._numbered(given, names)
        if not is_split:
            return Listing(classes, split_by_hash(paths, labels, paths))
        whole = Samples(paths, labels, paths)
        sides = [as_name(side).strip().lower() for side in sides]
        named = {
            side: whole.take(np.array([i for i, s in enumerate(sides) if s == side]))
            for side in dict.fromkeys(sides)
        }
        return Listing(classes, named)

    def _refuse_two_spellings(self, paths: list[str]) -> None:
        """Raises: SourceError if one file is there as `a.png` and as `./a.png`: it would be two
        samples, and might be on both sides of a split."""
        spelled: dict[str, str] = {}
        for path in paths:
            place = os.path.normpath(os.path.join(str(self.image_folder), path))
            other = spelled.setdefault(place, path)
            if other != path:
                raise SourceError(f"{self.file}: {other!r} and {path!r} are one file; remove one")

    def _numbered(
        self, given: list[Any], names: tuple[str, ...]
    ) -> tuple[tuple[str, ...], np.ndarray]:
        """The classes, and for each label the number of its own."""
        if names:
            try:
                return names, np.array([as_number(label) for label in given], np.int64)
            except ValueError as err:
                raise SourceError(
                    f"{self.file}: names its classes, and has a label that is none of their "
                    f"numbers; {err}"
                ) from err
        texts = [as_name(label) for label in given]
        # 2 comes before 10 where all labels are numbers.
        numbers = all(NUMBER.fullmatch(text) for text in texts)
        classes = sorted(set(texts), key=lambda text: (float(text) if numbers else 0, text))
        index = {name: i for i, name in enumerate(classes)}
        return tuple(classes), np.array([index[text] for text in texts], np.int64)

    def _columns(self) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
        """The columns, and the names of the classes where labels are their numbers."""
        try:
            if self.file.suffix.lower() == ".parquet":
                return self._parquet_columns()
            # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
            with (
                storage.open_file(self.file) as data,
                io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as file,
            ):
                reader = csv.DictReader(file, strict=True)
                refuse_doubles(list(reader.fieldnames or ()))
                rows = list(reader)
        except (OSError, ValueError, AttributeError, RecursionError, csv.Error) as err:
            raise SourceError(f"{self.file}: cannot be read as a list: {first_line(err)}") from err
        if not rows:
            raise SourceError(f"{self.file}: has no rows; expected a header and a row an image")
        for number, row in enumerate(rows, 1):
            if None in row:
                raise SourceError(
                    f"{self.file}: row {number} has more cells than there are columns; put those "
                    "with a comma in quotes"
                )
        return {name: [row[name] for row in rows] for name in rows[0]}, ()

    def _parquet_columns(self) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
        """The values of the columns that a list may have; no others are read."""
        import pyarrow.parquet as pq

        with storage.for_arrow(self.file) as data, pq.ParquetFile(data) as file:
            refuse_doubles(file.schema_arrow.names)
            if file.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS:,} rows; split the list")
            columns: dict[str, list[Any]] = {name: [] for name in file.schema_arrow.names}
            wanted = [name for name in columns if name in (*PATH, *LABEL, *SPLIT)]
            n_bytes = 0
            for batch in file.iter_batches(BATCH, columns=wanted):
                n_bytes += batch.nbytes
                if n_bytes > MAX_BYTES:
                    raise ValueError(f"more than {MAX_BYTES:,} bytes of text; split the list")
                for name, values in batch.to_pydict().items():
                    columns[name] += values
            label = next((name for name in LABEL if name in columns), "")
            return columns, names_in(file.schema_arrow.metadata, label)

    def _column(self, columns: dict[str, list[Any]], wanted: tuple[str, ...]) -> list[Any]:
        for name in wanted:
            if name in columns:
                return columns[name]
        advice = f"rename the one that holds the {wanted[0]} to {' or '.join(wanted)}"
        if len(columns) == 1 and re.search(r"[;\t|]", next(iter(columns))):
            advice = "columns are separated by commas: write it with those"
        raise SourceError(
            f"{self.file}: no column {wanted[0]!r}; it has {', '.join(columns)}; {advice}"
        )

    @property
    def image_folder(self) -> Path:
        return self.file.parent

    def read(self, refs: Sequence[str]) -> Iterator[bytes]:
        return read_files(self.image_folder, refs)


def refuse_doubles(names: list[str]) -> None:
    """Raises: ValueError if two of the columns that a list may have share a name."""
    for name in (*PATH, *LABEL, *SPLIT):
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} columns are named {name!r}; rename all but one")
