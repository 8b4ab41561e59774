"""`pipeline clean`: removes what unfinished runs have left beside outputs, and loses nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from datasets import storage
from datasets.commit import (
    RECORDS,
    RUN,
    hold,
    partial_folders,
    restore,
)
from datasets.errors import OutputBusy
from datasets.index import INDEX, indexes, stale_indexes
from datasets.lease import leased
from datasets.manifest import MANIFEST, SUCCESS, UNFINISHED, VERSION
from datasets.storage import walk
from datasets.storage_errors import translating_errors

# What only a run writes, the first of it before any shard: others name folders by hashes too.
OURS = re.compile(rf"(?P<version>(.*/)?{VERSION.pattern})/({RUN}|{MANIFEST}|{RECORDS}/.*)")


def clean(folder: Path) -> Iterator[str]:
    """Removes what unfinished runs left below `folder`, or beside it where it is an output itself,
    and indexes without their output, and yields a line about each. An output that was being
    replaced is put back, or the new one that was ready takes its place.

    Raises: OutputBusy, at the end, if some were left since a run is writing there.
    """
    if storage.is_object(folder):
        yield from clean_objects(folder)
        return
    busy: list[str] = []
    beside = partial_folders(folder.absolute())
    found = walk(folder) if folder.is_dir() else ()
    below = {path.absolute() for path in found if UNFINISHED.fullmatch(path.name)}
    for path in sorted({*beside, *below}):
        match = UNFINISHED.fullmatch(path.name)
        # What is no folder, or would belong to the folder itself, is no work of a run.
        if not match or match["out"] in (".", "..") or path.is_symlink() or not path.is_dir():
            continue
        out = path.with_name(match["out"])
        try:
            with hold(out):
                if done := restore(out):
                    yield done
                if path.is_dir():  # else an earlier line has dealt with it
                    shutil.rmtree(path)
                    yield f"removed {path}"
        except OutputBusy as err:
            busy.append(str(err))
    # Last, since an index is of use or not by what stands in the output's place.
    known = walk(folder) if folder.is_dir() else ()
    named = ((INDEX.fullmatch(p.name), p.absolute()) for p in known)
    outs = {folder.absolute(), *(p.with_name(match["out"]) for match, p in named if match)}
    for out in sorted(out for out in outs if stale_indexes(out)):
        try:
            with hold(out):
                for path in stale_indexes(out):
                    path.unlink()
                    yield f"removed {path}"
        except OutputBusy as err:
            busy.append(str(err))
    if busy:
        raise OutputBusy("; ".join(dict.fromkeys(busy)))


def clean_objects(folder: Path) -> Iterator[str]:
    """Removes the versions in object storage, of `folder` or of outputs below it, that were never
    finished, and parts of uploads."""
    busy: list[str] = []
    with translating_errors(folder):
        known = storage.files_below(folder)
        names = sorted({match["version"] for match in map(OURS.fullmatch, known) if match})
        versions = [folder / name for name in names]
        for out in sorted({version.parent for version in versions} or {folder}, key=str):
            try:
                with leased(out):
                    yield from clean_output(out, [v for v in versions if v.parent == out])
            except OutputBusy as err:
                busy.append(str(err))
    if busy:
        raise OutputBusy("; ".join(busy))


def clean_output(out: Path, versions: list[Path]) -> Iterator[str]:
    """The part of `clean_objects` that is about one output, of which these are the versions."""
    for path in versions:
        if storage.kind(path / SUCCESS) != "file":
            storage.remove(path)
            yield f"removed {path}"
    for version, path in indexes(out):
        if storage.kind(out / version / SUCCESS) != "file":
            storage.remove(path)
            yield f"removed {path}"
    if n := storage.abort_uploads(out, VERSION):
        yield f"ended {n} unfinished uploads to {out}"
