"""What a run may take over from an earlier output, or from a run that came to no end: decided from
its manifest, or its records, and its index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from datasets.blocks import block_of
from datasets.commit import RUN, read_records
from datasets.errors import Damaged, OutputError
from datasets.fingerprint import Scan
from datasets.formats import FORMATS
from datasets.index import Entry, read_index
from datasets.manifest import (
    UNFINISHED,
    Manifest,
    Record,
    decode_manifest,
    encode_manifest,
    read_manifest,
    sha256_file,
)
from datasets.schema import canonical_json
from datasets.source import Samples, read_file, sample_keys
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
    except (OutputError, Damaged):
        return None
    return Base(folder, manifest, read_index(folder, manifest.job_sha256))


def read_unfinished(folders: Sequence[Path]) -> Base | None:
    """The run with the most finished rows of those that came to no end: what they have made is as
    good as that of an earlier output. None where there is none."""
    found = [base for base in map(read_partial, folders) if base is not None]
    return max(found, key=lambda base: sum(r.rows for r in base.manifest.shards), default=None)


def read_partial(folder: Path) -> Base | None:
    """The shards that an unfinished run has made, and the index that it wrote after the first of
    them; None without these, and for TFRecord, whose schema comes at the end."""
    match = UNFINISHED.fullmatch(folder.name)
    try:
        shards = list(read_records(folder).values())
        run = json.loads(read_file(folder / RUN))
        job_sha256 = Job(**run["job"]).sha256()
        schema = FORMATS[run["job"]["format"]].read_schema(folder / shards[0].name)
        found = Manifest(
            job=run["job"],
            job_sha256=job_sha256,
            classes=list(schema.classes),
            probe=run["probe"],
            versions=run["versions"],
            shards=shards,
            files={},
        )
        manifest = decode_manifest(encode_manifest(found), folder / RUN)  # refuses what cannot be
    except (OSError, ValueError, LookupError, TypeError, Damaged):
        return None
    entries = read_index(folder.with_name(match["out"]), job_sha256) if match else {}
    return Base(folder, manifest, entries) if entries else None


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


def is_of_changed_source(job: Job, manifest: Manifest) -> bool:
    """Whether the next job is the one of the manifest, but for what its source holds. The number of
    blocks may follow from that; another block size was asked for."""
    old = manifest.job
    is_alike = set(old["splits"]) == set(job.splits) and old["block_samples"] == job.block_samples
    return is_alike and old["source"] != job.source and is_successor(job, manifest)


def source_changes(
    base: Base,
    classes: tuple[str, ...],
    samples: Mapping[str, Samples],
    scans: Mapping[str, Scan],
) -> tuple[int, int, int]:
    """How many samples are new, are others than they were, and are gone; the base has its index."""
    n_known = n_equal = 0
    is_numbered_alike = list(classes) == base.manifest.classes
    for split, part in samples.items():
        same, alike = compare(base.entries, split, part, scans[split])
        n_known += sum(name in base.entries for name in part.ids)
        n_equal += int((same & alike if is_numbered_alike else same).sum())
    n_new = sum(map(len, samples.values())) - n_known
    return n_new, n_known - n_equal, len(base.entries) - n_known


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
    # An unfinished run has not made all shards.
    old_names = {b: named(job["dataset"], split, b, n_old) for b in np.unique(where).tolist()}
    made = np.array([b for b, name in old_names.items() if name in records], np.int64)
    same &= np.isin(where, made)
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
        is_made = np.isin(old_blocks, made)
        shards = [records[old_names[b]] for b in old_blocks[is_made].tolist()]
        origins = np.where(origins < 0, -1, (np.cumsum(is_made) - 1)[origins])
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
