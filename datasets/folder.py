"""A folder of images: a subfolder a class, with train/val/test folders above them or without."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path

import numpy as np

from datasets.commit import is_unfinished
from datasets.errors import SourceError, UserError
from datasets.images import SUFFIXES
from datasets.shard_files import EXAMPLE, find_shards
from datasets.source import Listing, Samples, is_held_out, read_files
from datasets.storage import entries, files_below, is_folder, is_object, key
from datasets.storage_errors import as_folder_error, translating_errors

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
TEST_FRACTION = 0.2
# What people keep images in and cannot be decoded: samples too, so that each of them is named.
OTHER_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".jxr", ".tga", ".ico"),
    *(".psd", ".xcf", ".svg", ".svgz", ".eps", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".dds"),
    *(".exr", ".hdr", ".qoi", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
)


def source_name(path: Path) -> str:
    """A name for files made from it: lower case letters, digits and underscores."""
    name = path.name if is_object(path) else path.resolve().name
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "images"


def readable(name: str) -> str:
    """A file name as valid UTF-8: bytes that are none stand as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_by_hash(
    ids: Sequence[str], labels: np.ndarray, refs: Sequence[object]
) -> dict[str, Samples]:
    """Train and test; each sample's side is decided by its id alone."""
    whole = Samples(ids, labels, refs)
    held_out = is_held_out(ids, TEST_FRACTION)
    return {
        "train": whole.take(np.flatnonzero(~held_out)),
        "test": whole.take(np.flatnonzero(held_out)),
    }


@dataclass(frozen=True)
class Folder:
    """Images in a subfolder for each class; ids are paths relative to the folder."""

    root: Path
    channels = 3

    @property
    def name(self) -> str:
        return source_name(self.root)

    def listing(self) -> Listing:
        top = self._subfolders(self.root)
        named = [n for n in top if n.lower() in SPLITS and self._subfolders(self.root / n)]
        if named:
            found = {SPLITS[name.lower()]: self._classes(self.root / name) for name in named}
            if len(found) < len(named):
                raise SourceError(
                    f"{self.root}: two of its folders {', '.join(named)} are one split; join them"
                )
        else:
            found = {"": self._classes(self.root)}
        classes = sorted({name for part in found.values() for name in part})
        if not classes:
            loose = [name for name, is_dir in entries(self.root) if not is_dir]
            self._refuse_unknown_shards(loose)
            n_images = sum(map(is_image, loose))
            raise SourceError(
                f"{self.root}: {n_images} images in the folder itself and none in subfolders; "
                "expected one subfolder for each class (or give a CSV list of paths and labels)"
            )
        others = [readable(name) for name in top if named and name not in named]
        ignored = [f"{name}/ (no split with class folders)" for name in others]
        splits: dict[str, Samples] = {}
        for split, part in found.items():
            refs: list[str] = []
            labels: list[int] = []
            for label, name in enumerate(classes):
                for path in part.get(name, ()):
                    if is_image(path):
                        refs.append(path)
                        labels.append(label)
                    else:
                        ignored.append(readable(path))
            ids, column = [readable(ref) for ref in refs], np.array(labels, np.int64)
            if split:
                splits[split] = Samples(ids, column, refs)
            else:
                splits = split_by_hash(ids, column, refs)
        for folder in (self.root, *(self.root / name for name in named)):
            ignored += self._loose(folder)
        if not named:
            self._check_place([ref for part in splits.values() for ref in part.refs], ignored)
        return Listing(tuple(map(readable, classes)), splits, tuple(sorted(ignored)))

    def _subfolders(self, folder: Path) -> list[str]:
        try:
            found = [entry for entry in entries(folder) if not entry[0].startswith(".")]
        except OSError as err:
            raise not_listed(folder, err) from err
        for name, is_dir in found:
            if not is_dir and not is_image(name) and not is_object(folder):
                refuse_broken_link(folder / name)
        return sorted(name for name, is_dir in found if is_dir)

    def _loose(self, folder: Path) -> Iterator[str]:
        """The files in the folder itself, as what is passed over."""
        above = "" if folder == self.root else f"{folder.name}/"
        for name, is_dir in entries(folder):
            if not name.startswith(".") and not is_dir:
                path = readable(above + name)
                yield f"{path} (an image in no class folder)" if is_image(path) else path

    def _check_place(self, refs: list[str], ignored: list[str]) -> None:
        """Raises: SourceError that says which path to give, where the data lie deeper."""
        below = {(self.root / path).parent for path in ignored} if not refs else ()
        for folder in filter(find_shards, filterfalse(is_unfinished, sorted(below))):
            raise SourceError(
                f"{self.root}: no images found, but shards in {folder}; give that path"
            )
        if not refs:
            self._refuse_unknown_shards(ignored)
        tops = {ref.split(os.sep)[0] for ref in refs}
        if len(tops) == 1 and all(ref.count(os.sep) > 1 for ref in refs):
            raise SourceError(
                f"{self.root}: the images in its only class folder are all in subfolders; if these "
                f"are the classes, give {readable(str(self.root / tops.pop()))}, else a CSV list"
            )
        seconds = {parts[1].lower() for ref in refs if len(parts := ref.split(os.sep)) > 2}
        splits = sorted(seconds & SPLITS.keys())
        if len({SPLITS[name] for name in splits}) > 1:
            raise SourceError(
                f"{self.root}: its class folders hold folders {' and '.join(splits)}, whose images "
                "would be mixed and split again; put these above the classes, or give a CSV list "
                "with the column split"
            )

    def _refuse_unknown_shards(self, names: Iterable[str]) -> None:
        """Raises: SourceError if one of these files may be a shard, but is not named as one."""
        for name in names:
            if name.lower().endswith(".parquet") or ".tfrecord" in name.lower():
                raise SourceError(
                    f"{self.root}: no images found, but {readable(name)}: if that is a shard, name "
                    f"it as {EXAMPLE} is, or birds-train.tfrecord-00000-of-00001; if it is a list "
                    "of images, give its path"
                )

    def _classes(self, folder: Path) -> dict[str, list[str]]:
        """Class -> paths of the files under its folder, at any depth, relative to the root."""
        return {name: sorted(self._files(folder / name)) for name in self._subfolders(folder)}

    def _files(self, folder: Path) -> Iterator[str]:
        if is_object(folder):
            inside = key(folder).removeprefix(key(self.root)).lstrip("/")
            for name in files_below(folder):
                if not any(part.startswith(".") for part in name.split("/")):
                    yield f"{inside}/{name}"
            return
        # No recursion, neither ours nor that of `os.walk`: folders may be nested by the thousand.
        waiting, visited = [str(folder)], set[tuple[int, int]]()
        while waiting:
            path = waiting.pop()
            try:
                with translating_errors(path):
                    status, found = os.stat(path), list(os.scandir(path))
            except OSError as err:
                raise not_listed(path, err) from err
            if (status.st_dev, status.st_ino) in visited:  # a link back to where we came from
                continue
            visited.add((status.st_dev, status.st_ino))
            folders, above = [], os.path.join(os.path.relpath(path, self.root), "")
            for entry in found:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    folders.append(entry.path)
                else:
                    yield above + entry.name
            # Sorted, so that of two links to one folder it is always the same that is followed.
            waiting += sorted(folders, reverse=True)

    @property
    def image_folder(self) -> Path:
        return self.root

    def read(self, refs: Sequence[str]) -> Iterator[bytes]:
        return read_files(self.image_folder, refs)


def not_listed(folder: Path | str, err: OSError) -> UserError:
    """What to tell of a folder whose names cannot be had; what is in it cannot be left out."""
    unreadable = SourceError(f"{folder}: {err.strerror}; expected a readable folder")
    return as_folder_error(folder, err) or unreadable


def refuse_broken_link(path: Path) -> None:
    """Raises: SourceError if it is a link that cannot be followed: it may have led to the images of
    a class, and without that the others would have other numbers."""
    if path.is_symlink() and not os.path.exists(path):
        raise SourceError(
            f"{readable(str(path))}: a link to {readable(os.readlink(path))}, which cannot be "
            "followed; restore what it leads to, or remove the link if it is no class"
        )


def is_image(name: str) -> bool:
    return name.lower().endswith((*SUFFIXES, *OTHER_SUFFIXES))
