"""What a source held when a job was planned: hashes and sizes of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from datasets import images
from datasets.errors import ImageError
from datasets.source import Samples, Source

AFTER_ERROR = 1000  # refs that are asked for at once: a million bad ones must not copy all the rest


@dataclass(frozen=True)
class Scan:
    """Samples of one split, read once; columns of equal length n.

    digests: sha256 of the bytes or pixels of each sample, b"" where it could not be read.
    shapes: (n, 3) int32 height, width, channels after the crop to its box; 0 where unusable.
    errors: Position -> reason, for samples whose file or header cannot be used.
    """

    digests: list[bytes]
    shapes: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)


def scan(source: Source, samples: Samples, on_sample: Callable[[], None] = lambda: None) -> Scan:
    """Reads every sample once; decodes none, sizes come from headers."""
    found = Scan([b""] * len(samples), np.zeros((len(samples), 3), np.int32))
    for i, data in enumerate(read_each(source, samples.refs)):
        on_sample()
        if isinstance(data, OSError):
            found.errors[i] = f"cannot be read: {data.strerror or data}"
            continue
        found.digests[i] = digest_of(data)
        try:
            if isinstance(data, np.ndarray):
                height, width = data.shape[:2]
                channels = data.shape[2] if data.ndim == 3 else 1
            else:
                (height, width), channels = images.size(data), source.channels
            if samples.boxes is not None:
                height, width = cropped_size(samples.boxes[i].tolist(), height, width)
        except ImageError as err:
            found.errors[i] = str(err)
            continue
        found.shapes[i] = height, width, channels
    return found


def digest_of(data: np.ndarray | bytes) -> bytes:
    """sha256 of a file's bytes, or of pixels in C order."""
    return hashlib.sha256(data.data if isinstance(data, np.ndarray) else data).digest()


def read_each(source: Source, refs: Sequence[object]) -> Iterator[np.ndarray | bytes | OSError]:
    """What the source gives for each ref, or the OSError where it cannot be read."""
    start, n = 0, len(refs)
    while start < len(refs):
        try:
            for data in source.read(refs[start : start + n]):
                start += 1
                yield data
        except OSError as err:
            start, n = start + 1, AFTER_ERROR
            yield err


def cropped_size(box: list[int], height: int, width: int) -> tuple[int, int]:
    left, top, box_width, box_height = box
    cropped = (
        min(height, top + box_height) - max(0, top),
        min(width, left + box_width) - max(0, left),
    )
    if min(cropped) <= 0:
        raise ImageError(f"its box {tuple(box)} lies outside of the image {(width, height)}")
    return cropped


def fingerprint(classes: Sequence[str], samples: dict[str, Samples], scans: dict[str, Scan]) -> str:
    """Hex sha256 over classes, ids, labels, boxes and contents, whatever the listing's order."""
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for split in sorted(samples):
        part, found = samples[split], scans[split]
        labels = part.labels.tolist()
        boxes = [None] * len(part) if part.boxes is None else part.boxes.tolist()
        rows = sorted(zip(part.ids, labels, boxes, found.digests, strict=True))
        for row in rows:
            digest.update(repr((split, *row)).encode())
    return digest.hexdigest()
