"""The policy as NVIDIA DALI offers it on a CPU: one warp by a matrix of its own, then brightness.

Prints images a second of the best of some passes: `memory SIDE N` from arrays, `disk FOLDER SIDE N`
from JPEG files that are decoded, resized and cropped first. Two threads, batches of 256 or 32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from rates import best_rate

THREADS = 2


def augmented(images, side: int):
    """The images shifted, rotated and mirrored in one warp, then made brighter or darker."""
    shift = fn.random.uniform(range=(-0.1 * side, 0.1 * side), shape=2)
    angle = fn.random.uniform(range=(-15.0, 15.0))
    flipped = fn.random.coin_flip(probability=0.5)
    centre = (side - 1) / 2
    matrix = fn.transforms.translation(offset=shift)
    matrix = fn.transforms.rotation(matrix, angle=angle, center=(centre, centre))
    scale = fn.stack(1.0 - 2.0 * flipped, fn.cast(flipped * 0 + 1, dtype=types.FLOAT))
    matrix = fn.transforms.scale(matrix, scale=scale, center=(centre, centre))
    warped = fn.warp_affine(images, matrix, inverse_map=False, fill_value=0)
    return fn.brightness(warped, brightness=fn.random.uniform(range=(0.8, 1.2)))


@pipeline_def(num_threads=THREADS, device_id=None, prefetch_queue_depth=2)
def from_memory(images: np.ndarray):
    batches = [images[i : i + 256] for i in range(0, len(images) - 255, 256)]
    side = images.shape[1]
    data = fn.external_source(source=batches, cycle=True, layout="HWC", no_copy=True)
    return augmented(data, side)


@pipeline_def(num_threads=THREADS, device_id=None, prefetch_queue_depth=2)
def from_disk(files: list[str], side: int):
    encoded, _ = fn.readers.file(files=files, name="reader")
    images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    images = fn.resize(images, resize_shorter=side, antialias=True)
    images = fn.crop(images, crop=(side, side))
    return augmented(images, side)


def rate(pipe, batch: int, n: int) -> float:
    pipe.build()

    def one_pass() -> None:
        for _ in range(n // batch):
            pipe.run()

    return best_rate(one_pass, n // batch * batch)


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "memory":
        side, n = map(int, arguments)
        batch = 256
        images = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)
        pipe = from_memory(images, batch_size=batch)
    else:
        folder, side, n = Path(arguments[0]), *map(int, arguments[1:])
        batch = 32
        files = sorted(map(str, folder.rglob("*.jpg")))
        pipe = from_disk(files, side, batch_size=batch)
    print(rate(pipe, batch, n))
