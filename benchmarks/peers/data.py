"""What every peer reads and writes: the same images, the same Parquet."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

SIDE = 224


def cifar10(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(50000, 32, 32, 3) uint8 images and (50000,) int64 labels of the official binary files."""
    files = [folder / "cifar-10-batches-bin" / f"data_batch_{i}.bin" for i in range(1, 6)]
    rows = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0].astype(np.int64)


def photos(folder: Path) -> list[tuple[Path, int]]:
    """(path, label) of every photo, a subfolder a class."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    return [(path, i) for i, one in enumerate(classes) for path in sorted(one.iterdir())]


def decode_224(path: Path) -> np.ndarray:
    """(224, 224, 3) uint8 RGB: the centre square, resized with area averaging."""
    image = cv2.imread(str(path))
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    return cv2.cvtColor(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA), 4)


def encode_jpeg(image: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def schema(kind: pa.DataType) -> pa.Schema:
    return pa.schema(
        [("image", kind), ("label", pa.int64()), ("sample_id", pa.string()), ("copy", pa.int32())]
    )


def table(images: pa.Array, labels: np.ndarray, first: int, copy: int) -> pa.Table:
    """Rows of one copy; sample ids are numbers from `first` on."""
    columns = [
        images,
        pa.array(labels),
        pa.array([f"{i:06d}" for i in range(first, first + len(labels))]),
        pa.array(np.full(len(labels), copy, np.int32)),
    ]
    return pa.Table.from_arrays(columns, schema=schema(images.type))
