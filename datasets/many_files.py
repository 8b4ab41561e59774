"""The bytes of many files, or of parts of them; of objects many with each wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.storage import file_system, is_object, key, place
from datasets.storage_errors import cause_of, of_one_object, storage_error

# Objects, as each request takes 10 to 100 ms, whatever its size; and bytes, where they are known.
READ_AT_ONCE, BYTES_AT_ONCE = 64, 64 * 2**20


def read_all(folder: Path, names: Sequence[str]) -> Iterator[bytes]:
    """The files of those names below the folder, in their order; objects many at a time.

    Raises: OSError at the turn of one that is not there or must not be read; EnvironmentFailed if
      the storage fails, which says nothing about that one.
    """
    if not is_object(folder):
        yield from ((folder / name).read_bytes() for name in names)
        return
    urls, keys = ([f"{above}/{name}" for name in names] for above in (folder, key(folder)))
    whole = [None] * len(names)
    for first in range(0, len(names), READ_AT_ONCE):
        some = slice(first, first + READ_AT_ONCE)
        yield from fetch(file_system(folder), urls[some], keys[some], whole[some], whole[some])


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
    """The bytes of each (path or URL, offset, length), all in one storage, in their order; of
    objects many at a time.

    Raises: as `read_all`.
    """
    places = {path: place(path) for path in {path for path, *_ in ranges}}
    if not any(map(is_object, places.values())):
        for path, offset, length in ranges:
            with places[path].open("rb") as file:
                file.seek(offset)
                yield file.read(length)
        return
    keys = {path: key(found) for path, found in places.items()}
    for some in in_batches(ranges):
        urls, starts, _ = zip(*some, strict=True)
        ends = [offset + length for _, offset, length in some]
        yield from fetch(file_system(places[urls[0]]), urls, [keys[u] for u in urls], starts, ends)


def in_batches(
    ranges: Sequence[tuple[str, int, int]],
) -> Iterator[Sequence[tuple[str, int, int]]]:
    """As many ranges (not none) as are read at once, whichever limit they meet first."""
    first = n_bytes = 0
    for i, (*_, length) in enumerate(ranges):
        if i > first and (i - first == READ_AT_ONCE or n_bytes + length > BYTES_AT_ONCE):
            yield ranges[first:i]
            first, n_bytes = i, 0
        n_bytes += length
    yield ranges[first:]


def fetch(
    files: Any,
    urls: Sequence[str],
    keys: Sequence[str],
    starts: Sequence[int | None],
    ends: Sequence[int | None],
) -> Iterator[bytes]:
    """The bytes from start to end of each object, all at once. Raises: as `read_all`."""
    # `cat` would take `*` and `[` in names for patterns.
    found = files.cat_ranges(list(keys), list(starts), list(ends), on_error="return")
    for url, data in zip(urls, found, strict=True):
        if isinstance(data, BaseException):
            raise of_one_object(data) or storage_error(url, cause_of(data) or data) from data
        yield data
