"""What a run may take over from an earlier output: decided from its manifest and its index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from datasets.blocks import block_of
from datasets.errors import EnvironmentFailed, UserError
from datasets.fingerprint import Scan
from datasets.formats import FORMATS
from datasets.index import Entry, read_index
from datasets.manifest import Manifest, Record, read_manifest, sha256_file
from datasets.schema import canonical_json
from datasets.source import Samples, sample_keys
from pipeline.job import Job, probe, versions

MAX_SHARDS = 64  # that one takes over from, since all are open at a time
MAY_DIFFER = ("source", "splits", "block_samples")  # no row depends on them


@dataclass(frozen=True)
class Base:
    """An earlier output, and its samples as they were: id -> entry, {} where that is not known."""

    folder: Path
    manifest: Manifest
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class Carried:
    """What one shard takes over.

    folder, shards: The earlier output, and the records of those of its shards that are needed.
    origins: (n,) int64, for each sample of the task: which of these has its rows; -1 where it is
      new or changed.
    is_whole: The one shard holds these very samples and labels, and no others.
    """

    folder: Path
    shards: list[Record]
    origins: np.ndarray
    is_whole: bool


def read_base(folder: Path) -> Base | None:
    """The output that stands there, and its index, if it has one; None where there is no whole
    output. Raises: EnvironmentFailed if the storage fails, which may have one."""
    try:
        manifest = read_manifest(folder)
    except EnvironmentFailed:
        raise
    except UserError:
        return None
    return Base(folder, manifest, read_index(folder, manifest.job_sha256))


def is_successor(job: Job, manifest: Manifest) -> bool:
    """Whether a sample that is in both, and unchanged, has the same rows in both: all of the job is
    equal but the source."""
    old, new = manifest.job, json.loads(canonical_json(asdict(job)))
    if any(old.get(name) != new[name] for name in new if name not in MAY_DIFFER):
        return False
    both = set(old["splits"]) & set(new["splits"])
    if any(old["splits"][split]["copies"] != new["splits"][split]["copies"] for split in both):
        return False
    return (manifest.probe, manifest.versions) == (probe(), versions())


def has_sidecars(folder: Path, manifest: Manifest) -> bool:
    """Whether the files beside the shards, which say how these are read, are as they were."""
    try:
        return all(
            sha256_file(folder / name)[1] == file["sha256"] for name, file in manifest.files.items()
        )
    except OSError:
        return False


def plan_carried(
    base: Base,
    classes: tuple[str, ...],
    split: str,
    samples: Samples,
    scan: Scan,
    blocks: Sequence[np.ndarray],
) -> Iterator[Carried | None]:
    """What the shard of each block takes over, None for nothing.

    blocks: For each, the positions of its samples in `samples`.
    """
    job = base.manifest.job
    old = [name for name, entry in base.entries.items() if entry.split == split]
    if not old:
        yield from (None for _ in blocks)
        return
    n_old = job["splits"][split]["blocks"]
    records = {record.name: record for record in base.manifest.shards}
    named = FORMATS[job["format"]].shard_name
    where = block_of(samples.keys, job["seed"], n_old).astype(np.int64)
    sizes = np.bincount(
        block_of(sample_keys(old), job["seed"], n_old).astype(np.int64), minlength=n_old
    )
    same, alike = compare(base.entries, split, samples, scan)
    alike &= same & (list(classes) == base.manifest.classes)
    unusable = np.zeros(len(samples), bool)
    unusable[list(scan.errors)] = True
    for positions in blocks:
        old_blocks, index = np.unique(where[positions], return_inverse=True)
        whole = (
            len(old_blocks) == 1
            and bool(alike[positions].all())
            and len(positions) == sizes[old_blocks[0]]
        )
        origins = np.where(same[positions] & ~unusable[positions], index, -1)
        if not whole and ((origins < 0).all() or len(old_blocks) > MAX_SHARDS):
            yield None
            continue
        shards = [records[named(job["dataset"], split, b, n_old)] for b in old_blocks.tolist()]
        yield Carried(base.folder, shards, origins, whole)


def compare(
    entries: Mapping[str, Entry], split: str, samples: Samples, scan: Scan
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool: whether each sample was there with this content, and whether with this label."""
    n = len(samples)
    same, alike = np.zeros((2, n), bool)
    labels, shapes = samples.labels.tolist(), scan.shapes.tolist()
    for i, name in enumerate(samples.ids):
        was = entries.get(name)
        if was is not None:
            now = (split, scan.digests[i], samples.box(i), shapes[i], scan.errors.get(i))
            same[i] = now == (was.split, was.digest, was.box, was.shape, was.error)
            alike[i] = labels[i] == was.label
    return same, alike
