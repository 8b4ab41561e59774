"""CUB-200-2011: photos of birds in their official folder, with its split, names and boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import storage
from datasets.download import Log, extract, fetch
from datasets.errors import SourceError
from datasets.source import Listing, Samples, read_file, read_files

URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"
FOLDER = "CUB_200_2011"


@dataclass(frozen=True)
class Cub200:
    """CUB-200-2011, photos of birds, 200 species, 5,994 + 5,794 images; downloads 1.1 GB."""

    root: Path
    name = "cub200"
    channels = 3
    is_cropped = False

    @property
    def folder(self) -> Path:
        """`root/CUB_200_2011`, or the root itself where that is the official folder."""
        is_official = storage.kind(self.root / "images.txt") == "file"
        return self.root if is_official else self.root / FOLDER

    def download(self, log: Log) -> None:
        if storage.kind(self.folder) != "directory":
            archive = fetch(URL, f"md5:{MD5}", self.root / "CUB_200_2011.tgz", log)
            extract(archive, FOLDER, self.root)

    def listing(self) -> Listing:
        classes = self._table("classes.txt")
        images = self._table("images.txt")
        labels = self._table("image_class_labels.txt")
        is_train = self._table("train_test_split.txt")
        boxes = self._table("bounding_boxes.txt") if self.is_cropped else {}
        index = {number: i for i, number in enumerate(classes)}
        splits = {}
        for split, flag in (("train", "1"), ("test", "0")):
            chosen = [n for n in images if self._flag(is_train, n) == flag]
            paths = [images[n] for n in chosen]
            found = [index.get(self._of(labels, n, "image_class_labels.txt"), -1) for n in chosen]
            if -1 in found:
                raise SourceError(
                    f"{self.folder}: the class of {paths[found.index(-1)]} is not in classes.txt; "
                    "unpack the data set again"
                )
            rows = [self._box(self._of(boxes, n, "bounding_boxes.txt")) for n in chosen if boxes]
            box = np.array(rows, np.int32).reshape(-1, 4) if boxes else None
            splits[split] = Samples(paths, np.array(found, np.int64), paths, box)
        # "001.Black_footed_Albatross": the number is the label, the rest the name.
        names = tuple(name.partition(".")[2] or name for name in classes.values())
        return Listing(names, splits)

    def _table(self, file: str) -> dict[str, str]:
        """`1 rest of the line` -> {"1": "rest of the line"}, in the file's order."""
        path = self.folder / file
        try:
            lines = read_file(path).decode().splitlines()
            pairs = (line.split(maxsplit=1) for line in lines if line.strip())
            return {number: rest.strip() for number, rest in pairs}
        except OSError as err:
            raise SourceError(
                f"{path}: {err.strerror}; expected the official folder of CUB-200-2011"
            ) from err
        except ValueError as err:
            raise SourceError(f"{path}: expected lines such as `1 name`; unpack it again") from err

    def _of(self, table: dict[str, str], number: str, file: str) -> str:
        if number not in table:
            raise SourceError(f"{self.folder / file}: image {number} is missing; unpack it again")
        return table[number]

    def _flag(self, table: dict[str, str], number: str) -> str:
        """`1` for train, `0` for test."""
        flag = self._of(table, number, "train_test_split.txt")
        if flag not in ("0", "1"):
            raise SourceError(
                f"{self.folder / 'train_test_split.txt'}: image {number} has {flag!r}, expected 0 "
                "or 1; unpack it again"
            )
        return flag

    def _box(self, text: str) -> np.ndarray:
        """`x y width height` in pixels, with decimals -> (4,) int32, whole pixels around it."""
        try:
            x, y, width, height = map(float, text.split())
            left, top = math.floor(x), math.floor(y)
            box = left, top, math.ceil(x + width) - left, math.ceil(y + height) - top
            return np.array(box, np.int32)
        except (ValueError, OverflowError) as err:
            raise SourceError(
                f"{self.folder / 'bounding_boxes.txt'}: {text!r}, expected lines such as "
                "`1 60.0 27.0 325.0 304.0`; unpack it again"
            ) from err

    @property
    def image_folder(self) -> Path:
        return self.folder / "images"

    def read(self, refs: Sequence[str]) -> Iterator[bytes]:
        return read_files(self.image_folder, refs)


class Cub200Cropped(Cub200):
    """CUB-200-2011, each photo cropped to the bird's bounding box."""

    name = "cub200_cropped"
    is_cropped = True
