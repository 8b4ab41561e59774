"""What a source held when a job was planned: hashes and sizes of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from datasets import images
from datasets.errors import ImageError
from datasets.source import Grouped, Samples, Source, Stamped

if TYPE_CHECKING:
    from datasets.index import Entry

PART = 256  # samples that are read before anybody is told of them, or by a worker at a time
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
    stamps: list[str | None] = field(default_factory=list)

    def put(self, where: np.ndarray, part: Scan) -> None:
        """Fills in the samples at these positions from a scan of them alone, without stamps."""
        self.shapes[where] = part.shapes
        positions = where.tolist()
        for i, digest in zip(positions, part.digests, strict=True):
            self.digests[i] = digest
            if not digest:
                self.stamps[i] = None  # it may be readable tomorrow, without any change to it
        self.errors.update((positions[n], why) for n, why in part.errors.items())


def scan(source: Source, samples: Samples, advance: Callable[[int], None] = lambda n: None) -> Scan:
    """Reads every sample once; decodes none, sizes come from headers.

    advance: Told of each number of samples that are done.
    """
    found, unknown = recognize(source, samples)
    for where in parts(source, samples, unknown):
        found.put(where, read_scan(source, samples.take(where)))
        advance(len(where))
    return found


def recognize(
    source: Source, samples: Samples, known: Mapping[str, Entry] | None = None
) -> tuple[Scan, np.ndarray]:
    """What the stamps of the samples tell, and the positions of those that must be read.

    known: Sample id -> how it was before; what has its stamp still is that.
    """
    n = len(samples)
    # Stamps come first: who changes a file from now on changes its stamp.
    stamps: list[str | None] = [None] * n
    if isinstance(source, Stamped):
        stamps = source.stamps(samples.refs)
    found = Scan([b""] * n, np.zeros((n, 3), np.int32), stamps=stamps)
    if not known:
        return found, np.arange(n)
    unknown = []
    for i, stamp in enumerate(stamps):
        before = known.get(samples.ids[i]) if stamp else None
        if before is None or before.stamp != stamp or before.box != samples.box(i):
            unknown.append(i)
            continue
        found.digests[i], found.shapes[i] = before.digest, before.shape
        if before.error is not None:
            found.errors[i] = before.error
    return found, np.array(unknown, np.int64)


def parts(source: Source, samples: Samples, positions: np.ndarray) -> list[np.ndarray]:
    """These positions, in their order, in parts of 256, or of more where a source reads more at
    once."""
    found, start, n = [], 0, len(positions)
    while start < n:
        end = min(start + PART, n)
        if isinstance(source, Grouped):
            last = source.group(samples.refs[positions[end - 1]])
            while end < n and source.group(samples.refs[positions[end]]) == last:
                end += 1
        found.append(positions[start:end])
        start = end
    return found


def read_scan(source: Source, samples: Samples) -> Scan:
    """A scan of these samples, without stamps: every one is read."""
    digests, shapes, errors = list[bytes](), list[Sequence[int]](), dict[int, str]()
    for i, data in enumerate(read_each(source, samples.refs)):
        shape: Sequence[int] = (0, 0, 0)
        if isinstance(data, OSError):
            digests.append(b"")
            errors[i] = f"cannot be read: {data.strerror or data}"
        else:
            digests.append(digest_of(data))
            try:
                shape = shape_of(data, source.channels, samples.box(i))
            except ImageError as err:
                errors[i] = str(err)
        shapes.append(shape)
    return Scan(digests, np.array(shapes, np.int32).reshape(-1, 3), errors)


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
