"""`ImageDataGenerator`, with the same operations."""

from __future__ import annotations

import sys
from pathlib import Path

import data
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from keras_policy import generator

BATCH = 1000


def main(source: Path, out: Path, copies: int) -> None:
    images, labels = data.cifar10(source)
    kind = pa.binary(images[0].nbytes)
    with pq.ParquetWriter(out / "0.parquet", data.schema(kind), compression="none") as writer:
        for copy in range(1, copies + 1):
            flow = generator().flow(images, batch_size=BATCH, shuffle=False)
            for i in range(len(images) // BATCH):
                batch = np.rint(flow[i]).astype(np.uint8)
                pixels = pa.FixedSizeBinaryArray.from_buffers(
                    kind, len(batch), [None, pa.py_buffer(batch)]
                )
                part = labels[i * BATCH : (i + 1) * BATCH]
                writer.write_table(data.table(pixels, part, i * BATCH, copy))


if __name__ == "__main__":
    main(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
