"""A pool of two processes over albumentations, as its users write it.

The four ops one after another, as a policy is written, or with `fused` shift and rotation as one
`Affine`. Photos are decoded once for all copies, or with `per-copy` again for each, as data loaders
do.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import data
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A  # noqa: N812

SHIFT = {"x": (-0.1, 0.1), "y": (-0.1, 0.1)}
BORDER = cv2.BORDER_REFLECT
WARPS = (
    [A.Affine(translate_percent=SHIFT, rotate=(-15, 15), border_mode=BORDER, p=1)]
    if "fused" in sys.argv
    else [
        A.Affine(translate_percent=SHIFT, border_mode=BORDER, p=1),
        A.Rotate(limit=15, border_mode=BORDER, p=1),
    ]
)
POLICY = A.Compose(
    [
        *WARPS,
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0, p=1),
    ]
)


def cifar10(source: Path, out: Path, copies: int, part: int) -> None:
    images, labels = (whole[part::2] for whole in data.cifar10(source))
    kind = pa.binary(images[0].nbytes)
    with pq.ParquetWriter(out / f"{part}.parquet", data.schema(kind), compression="none") as writer:
        for copy in range(1, copies + 1):
            made = np.stack([POLICY(image=image)["image"] for image in images])
            pixels = pa.FixedSizeBinaryArray.from_buffers(
                kind, len(made), [None, pa.py_buffer(made)]
            )
            writer.write_table(data.table(pixels, labels, part * 100_000, copy))


def photos(source: Path, out: Path, copies: int, part: int, per_copy: bool) -> None:
    files = data.photos(source)[part::2]
    labels = np.array([label for _, label in files])
    with pq.ParquetWriter(
        out / f"{part}.parquet", data.schema(pa.binary()), compression="none"
    ) as writer:
        images = [] if per_copy else [data.decode_224(path) for path, _ in files]
        for copy in range(1, copies + 1):
            if per_copy:
                images = [data.decode_224(path) for path, _ in files]
            made = [data.encode_jpeg(POLICY(image=image)["image"]) for image in images]
            writer.write_table(data.table(pa.array(made, pa.binary()), labels, part * 10_000, copy))


def run(name: str, source: Path, out: Path, copies: int, part: int, per_copy: bool) -> None:
    cv2.setNumThreads(1)
    if name == "cifar10":
        cifar10(source, out, copies, part)
    else:
        photos(source, out, copies, part, per_copy)


if __name__ == "__main__":
    name, source, out, copies = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = [
            pool.submit(run, name, source, out, copies, part, "per-copy" in sys.argv)
            for part in range(2)
        ]
        for job in jobs:
            job.result()
