"""What a source held when a job was planned: hashes and sizes of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from datasets import images
from datasets.errors import ImageError
from datasets.source import Samples, Source, Stamped

if TYPE_CHECKING:
    from datasets.index import Entry

TOLD_EVERY = 64  # samples: to tell of each would take a tenth of the time of small ones
AFTER_ERROR = 1000  # refs that are asked for at once: a million bad ones must not copy all the rest


@dataclass(frozen=True)
class Scan:
    """Samples of one split, read once; columns of equal length n.

    digests: sha256 of the bytes or pixels of each sample, b"" where it could not be read.
    shapes: (n, 3) int32 height, width, channels after the crop to its box; 0 where unusable.
    errors: Position -> reason, for samples whose file or header cannot be used.
    stamps: Of each sample, as `Stamped` gives them; None where there is none, or it was unreadable.
    """

    digests: list[bytes]
    shapes: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    stamps: Sequence[str | None] = ()


def scan(
    source: Source,
    samples: Samples,
    advance: Callable[[int], None] = lambda n: None,
    known: Mapping[str, Entry] | None = None,
) -> Scan:
    """Reads every sample once; decodes none, sizes come from headers.

    advance: Told of each number of samples that are done.
    known: Sample id -> how it was before; what has its stamp still is not read.
    """
    n = len(samples)
    # Stamps come first: who changes a file from now on changes its stamp.
    stamps = source.stamps(samples.refs) if isinstance(source, Stamped) else [None] * n
    digests, errors = [b""] * n, dict[int, str]()
    shapes: list[Sequence[int]] = [(0, 0, 0)] * n
    unknown = []
    for i, stamp in enumerate(stamps):
        before = known.get(samples.ids[i]) if known and stamp else None
        if before is None or before.stamp != stamp or before.box != samples.box(i):
            unknown.append(i)
            continue
        digests[i], shapes[i] = before.digest, before.shape
        if before.error is not None:
            errors[i] = before.error
    advance(n - len(unknown))
    found = read_each(source, [samples.refs[i] for i in unknown])
    for n_read, (i, data) in enumerate(zip(unknown, found, strict=True), 1):
        if n_read % TOLD_EVERY == 0 or n_read == len(unknown):
            advance((n_read - 1) % TOLD_EVERY + 1)
        if isinstance(data, OSError):
            errors[i] = f"cannot be read: {data.strerror or data}"
            stamps[i] = None  # it may be readable tomorrow, without any change to it
            continue
        digests[i] = digest_of(data)
        try:
            shapes[i] = shape_of(data, source.channels, samples.box(i))
        except ImageError as err:
            errors[i] = str(err)
    return Scan(digests, np.array(shapes, np.int32).reshape(n, 3), errors, stamps)


def shape_of(
    data: np.ndarray | bytes, channels: int, box: list[int] | None
) -> tuple[int, int, int]:
    """Height and width in pixels, and channels, of a sample after the crop to its box.

    Args:
      data: (H, W) or (H, W, C) pixels, or an encoded file, of which the header alone is read.
      channels: What encoded files are decoded to.
      box: Left, top, width and height in pixels.
    Raises: ImageError if the header is unusable, or nothing of the image lies in the box.
    """
    if isinstance(data, np.ndarray):
        height, width, channels = data.shape if data.ndim == 3 else (*data.shape, 1)
    else:
        height, width = images.size(data)
    if box is not None:
        height, width = cropped_size(box, height, width)
    return height, width, channels


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
