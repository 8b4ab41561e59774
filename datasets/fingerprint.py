"""What a source held when a job was planned: hashes and sizes of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from datasets import images
from datasets.errors import ImageError, as_system_error
from datasets.source import OfFiles, Samples, Source, stamps_of

if TYPE_CHECKING:
    from datasets.index import Entry

TOLD_EVERY = 64  # samples: to tell of each would take a tenth of the time of small ones
NOT_READ = "cannot be read"  # how the reason begins
AFTER_ERROR = 1000  # refs that are asked for at once: a million bad ones must not copy all the rest


@dataclass(frozen=True)
class Scan:
    """Samples of one split, read once; columns of equal length n.

    digests: sha256 of the bytes or pixels of each sample, b"" where it could not be read.
    shapes: (n, 3) int32 height, width, channels after the crop to its box; 0 where unusable.
    errors: Position -> reason, for samples whose file or header cannot be used.
    stamps: Of each sample, as `stamps_of` gives them; None where there is none, or it was
      unreadable.
    """

    digests: list[bytes]
    shapes: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    stamps: list[str | None] = field(default_factory=list)

    def put(self, where: np.ndarray, part: Scan) -> None:
        """Fills in the samples at these positions, which are not known yet, from a scan of them
        alone; the stamps are those from before."""
        self.shapes[where] = part.shapes
        positions = where.tolist()
        for i, digest in zip(positions, part.digests, strict=True):
            self.digests[i] = digest
            if not digest:
                self.stamps[i] = None  # it may be readable tomorrow, without any change to it
        self.errors.update((positions[n], why) for n, why in part.errors.items())

    def take(self, where: np.ndarray) -> Scan:
        """The scan of the samples at these positions, in this order, without stamps."""
        chosen = where.tolist()
        return Scan(
            [self.digests[i] for i in chosen],
            self.shapes[where],
            {n: self.errors[i] for n, i in enumerate(chosen) if i in self.errors},
        )


def scan(source: Source, samples: Samples, advance: Callable[[int], None] = lambda n: None) -> Scan:
    """Reads every sample once; decodes none, sizes come from headers.

    advance: Told of each number of samples that are done.
    """
    found, everything = recognize(source, samples, {})
    found.put(everything, read_scan(source, samples, advance))
    return found


def recognize(
    source: Source, samples: Samples, known: Mapping[str, Entry]
) -> tuple[Scan, np.ndarray]:
    """What the stamps of the samples tell, and the positions of those that must be read.

    known: Sample id -> how it was before; what has its stamp still is that.
    """
    n = len(samples)
    stamps: list[str | None] = [None] * n
    if isinstance(source, OfFiles):  # before they are read: who changes one then changes its stamp
        stamps = stamps_of(source.image_folder, samples.refs)
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


def read_scan(
    source: Source, samples: Samples, advance: Callable[[int], None] = lambda n: None
) -> Scan:
    """A scan of these samples without stamps: every one is read."""
    digests, shapes, errors = list[bytes](), list[Sequence[int]](), dict[int, str]()
    for i, data in enumerate(read_each(source, samples.refs)):
        shape: Sequence[int] = (0, 0, 0)
        if isinstance(data, OSError):
            digests.append(b"")
            errors[i] = not_read(data)
        else:
            digests.append(digest_of(data))
            try:
                shape = shape_of(data, source.channels, samples.box(i))
            except ImageError as err:
                errors[i] = str(err)
        shapes.append(shape)
        if len(shapes) % TOLD_EVERY == 0:
            advance(TOLD_EVERY)
    advance(len(shapes) % TOLD_EVERY)
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
    """What the source gives for each ref, or the OSError where it cannot be read.

    Raises: EnvironmentFailed where the error is not about that one, but would be met at any.
    """
    start, n = 0, len(refs)
    while start < len(refs):
        try:
            for data in source.read(refs[start : start + n]):
                start += 1
                yield data
        except OSError as err:
            if told := as_system_error(f"{source.name} {refs[start]}", err):
                raise told from err
            start, n = start + 1, AFTER_ERROR
            yield err


def not_read(err: OSError) -> str:
    """The reason in the manifest for a sample that could not be read."""
    return f"{NOT_READ}: {err.strerror or err}"


def cropped_size(box: list[int], height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels of the part of an image that lies in its box.

    box: Left, top, width and height in pixels; it may reach beyond the image.
    Raises: ImageError if nothing of the image lies in it.
    """
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
