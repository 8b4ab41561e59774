"""Keras preprocessing layers in `tf.data`, in batches, in parallel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import data
import keras
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

BATCH = 1024


def main(source: Path, out: Path, copies: int) -> None:
    images, labels = data.cifar10(source)
    layers = keras.Sequential(
        [
            keras.layers.RandomTranslation(0.1, 0.1, fill_mode="reflect"),
            keras.layers.RandomRotation(15 / 360, fill_mode="reflect"),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomBrightness(0.2, value_range=(0, 255)),
        ]
    )
    dataset = (
        tf.data.Dataset.from_tensor_slices(images)
        .batch(BATCH)
        .map(lambda x: layers(tf.cast(x, tf.float32), training=True), tf.data.AUTOTUNE)
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
