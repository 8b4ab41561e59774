"""Parquet shards: schema, writer and reader together, so that they cannot drift apart.

Columns: image, label, sample_id, copy, a float32 for each parameter, library_ops (JSON, where the
policy has library ops). `image` is `struct<bytes, path>` where encoded, which is what Hugging Face
decodes, and fixed-size binary with shape and dtype in the field's metadata where raw. Features of a
network are `features` instead, fixed-size lists. No row group spans two copies, so a filter on
`copy` reads that copy alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets import storage
from datasets.encoded import Encoded, in_one_piece
from datasets.errors import Damaged, first_line
from datasets.schema import Encoding, Rows, Schema

ROW_GROUP_BYTES = 16 * 2**20
IMAGE, FEATURES = "image", "features"
FIXED = (IMAGE, FEATURES, "label", "sample_id", "copy")
LIBRARY = "library_ops"
ENCODED = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def shard_name(name: str, split: str, index: int, n_shards: int) -> str:
    """`train-00000-of-00016.parquet`: what Hugging Face looks for."""
    return f"{split}-{index:05d}-of-{n_shards:05d}.parquet"


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns and the metadata that let Hugging Face decode images and name classes."""
    if schema.encoding == "raw":
        shape = json.dumps(schema.shape)
        kind = pa.binary(int(np.prod(schema.fixed_shape())))
        meta = {"encoding": "raw", "shape": shape, "dtype": "uint8"}
    elif schema.encoding == "float32":
        (n_features,) = schema.fixed_shape()
        kind = pa.list_(pa.float32(), n_features)
        meta = {"encoding": "float32", "shape": json.dumps(schema.shape), "dtype": "float32"}
    else:
        kind = ENCODED
        meta = {"encoding": schema.encoding} | (
            {"shape": json.dumps(schema.shape)} if schema.shape else {}
        )
    fields = [
        pa.field(FEATURES if schema.encoding == "float32" else IMAGE, kind, metadata=meta),
        pa.field("label", pa.int64()),
        pa.field("sample_id", pa.string()),
        pa.field("copy", pa.int32()),
        *(pa.field(name, pa.float32()) for name in schema.params),
        *([pa.field(LIBRARY, pa.string())] if schema.library else []),
    ]
    features: dict[str, Any] = {f.name: {"dtype": str(f.type), "_type": "Value"} for f in fields}
    features |= {p: {"dtype": "float32", "_type": "Value"} for p in schema.params}
    features["label"] = {"names": list(schema.classes), "_type": "ClassLabel"}
    if schema.encoding == "float32":
        number = {"dtype": "float32", "_type": "Value"}
        features[FEATURES] = {"feature": number, "length": kind.list_size, "_type": "Sequence"}
    elif schema.encoding == "raw":
        features[IMAGE] = {"dtype": "binary", "_type": "Value"}
    else:
        features[IMAGE] = {"_type": "Image"}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


class Writer:
    """Writes rows to a sink with `write` and `close`; rows of one copy must follow each other.

    Raw rows are a row group as they come, so that nothing of them is kept or copied; encoded ones
    wait until a row group is full.
    """

    def __init__(self, sink: Any, schema: Schema, compression: str) -> None:
        self.copy_ranges: dict[int, tuple[int, int]] = {}  # row groups say where a copy lies
        self.schema = arrow_schema(schema)
        # No dictionary and no statistics on images: 30 % of the time and never of use to a query.
        self.file = pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            self.schema,
            compression=compression,
            use_dictionary=False,
            write_statistics=["copy"],
        )
        self.waiting: list[pa.RecordBatch] = []
        self.waiting_bytes = 0
        self.copy = -1

    def write(self, rows: Rows) -> None:
        if rows.copy != self.copy:
            self.flush()
            self.copy = rows.copy
        batch = self.to_batch(rows)
        self.waiting.append(batch)
        self.waiting_bytes += batch.nbytes
        is_raw = pa.types.is_fixed_size_binary(self.schema.field(0).type)
        if is_raw or self.waiting_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def to_batch(self, rows: Rows) -> pa.RecordBatch:
        """Raw pixels are not copied."""
        kind = self.schema.field(0).type
        if pa.types.is_fixed_size_list(kind):
            numbers = pa.array(np.ravel(rows.images), pa.float32())
            image = pa.FixedSizeListArray.from_arrays(numbers, type=kind)
        elif isinstance(rows.images, np.ndarray):
            pixels = pa.py_buffer(np.ascontiguousarray(rows.images))
            image = pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pixels])
        else:
            paths = pa.nulls(len(rows), pa.string())
            encoded = in_one_piece(Encoded.join([rows.images]).column)
            image = pa.StructArray.from_arrays([encoded, paths], fields=list(kind))
        columns = [
            image,
            pa.array(rows.labels, pa.int64()),
            pa.array(rows.ids, pa.string()),
            pa.array(np.full(len(rows), rows.copy, np.int32)),
            *(pa.array(values, pa.float32()) for values in rows.params.values()),
            *([pa.array(rows.library, pa.string())] if rows.library is not None else []),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def flush(self) -> None:
        """Writes what waits as one row group."""
        table = pa.Table.from_batches(self.waiting, self.schema)
        if len(table):
            self.file.write_table(table, row_group_size=len(table))
        self.waiting, self.waiting_bytes = [], 0

    def close(self) -> None:
        self.flush()
        self.file.close()


def read_schema(path: Path) -> Schema:
    """The schema that a shard of ours was written with.

    Raises: Damaged if the file is not such a shard.
    """
    try:
        with storage.for_arrow(path) as data:
            found = pq.read_schema(data)
        image = {k.decode(): v.decode() for k, v in found.field(0).metadata.items()}
        features = json.loads(found.metadata[b"huggingface"])["info"]["features"]
        encoding: Encoding = image["encoding"]
        if encoding not in get_args(Encoding):
            raise ValueError(f"unknown encoding {encoding}")
        return Schema(
            encoding=encoding,
            shape=tuple(json.loads(image["shape"])) if "shape" in image else None,
            classes=tuple(features["label"]["names"]),
            params=tuple(n for n in found.names if n not in (*FIXED, LIBRARY)),
            library=LIBRARY in found.names,
        )
    except (
        *(pa.ArrowException, OSError, KeyError, ValueError, AttributeError, TypeError),
        RecursionError,
    ) as err:
        raise Damaged(f"{path}: not a shard of `pipeline augment`: {err}") from err


def read(path: Path) -> Iterator[Rows]:
    """The rows of a shard, a row group at a time, each of one copy."""
    schema = read_schema(path)
    with storage.for_arrow(path) as data, pq.ParquetFile(data) as file:
        for group in range(file.num_row_groups):
            table = read_group(file, path, group)
            yield Rows(
                images=read_images(in_one_piece(table.column(0)), schema),
                labels=table["label"].to_numpy(),
                ids=table["sample_id"].to_pylist(),
                copy=table["copy"][0].as_py(),
                params={name: table[name].to_numpy() for name in schema.params},
                library=table[LIBRARY].to_pylist() if schema.library else None,
            )


def read_copy(
    path: Path, copy: int, span: tuple[int, int] | None
) -> Iterator[np.ndarray | Encoded]:
    """The images of one copy of a shard, a row group at a time, as `Rows` has them. No other copy
    is read; the span is for TFRecord, where no statistics say what lies where."""
    schema = read_schema(path)
    with storage.for_arrow(path) as data, pq.ParquetFile(data) as file:
        columns = [file.schema.column(i).path for i in range(len(file.schema))]
        place = columns.index("copy")
        for group in range(file.num_row_groups):
            if file.metadata.row_group(group).column(place).statistics.min == copy:
                table = read_group(file, path, group, [file.schema_arrow.names[0]])
                yield read_images(in_one_piece(table.column(0)), schema)


def read_group(
    file: pq.ParquetFile, path: Path, group: int, names: list[str] | None = None
) -> pa.Table:
    """Raises: Damaged if its bytes are not what was written."""
    try:
        return file.read_row_group(group, names)
    except (pa.ArrowException, OSError) as err:
        if isinstance(err, OSError) and err.errno is not None:  # of the disk or the storage
            raise
        raise Damaged(f"{path}: cannot be read: {first_line(err)}") from err


def read_images(column: pa.Array, schema: Schema) -> np.ndarray | Encoded:
    """The image column as `Rows` holds it; raw pixels are a read-only view."""
    if schema.encoding == "float32":
        return column.flatten().to_numpy().reshape(len(column), *schema.fixed_shape())
    if schema.encoding != "raw":
        return Encoded(pa.chunked_array([column.field("bytes")]))
    width = column.type.byte_width
    start, n = column.offset * width, len(column) * width
    pixels = np.frombuffer(column.buffers()[1], np.uint8)[start : start + n]
    return pixels.reshape(len(column), *schema.fixed_shape())


def read_columns(
    path: Path, names: list[str] | None, span: tuple[int, int] | None = None
) -> pa.Table:
    """The named columns of a shard, or with None all but the images; the span is for TFRecord,
    where columns do not lie apart."""
    try:
        with storage.for_arrow(path) as data, pq.ParquetFile(data) as file:
            every = [n for n in file.schema_arrow.names if n not in (IMAGE, FEATURES)]
            return file.read(names or every)
    except (pa.ArrowException, OSError) as err:
        raise Damaged(f"{path}: cannot be read: {first_line(err)}") from err
