"""Samples: stable ids, keys and splits, and what every source of images offers."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from datasets import storage
from datasets.download import Log
from datasets.errors import SourceError
from datasets.many_files import read_all
from datasets.storage_errors import translating_errors

KEY_BITS = 64
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # line breaks among them
MAX_FILE_BYTES = 1_000_000_000  # no image file is larger
# Two changes within a tick of a file system's clock leave one time; the coarsest ticks take 2 s.
TICK_NS = 2 * 10**9


def sample_keys(ids: Sequence[str]) -> np.ndarray:
    """(n,) uint64 keys that depend on nothing but each id, so that other samples never matter.

    Source: the first 8 bytes, little-endian, of BLAKE2b (RFC 7693) over the UTF-8 id.
    """
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


def mix(keys: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """(n,) uint64 keys -> (n,) uint64 hashes, independent between seeds and purposes.

    Used where samples are placed or ordered (blocks, splits, limits); pixels use Philox.
    Source: SplitMix64's finalizer (Steele et al., "Fast splittable pseudorandom number
    generators", OOPSLA 2014), over the key xor a hash of seed and purpose.
    """
    salt = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    z = keys ^ np.frombuffer(salt, dtype="<u8")
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def is_held_out(ids: Sequence[str], fraction: float, purpose: str = "split") -> np.ndarray:
    """(n,) bool, true for about `fraction` (0 to 1) of the ids, each decided by its id alone.

    Adding or removing a sample never moves another one to the other side.
    """
    threshold = np.uint64(min(round(fraction * 2**KEY_BITS), 2**KEY_BITS - 1))
    return mix(sample_keys(ids), 0, purpose) < threshold


@dataclass(frozen=True)
class Samples:
    """Samples of one split, as columns of equal length n.

    ids: Stable and unique over all splits, valid UTF-8.
    labels: (n,) int64, an index into the listing's classes.
    refs: What the source's `read` needs to find each sample: picklable, small.
    boxes: (n, 4) int32 rows of (left, top, width, height) in pixels to crop to, or None.
    """

    ids: Sequence[str]
    labels: np.ndarray
    refs: Sequence[Any]
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def keys(self) -> np.ndarray:
        """(n,) uint64, `sample_keys` of the ids."""
        return sample_keys(self.ids)

    def box(self, i: int) -> list[int] | None:
        """Left, top, width and height of sample i's box; None where there are no boxes."""
        return None if self.boxes is None else self.boxes[i].tolist()

    def take(self, indices: np.ndarray) -> Samples:
        """The samples at these positions, in this order."""
        chosen = indices.tolist()
        return Samples(
            ids=[self.ids[i] for i in chosen],
            labels=self.labels[indices],
            refs=[self.refs[i] for i in chosen],
            boxes=None if self.boxes is None else self.boxes[indices],
        )


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    classes: Names in label order.
    splits: Split -> its samples; names of splits are lower case letters, digits and underscores.
    ignored: What was passed over, by name, with the reason behind it where the name does not tell.
    """

    classes: tuple[str, ...]
    splits: dict[str, Samples]
    ignored: tuple[str, ...] = field(default=())

    @property
    def empty_classes(self) -> list[str]:
        """Those that no sample of any split has."""
        used = {label for part in self.splits.values() for label in np.unique(part.labels).tolist()}
        return [name for i, name in enumerate(self.classes) if i not in used]


class Source(Protocol):
    """A data set. Frozen, small and picklable (a path and options): workers get a copy of it.

    name: For folders and file names: lower case letters, digits and underscores.
    channels: 1 or 3; what encoded files are converted to, the same for all of them.
    """

    @property
    def name(self) -> str: ...

    @property
    def channels(self) -> int: ...

    def listing(self) -> Listing:
        """Every split and sample, without decoding any image.

        Raises: SourceError if the data is absent or its index is broken.
        """
        ...

    def read(self, refs: Sequence[Any]) -> Iterator[np.ndarray | bytes]:
        """The samples at `refs`, in that order: (H, W) or (H, W, 3) uint8, or an encoded file.

        Raises: OSError if a file cannot be read (the one whose turn it is).
        """
        ...


@runtime_checkable
class OfFiles(Protocol):
    """A source of files, each a sample: a ref is a name below the folder."""

    @property
    def image_folder(self) -> Path: ...


@runtime_checkable
class Downloaded(Protocol):
    """A source that is fetched, once, before it can be listed."""

    def download(self, log: Log) -> None:
        """Raises: EnvironmentFailed if it fails."""
        ...


def file_stamp(path: str) -> str | None:
    """Size, times and inode of a file. None where it cannot be asked, or has changed so lately
    that one more change need not show ("racily clean", in git's words)."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if time.time_ns() - found.st_ctime_ns < TICK_NS:  # whatever changes a file sets it
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def stamps_of(folder: Path, refs: Sequence[str]) -> list[str | None]:
    """For each file of those names below the folder a text that is another one whenever its content
    is; None where nothing can be told. Of objects it is size and ETag."""
    if storage.is_object(folder):
        tags = storage.tags_below(folder)
        return [tags.get(ref) for ref in refs]
    return [file_stamp(os.path.join(folder, ref)) for ref in refs]  # absolute ones are of a list


def read_file(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file that somebody else wrote.

    Raises: OSError, with a `strerror` that holds no path, if it cannot be read, is no regular file
      (a pipe or a device may never end) or is larger than `most` bytes; EnvironmentFailed if its
      storage fails.
    """
    with translating_errors(path):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes, at most {most:,} are read")
    with storage.open_file(path) as file:
        return file.read(found.st_size)  # no more, even if it grows


def read_files(folder: Path, refs: Sequence[str]) -> Iterator[bytes]:
    """The files of those names below the folder, in that order.

    Raises: OSError as `read_file` does, at the turn of the one that cannot be read.
    """
    if storage.is_object(folder):
        return read_all(folder, refs)
    return (read_file(folder / ref) for ref in refs)


def listing_of(name: str, source: Source, log: Log) -> Listing:
    """What the source holds, checked; downloaded first where it is not there yet.

    Raises: what `download`, `listing` and `check_listing` do.
    """
    if isinstance(source, Downloaded):
        source.download(log)
    return check_listing(name, source.listing())


def check_listing(name: str, listing: Listing) -> Listing:
    """The same listing, checked: not empty, ids unique over all splits, every label has a class,
    names of splits and classes as files and their readers can hold them.

    Raises: SourceError that names the first sample or name that is wrong.
    """
    seen: dict[str, str] = {}
    for split, samples in listing.splits.items():
        if not re.fullmatch(r"[a-z0-9_]+", split):  # file names and their readers need it
            raise SourceError(
                f"{name}: a split is named {split!r}; expected lower case letters, digits and "
                "underscores: rename it"
            )
        for sample_id in samples.ids:
            if sample_id in seen:
                raise SourceError(
                    f"{name}: sample id {sample_id!r} appears in {seen[sample_id]!r} and again "
                    f"in {split!r}; ids must be unique: remove or rename one of them"
                )
            seen[sample_id] = split
        if len(samples) and samples.labels.max() >= len(listing.classes):
            worst = int(samples.labels.argmax())
            raise SourceError(
                f"{name}: {samples.ids[worst]!r} has the label {samples.labels[worst]}, but there "
                f"are {len(listing.classes)} classes; fix the label or the list of class names"
            )
    for c in listing.classes:
        if not c or c != c.strip() or CONTROL.search(c):
            raise SourceError(
                f"{name}: a class is named {c!r}; expected no empty name, no space at its ends and "
                "no control characters: rename it"
            )
    if not seen:
        raise SourceError(f"{name}: no images found; expected at least one")
    return listing
