"""Decoded images by position: what training reads again and again."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from datasets.errors import EnvironmentFailed, ImageError
from datasets.fingerprint import NOT_READ, Scan, digest_of, read_each
from datasets.source import Samples, Source
from pipeline.memory import aligned
from pipeline.report import size
from pipeline.shard import decode_sample

CHUNK = 64  # samples that a thread decodes at a time


@dataclass(frozen=True)
class Pixels:
    """Images of one shape. `pixels[positions]` gives (B, H, W, C) uint8; safe to call from threads.

    scan: Of the samples; what is read later must be what it found.
    stored: (n, H, W, C), the first images as far as the cache reaches; the others are decoded
      whenever they are asked for.
    is_spacious: Whether all images are in memory, and there is room for four times as much.
    """

    source: Source
    samples: Samples
    scan: Scan
    image_size: tuple[int, int] | None
    shape: tuple[int, int, int]
    stored: np.ndarray
    is_spacious: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        if len(self.stored) == len(self) or not len(positions):
            out = aligned((len(positions), *self.shape))
            return np.take(self.stored, positions, axis=0, out=out, mode="clip")
        return np.stack(self.each(positions))

    def each(self, positions: np.ndarray) -> list[np.ndarray]:
        """The images one by one; stored ones are not copied."""
        n = len(self.stored)
        if n == len(self):
            return list(map(self.stored.__getitem__, positions.tolist()))
        decoded, found = self.decode(positions[positions >= n]), []
        for i in positions.tolist():
            image = self.stored[i] if i < n else next(decoded)
            if isinstance(image, ImageError):  # it decoded when training began
                told = f"{self.samples.ids[i]}: {image}"
                if str(image).startswith(NOT_READ):
                    raise EnvironmentFailed(
                        f"{told}, but could when the run began; run the same command again (a "
                        "training with --resume)"
                    )
                raise ImageError(told)
            found.append(image)
        return found

    def decode(self, positions: np.ndarray) -> Iterator[np.ndarray | ImageError]:
        """Each image read from the source, or why it cannot be used.

        Raises: EnvironmentFailed if one is not what it was when the scan was made.
        """
        where = positions.tolist()
        for i, data in zip(
            where, read_each(self.source, [self.samples.refs[i] for i in where]), strict=True
        ):
            expected = self.scan.digests[i]
            if expected and not isinstance(data, OSError) and digest_of(data) != expected:
                raise EnvironmentFailed(
                    f"{self.samples.ids[i]}: is not what it was when the run began; put that back, "
                    "or begin another run"
                )
            try:
                image = decode_sample(
                    self.source, self.samples, i, data, self.image_size, self.shape
                )
            except ImageError as err:
                yield err
            else:
                yield image


def cache_bytes() -> int:
    """How much decoded images of a split may take in memory: a quarter of what this process has,
    which may be less than the machine (a container's limit, a Dask worker's share)."""
    from distributed import get_worker
    from distributed.system import memory_limit

    try:
        own = get_worker().memory_manager.memory_limit
    except ValueError:  # no worker
        own = None
    return int(own or memory_limit()) // 4


def on_disk(shape: tuple[int, ...]) -> np.ndarray:
    """Bytes in a file without a name in the temporary folder, all of whose space is taken.

    Raises: EnvironmentFailed if there is not as much.
    """
    n_bytes = max(1, math.prod(shape))
    with tempfile.TemporaryFile() as file:  # the map keeps it, and it goes with the map
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError as err:
            raise EnvironmentFailed(
                f"--cache disk: {size(n_bytes)} in {tempfile.gettempdir()}: {err.strerror}; set "
                "TMPDIR to a larger disk, or give --cache none"
            ) from err
        return np.memmap(file, np.uint8, "r+", shape=shape)


def load_pixels(
    source: Source,
    samples: Samples,
    scan: Scan,
    image_size: tuple[int, int] | None,
    shape: tuple[int, int, int],
    cache: str,
    n_threads: int,
    on_images: Callable[[int], None] = lambda n: None,
) -> tuple[Pixels, dict[int, str]]:
    """The pixels of all samples, each decoded once, and position -> reason of the unusable ones.

    Args:
      cache: `memory` (as many as fit a quarter of it), `disk` (all, in a file without a name in the
        temporary folder) or `none`: decoded again whenever they are needed.
      on_images: Told how many more have been decoded.
    """
    n, image_bytes = len(samples), int(np.prod(shape))
    if cache == "disk":
        stored = on_disk((n, *shape))
    else:
        n_stored = min(n, cache_bytes() // image_bytes) if cache == "memory" else 0
        stored = np.empty((n_stored, *shape), np.uint8)
    spacious = len(stored) == n and cache == "memory" and 4 * stored.nbytes <= cache_bytes()
    pixels = Pixels(source, samples, scan, image_size, shape, stored, spacious)
    bad: dict[int, str] = {}

    def fill(start: int) -> int:
        positions = np.arange(start, min(start + CHUNK, n))
        for i, image in zip(positions.tolist(), pixels.decode(positions), strict=True):
            if isinstance(image, ImageError):
                bad[i] = str(image)
            elif i < len(stored):
                stored[i] = image
        return len(positions)

    with ThreadPoolExecutor(n_threads) as pool:
        for done in pool.map(fill, range(0, n, CHUNK)):
            on_images(done)
    return pixels, bad
