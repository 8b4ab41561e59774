"""Keras preprocessing layers in `tf.data`, in batches, in parallel."""

from __future__ import annotations

import sys
from pathlib import Path

import data
import pyarrow as pa
import pyarrow.parquet as pq
from keras_policy import layers_dataset, tf

BATCH = 1024


def main(source: Path, out: Path, copies: int) -> None:
    images, labels = data.cifar10(source)
    dataset = (
        layers_dataset(images, BATCH)
        .map(lambda x: tf.cast(tf.round(x), tf.uint8), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    kind = pa.binary(images[0].nbytes)
    with pq.ParquetWriter(out / "0.parquet", data.schema(kind), compression="none") as writer:
        for copy in range(1, copies + 1):
            for i, batch in enumerate(dataset.as_numpy_iterator()):
                first = i * BATCH
                pixels = pa.FixedSizeBinaryArray.from_buffers(
                    kind, len(batch), [None, pa.py_buffer(batch)]
                )
                part = labels[first : first + len(batch)]
                writer.write_table(data.table(pixels, part, first, copy))


if __name__ == "__main__":
    main(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
