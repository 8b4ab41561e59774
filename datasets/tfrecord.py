"""TFRecord shards: schema, writer and reader together, and the files that TFDS looks for.

A record is a `tf.train.Example` whose features have the names of the Parquet columns. Neither
writing nor reading imports TensorFlow.
Sources: tensorflow/core/example/feature.proto; the record format in
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import pyarrow as pa

from datasets import storage
from datasets.errors import Damaged
from datasets.schema import Encoding, Rows, Schema, canonical_json
from datasets.source import read_file

FEATURES = "features.json"
DATASET_INFO = "dataset_info.json"
LABELS = "label.labels.txt"
LIBRARY = "library_ops"
FIXED = ("image", "label", "sample_id", "copy")
BATCH = 256  # rows that `read` gives at a time
HEAD, CRC = struct.Struct("<QI"), struct.Struct("<I")
CLASS = "tensorflow_datasets.core.features."


def shard_name(name: str, split: str, index: int, n_shards: int) -> str:
    """`cifar10-train.tfrecord-00000-of-00016`: what TensorFlow Datasets looks for."""
    return f"{name}-{split}.tfrecord-{index:05d}-of-{n_shards:05d}"


@cache
def example_class() -> Any:
    """The message `tf.train.Example`, from a pool of its own so that TensorFlow's never clashes."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="p", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    repeated, optional = field.LABEL_REPEATED, field.LABEL_OPTIONAL

    def add(owner: Any, name: str, number: int, label: int, kind: int | str, **more: Any) -> None:
        typed = {"type_name": f".p.{kind}"} if isinstance(kind, str) else {"type": kind}
        owner.field.add(name=name, number=number, label=label, **typed, **more)

    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        add(file.message_type.add(name=name), "value", 1, repeated, kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        short = name.replace("List", "_list").lower()
        add(feature, short, number, optional, name, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, optional, field.TYPE_STRING)
    add(entry, "value", 2, optional, "Feature")
    add(features, "feature", 1, repeated, "Features.FeatureEntry")
    add(file.message_type.add(name="Example"), "features", 1, optional, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Example"))


def masked_crc(data: bytes) -> int:
    """CRC-32C rotated right by 15 bits plus a constant, as the record format wants it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class Writer:
    """Writes rows to a sink; rows of one copy must follow each other.

    copy_ranges: Copy -> (first byte, end byte) of its records, filled in as rows are written.
    """

    def __init__(self, sink: BinaryIO, schema: Schema, compression: str) -> None:
        self.sink, self.position = sink, 0
        self.copy_ranges: dict[int, tuple[int, int]] = {}

    def write(self, rows: Rows) -> None:
        first = self.copy_ranges.get(rows.copy, (self.position, 0))[0]
        make = example_class()
        labels = rows.labels.tolist()
        params = [(name, column.tolist()) for name, column in rows.params.items()]
        for i, (image, sample_id) in enumerate(zip(rows.images, rows.ids, strict=True)):
            example = make()
            feature = example.features.feature
            data = image.tobytes() if isinstance(image, np.ndarray) else image
            feature["image"].bytes_list.value.append(data)
            feature["label"].int64_list.value.append(labels[i])
            feature["sample_id"].bytes_list.value.append(sample_id.encode())
            feature["copy"].int64_list.value.append(rows.copy)
            for name, column in params:
                feature[name].float_list.value.append(column[i])
            if rows.library is not None:
                feature[LIBRARY].bytes_list.value.append(rows.library[i].encode())
            self.append(example.SerializeToString(deterministic=True))
        self.copy_ranges[rows.copy] = (first, self.position)

    def append(self, data: bytes) -> None:
        """One record: length, its checksum, the data, its checksum."""
        length = struct.pack("<Q", len(data))
        head, tail = CRC.pack(masked_crc(length)), CRC.pack(masked_crc(data))
        self.sink.write(b"".join((length, head, data, tail)))
        self.position += len(data) + 16

    def close(self) -> None:
        """Nothing waits: every row is written as it comes."""


@dataclass(frozen=True)
class Stored:
    """One record: where its data lies in the file, and the Example in it."""

    offset: int
    length: int
    example: Any

    def one(self, name: str) -> Any:
        """The first value of a feature of any kind."""
        feature = self.example.features.feature[name]
        return getattr(feature, feature.WhichOneof("kind")).value[0]


def records(path: Path, span: tuple[int, int] | None = None) -> Iterator[Stored]:
    """Every record of a file, or of the bytes of one copy, with both checksums checked.

    Raises: Damaged where a byte is not as it was written, or there is no file.
    """
    try:
        with storage.open_file(path) as file:
            yield from records_of(file, path, span or (0, file.seek(0, os.SEEK_END)))
    except FileNotFoundError as err:
        raise Damaged(f"{path}: there is no such file") from err


def records_of(file: BinaryIO, path: Path, span: tuple[int, int]) -> Iterator[Stored]:
    """What `records` gives, and raises of damage, of the open file."""
    from google.protobuf.message import DecodeError

    make = example_class()
    start, end = span
    file.seek(start)
    while file.tell() < end:
        head = file.read(HEAD.size)
        offset = file.tell()
        if len(head) < HEAD.size:
            raise Damaged(f"{path}: ends inside a record")
        length, crc = HEAD.unpack(head)
        if masked_crc(head[:8]) != crc:
            raise Damaged(f"{path}: a record's length at byte {offset - HEAD.size} is damaged")
        if length > end - offset:  # never ask for more memory than the file could fill
            raise Damaged(f"{path}: ends inside the record at byte {offset}")
        data, tail = file.read(length), file.read(CRC.size)
        if len(tail) < CRC.size or masked_crc(data) != CRC.unpack(tail)[0]:
            raise Damaged(f"{path}: the record at byte {offset} is damaged")
        try:
            yield Stored(offset, length, make.FromString(data))
        except DecodeError as err:
            raise Damaged(f"{path}: the record at byte {offset} is no Example") from err


def sidecars(schema: Schema, name: str, splits: dict[str, list[int]]) -> dict[str, bytes]:
    """File name -> content of what `tfds.builder_from_directory` reads beside the shards.

    splits: Split -> rows of each of its shards.
    """
    shape = list(schema.shape or (-1, -1, 3))
    dimensions = {"dimensions": [str(n) for n in shape]}
    if schema.encoding == "raw":
        image: dict[str, Any] = tensor("uint8", "bytes", dimensions)
    else:
        kind = {"dtype": "uint8", "encodingFormat": schema.encoding, "shape": dimensions}
        image = {"image": kind, "pythonClassName": CLASS + "image_feature.Image"}
    text = {"text": {}, "pythonClassName": CLASS + "text_feature.Text"}
    label = {
        "classLabel": {"numClasses": str(len(schema.classes))},
        "pythonClassName": CLASS + "class_label_feature.ClassLabel",
    }
    features = {"image": image, "label": label, "sample_id": text, "copy": tensor("int32")}
    features |= {param: tensor("float32") for param in schema.params}
    if schema.library:
        features[LIBRARY] = text
    info = {
        "fileFormat": "tfrecord",
        "name": name,
        "version": "1.0.0",
        "splits": [
            {
                "name": split,
                "shardLengths": [str(n) for n in rows],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, rows in splits.items()
        ],
    }
    described = {
        "featuresDict": {"features": features},
        "pythonClassName": CLASS + "features_dict.FeaturesDict",
    }
    return {
        FEATURES: canonical_json(described).encode(),
        DATASET_INFO: canonical_json(info).encode(),
        LABELS: "".join(f"{name}\n" for name in schema.classes).encode(),
    }


def tensor(
    dtype: str, encoding: str = "none", shape: dict[str, Any] | None = None
) -> dict[str, Any]:
    inside = {"dtype": dtype, "encoding": encoding, "shape": shape or {}}
    return {"tensor": inside, "pythonClassName": CLASS + "tensor_feature.Tensor"}


def read_schema(path: Path) -> Schema:
    """The schema of a shard of ours, from the files beside it.

    Raises: Damaged if they are absent or not ours.
    """
    folder = path.parent
    try:
        features = json.loads(read_file(folder / FEATURES))["featuresDict"]["features"]
        classes = tuple(read_file(folder / LABELS).decode().split("\n")[:-1])
        found = features["image"]
        if "tensor" in found:
            encoding: Encoding = "raw"
            dimensions = found["tensor"]["shape"]["dimensions"]
        else:
            encoding = found["image"]["encodingFormat"]
            dimensions = found["image"]["shape"]["dimensions"]
        height, width, channels = map(int, dimensions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise Damaged(f"{folder}: its {FEATURES} and {LABELS} cannot be read: {err}") from err
    return Schema(
        encoding=encoding,
        shape=(height, width, channels) if height > 0 else None,
        classes=classes,
        params=tuple(n for n in sorted(features) if n not in (*FIXED, LIBRARY)),
        library=LIBRARY in features,
    )


def read(path: Path) -> Iterator[Rows]:
    """The rows of a shard in order, up to 256 at a time, each batch of one copy."""
    schema = read_schema(path)
    batch: list[Stored] = []
    for record in records(path):
        if batch and (len(batch) == BATCH or record.one("copy") != batch[0].one("copy")):
            yield to_rows(batch, schema)
            batch = []
        batch.append(record)
    if batch:
        yield to_rows(batch, schema)


def read_copy(
    path: Path, copy: int, span: tuple[int, int] | None
) -> Iterator[np.ndarray | list[bytes]]:
    """The images of one copy of a shard, which lie in the bytes of its span, as `Rows` has them."""
    schema = read_schema(path)
    batch = [record.one("image") for record in records(path, span)]
    if schema.encoding != "raw":
        yield batch
    elif batch:
        yield np.frombuffer(b"".join(batch), np.uint8).reshape(-1, *schema.fixed_shape())


def to_rows(batch: list[Stored], schema: Schema) -> Rows:
    """The rows of records of one copy, at least one; images are (n, H, W, C) uint8, a read-only
    view, where the schema stores them raw, else n encoded files."""
    images: Any = [record.one("image") for record in batch]
    if schema.encoding == "raw":
        images = np.frombuffer(b"".join(images), np.uint8).reshape(-1, *schema.fixed_shape())
    return Rows(
        images=images,
        labels=np.array([record.one("label") for record in batch], np.int64),
        ids=[record.one("sample_id").decode() for record in batch],
        copy=batch[0].one("copy"),
        params={n: np.array([r.one(n) for r in batch], np.float32) for n in schema.params},
        library=[r.one(LIBRARY).decode() for r in batch] if schema.library else None,
    )


def read_columns(
    path: Path, names: list[str] | None, span: tuple[int, int] | None = None
) -> pa.Table:
    """The named columns of a shard, or with None all but the images; with a span, of the rows that
    lie in those bytes."""
    schema = read_schema(path)
    names = names or [*FIXED[1:], *schema.params, *([LIBRARY] if schema.library else [])]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for record in records(path, span):
        for name, values in columns.items():
            value = record.one(name)
            values.append(value.decode() if isinstance(value, bytes) else value)
    kinds = {
        "label": pa.int64(),
        "sample_id": pa.string(),
        "copy": pa.int32(),
        LIBRARY: pa.string(),
    }
    return pa.table({n: pa.array(v, kinds.get(n, pa.float32())) for n, v in columns.items()})
