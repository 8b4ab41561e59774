"""TFRecord shards as a source: ours and TensorFlow Datasets'."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets import storage, tfrecord
from datasets.errors import SourceError
from datasets.many_files import read_ranges
from datasets.shards import Shards, as_pixels, as_shape
from datasets.source import read_file


@dataclass(frozen=True)
class TFRecordShards(Shards):
    """Rows of TFRecord shards, of which only the records that are asked for are read."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        path = self.first.parent / tfrecord.LABELS
        try:
            text = read_file(path).decode() if storage.kind(path) == "file" else ""
        except (OSError, UnicodeDecodeError) as err:
            raise SourceError(f"{path}: cannot be read: {err}; write it again") from err
        return tuple(text.removesuffix("\n").split("\n")) if text else ()

    @cached_property
    def shape(self) -> tuple[int, int, int] | None:
        """Raises: SourceError if images are neither files nor plain pixels."""
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

    def stored_rows(self, path: Path) -> Iterator[tuple[Any, ...]]:
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
            if list(map(type, origin)) == [bytes, int]:
                origin[0] = origin[0].decode(errors="backslashreplace")
            else:  # another's, of the same name
                origin = []
            yield ref, record.one("label"), *origin

    def read(self, refs: Sequence[tuple[str, int, int]]) -> Iterator[np.ndarray | bytes]:
        from google.protobuf.message import DecodeError

        make, shape = tfrecord.example_class(), self.shape
        for (_, offset, length), record in zip(refs, read_ranges(refs), strict=True):
            try:
                image = tfrecord.Stored(offset, length, make.FromString(record)).one("image")
            except DecodeError as err:  # another file since it was listed
                raise OSError("its record cannot be read") from err
            yield as_pixels(image, shape) if shape else image
