"""The least that can be done: decode once, draw, warp, brighten, write Parquet. No product code.

No hashes, checks, records, resume or ids: what a competent loop by hand costs on the same cores.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import data
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 3125  # images; what the product puts in a shard of CIFAR-10


def philox(keys: np.ndarray, copy: int, n: int) -> np.ndarray:
    """(B, n) float32 uniforms: counter-based, so that copies and samples may come in any order."""
    counter = np.zeros((4, -(-n // 4), len(keys)), np.uint64)
    counter[0] = np.arange(counter.shape[1], dtype=np.uint64)[:, None]
    counter[1] = copy
    counter[2], counter[3] = keys & 0xFFFFFFFF, keys >> 32
    a, b, c, d = counter
    k0, k1 = 0, 0
    for _ in range(10):
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            (q >> 32) ^ b ^ np.uint64(k0),
            q & 0xFFFFFFFF,
            (p >> 32) ^ d ^ np.uint64(k1),
            p & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = np.stack([a, b, c, d], -1).transpose(1, 0, 2).reshape(len(keys), -1)[:, :n]
    return (words >> 8).astype(np.float32) * np.float32(2**-24)


def matrices(u: np.ndarray, height: int, width: int) -> np.ndarray:
    """(B, 2, 3): shift by up to a tenth, rotate by up to 15 degrees, mirror half of them."""
    angle = np.deg2rad((2 * u[:, 2] - 1) * 15).astype(np.float64)
    cos, sin = np.cos(angle), np.sin(angle)
    mirror = np.where(u[:, 3] < 0.5, -1.0, 1.0)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    dx, dy = (2 * u[:, 0] - 1) * 0.1 * width, (2 * u[:, 1] - 1) * 0.1 * height
    out = np.empty((len(u), 2, 3))
    out[:, 0, 0], out[:, 0, 1] = cos * mirror, -sin
    out[:, 1, 0], out[:, 1, 1] = sin * mirror, cos
    out[:, :, 2] = np.array([cx, cy]) - np.stack([dx, dy], -1) - out[:, :, :2] @ [cx, cy]
    return out


def augment(padded: np.ndarray, keys: np.ndarray, copy: int, out: np.ndarray) -> None:
    n, height, width = padded.shape[:3]
    u = philox(keys, copy, 5)
    scratch = np.empty((min(n, 256), height, width, 4), np.uint8)
    inverse, factors = matrices(u, height, width), (1 + 0.2 * (2 * u[:, 4] - 1)).tolist()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for start in range(0, n, 256):
        end = min(start + 256, n)
        goal = scratch[: end - start]
        for image, matrix, result, factor in zip(
            padded[start:end], inverse[start:end], goal, factors[start:end], strict=True
        ):
            cv2.warpAffine(image, matrix, (width, height), result, flags, cv2.BORDER_REFLECT)
            cv2.convertScaleAbs(result, result, factor)
        cv2.cvtColor(
            goal.reshape(-1, width, 4), cv2.COLOR_RGBA2RGB, out[start:end].reshape(-1, width, 3)
        )


def pad(images: np.ndarray) -> np.ndarray:
    n, height, width, _ = images.shape
    flat = cv2.cvtColor(images.reshape(n * height, width, 3), cv2.COLOR_RGB2RGBA)
    return flat.reshape(n, height, width, 4)


def cifar10_half(source: Path, out: Path, copies: int, part: int) -> float:
    """Every other block of the training images; seconds without imports."""
    cv2.setNumThreads(1)
    started = time.monotonic()
    images, labels = data.cifar10(source)
    kind = pa.binary(images[0].nbytes)
    schema = data.schema(kind)
    for start in range(part * BLOCK, len(images), 2 * BLOCK):
        block = images[start : start + BLOCK]
        keys = np.arange(start, start + len(block), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        padded, made = pad(block), np.empty_like(block)
        path = out / f"{start:06d}.parquet"
        with pq.ParquetWriter(
            path, schema, compression="none", use_dictionary=False, write_statistics=["copy"]
        ) as writer:
            for copy in range(1, copies + 1):
                augment(padded, keys, copy, made)
                pixels = pa.FixedSizeBinaryArray.from_buffers(
                    kind, len(block), [None, pa.py_buffer(made)]
                )
                table = data.table(pixels, labels[start : start + BLOCK], start, copy)
                writer.write_table(table, row_group_size=len(table))
    return time.monotonic() - started


def photos_half(source: Path, out: Path, copies: int, part: int) -> float:
    cv2.setNumThreads(1)
    started = time.monotonic()
    files = data.photos(source)[part::2]
    block = np.stack([data.decode_224(path) for path, _ in files])
    keys = np.arange(len(block), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    padded, made = pad(block), np.empty_like(block)
    schema, labels = data.schema(pa.binary()), np.array([label for _, label in files])
    with pq.ParquetWriter(
        out / f"{part}.parquet", schema, compression="none", use_dictionary=False
    ) as writer:
        for copy in range(1, copies + 1):
            augment(padded, keys, copy, made)
            encoded = pa.array([data.encode_jpeg(image) for image in made], pa.binary())
            writer.write_table(data.table(encoded, labels, part * 10_000, copy))
    return time.monotonic() - started


if __name__ == "__main__":
    name, source, out, copies = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    half = {"cifar10": cifar10_half, "photos": photos_half}[name]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = [pool.submit(half, source, out, copies, part) for part in range(2)]
        print(max(job.result() for job in jobs))
