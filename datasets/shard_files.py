"""Which files of a folder are shards, and that each split has all of its own."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from datasets import storage
from datasets.errors import SourceError

PART = r"(?P<part>\d{5,}-of-\d{5,})"  # six digits from 100,000 shards on
PARQUET = re.compile(rf"(?P<split>[a-z0-9_]+)-{PART}(-[0-9a-f]+)?\.parquet", re.I)
EXAMPLE = "train-00000-of-00001.parquet"
TFRECORD = re.compile(rf".+?-(?P<split>[a-z0-9_]+)\.tfrecord-{PART}", re.I)


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Split -> its shards in order, in the folder or in the `data` folder in it; {} if none.

    Raises: SourceError if one of them is missing or there twice.
    """
    for folder in (root, root / "data"):
        for pattern in (PARQUET, TFRECORD):
            found: dict[str, dict[Path, str]] = {}
            paths = folder.iterdir() if storage.kind(folder) == "directory" else ()
            for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
                match = pattern.fullmatch(path.name)
                if match and storage.kind(path) == "file":
                    found.setdefault(match["split"].lower(), {})[path] = match["part"]
            for split, parts in found.items():
                check_whole(folder, split, list(parts.values()))
            if found:
                return {split: list(parts) for split, parts in found.items()}
    return {}


def check_whole(folder: Path, split: str, parts: list[str]) -> None:
    """Raises: SourceError unless the parts are `00000-of-00008` to `00007-of-00008`, each once."""
    n = max(int(part.rpartition("-")[2]) for part in parts)
    found, whole = Counter(parts), Counter(f"{i:05d}-of-{n:05d}" for i in range(n))
    if missing := whole - found:
        raise SourceError(
            f"{folder}: {split} has {len(parts)} shards, expected {n}: {min(missing)} is missing; "
            "fetch or write it again"
        )
    if spare := found - whole:
        raise SourceError(
            f"{folder}: {split} has more than its {n} shards: {min(spare)} is one too many; leave "
            "one set of shards in the folder"
        )
