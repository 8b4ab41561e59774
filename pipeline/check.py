"""`pipeline verify`: is an output what its manifest says, and what its source gives?"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from datasets import images, storage
from datasets.catalog import CATALOG, open_source
from datasets.errors import Damaged, ImageError, UserError, first_line
from datasets.fingerprint import fingerprint, scan
from datasets.formats import FORMATS
from datasets.images import MAX_PIXELS
from datasets.manifest import Manifest, damages, read_manifest, repair_advice
from datasets.schema import Rows, Schema
from datasets.source import listing_of, sample_keys
from datasets.versions import output_of, reading
from pipeline.history import LINES, read_lines
from pipeline.job import Job, parsed_policy, probe, version_of
from pipeline.plan import choose_samples
from pipeline.report import Report, counted
from pipeline.rng import MAX_COPY

RECOMPUTED = 64  # rows of an output that --deep makes again from the source


def job_of(folder: Path, manifest: Manifest) -> Job:
    """The job as it was, from its canonical form.

    Raises: Damaged if it is none that `pipeline augment` could have run.
    """
    from pydantic import TypeAdapter

    try:
        job: Job = TypeAdapter(Job).validate_python(manifest.job)
        if not re.fullmatch(r"[a-z0-9_]+", job.dataset):  # a path would be read by --deep
            raise ValueError(f"{job.dataset!r} is not the name of a data set")
        if job.format not in FORMATS:
            raise ValueError(f"{job.format!r} is not a format")
        for split in {*job.splits, *(record.split for record in manifest.shards)}:
            if not 0 <= job.splits[split]["copies"] <= MAX_COPY:
                raise ValueError(f"{split} has {job.splits[split]['copies']} copies")
        if not 0 <= job.seed < 2**64:
            raise ValueError(f"the seed is {job.seed}")
        if job.network is not None and not isinstance(job.network["n_total"], int):
            raise ValueError(f"a network saw {job.network['n_total']!r} samples")
        shapes: list[Any] = [job.shape, job.network and job.network["shape"]]
        for shape in filter(None, shapes):
            is_shape = all(isinstance(n, int) and n > 0 for n in shape)
            if not is_shape or math.prod(shape) > MAX_PIXELS * 3:
                raise ValueError(f"images have the shape {shape}")
    except (ValueError, KeyError, TypeError) as err:
        raise Damaged(
            f"{folder}: the manifest is damaged ({first_line(err)}); {repair_advice(folder)}"
        ) from err
    return job


def check(folder: Path, deep: bool, dataset: str | None, data_dir: Path, report: Report) -> str:
    """One line for a clean output.

    folder: An output, or where versions of it are published: then the latest of them.
    dataset: Its source, which must then be compared; else that is done where it is found.
    Raises: Damaged that names every damaged file; UserError if the dataset cannot be compared.
    """
    if dataset is not None and not deep:
        raise UserError(f"--dataset {dataset}: is what --deep compares with; give --deep too")
    with reading(folder) as found:
        return check_version(found, deep, dataset, data_dir, report)


def check_version(
    folder: Path, deep: bool, dataset: str | None, data_dir: Path, report: Report
) -> str:
    """`check` of one output: a line for a clean one.

    Raises: Damaged that names its first 20 damaged files; with `deep` also as `check_deep` does.
    """
    manifest = read_manifest(folder)
    found = list(damages(folder, manifest))
    if found:
        listed = "; ".join(f"{name}: {what}" for name, what in found[:20])
        more = f"; and {len(found) - 20} more" if len(found) > 20 else ""
        raise Damaged(
            f"{folder}: {counted(len(found), 'damaged file')}: {listed}{more}; "
            f"{repair_advice(folder)}"
        )
    rows = sum(record.rows for record in manifest.shards)
    held = f"{counted(rows, 'image')} in {counted(len(manifest.shards), 'shard')}"
    line = f"{folder}: {held}, every hash fits"
    return f"{line}; {check_deep(folder, manifest, dataset, data_dir, report)}" if deep else line


def check_deep(
    folder: Path, manifest: Manifest, dataset: str | None, data_dir: Path, report: Report
) -> str:
    """Decodes every row, and makes some of them again from the source."""
    job = job_of(folder, manifest)
    schema = job.schema(tuple(manifest.classes))
    wanted = chosen_rows(folder, manifest)
    kept: dict[tuple[str, int], Rows] = {}
    for record in manifest.shards:
        n = 0
        for rows in FORMATS[job.format].read(folder / record.name):
            n += len(rows)
            check_images(record.name, rows, schema)
            for i, sample_id in enumerate(rows.ids):
                if (sample_id, rows.copy) in wanted:
                    kept[sample_id, rows.copy] = rows.row(i)
        if n != record.rows:
            raise Damaged(f"{folder / record.name}: {n} rows, the manifest says {record.rows}")
    line = "every row decodes"
    try:
        if probe() != manifest.probe:
            raise UserError("its machine computed other pixels than this one does")
        n_same = recompute(
            kept, job, schema, dataset or source_of(folder, manifest), data_dir, report
        )
    except UserError as err:
        if isinstance(err, Damaged):
            raise
        if dataset is not None:  # who names it wants that, or to hear that it was not done
            raise type(err)(
                f"{folder}: no file is damaged and {line}, but --dataset cannot be compared: "
                f"{err}; give what it was made from, or leave out --dataset to check without it"
            ) from err
        return f"{line}; NOT compared with the source: {err}"
    return f"{line}; {counted(n_same, 'row')} made again from the source, all equal"


def source_of(folder: Path, manifest: Manifest) -> str:
    """Where the log beside an output says that its source lies, else a known data set.

    Raises: UserError if nothing does.
    """
    out = output_of(folder)
    records = [] if storage.is_object(out) else read_lines(out.with_name(f"{out.name}{LINES}"))
    its = [one for one in records if one.get("job_sha256") == manifest.job_sha256]
    places = [str(one["dataset"]) for one in reversed(its) if "dataset" in one]
    name = str(manifest.job["dataset"])
    if not places and name in CATALOG:
        return name
    for place in places:
        if place in CATALOG or os.path.exists(place):
            return place
    raise UserError(f"{name} is not where it was, or nothing says where; give it as --dataset")


def chosen_rows(folder: Path, manifest: Manifest) -> set[tuple[str, int]]:
    """(sample id, copy) of the rows to make again, the same ones every time: at equal steps over
    all shards, so that of many shards each is met elsewhere, and all copies are."""
    reader = FORMATS[manifest.job["format"]]
    ends = np.cumsum([record.rows for record in manifest.shards])
    n_rows = sum(record.rows for record in manifest.shards)
    rows = np.unique(np.linspace(0, n_rows - 1, min(RECOMPUTED, n_rows), dtype=np.int64))
    shards = np.searchsorted(ends, rows, side="right")
    chosen: set[tuple[str, int]] = set()
    for shard in np.unique(shards).tolist():
        record = manifest.shards[shard]
        table = reader.read_columns(folder / record.name, ["sample_id", "copy"])
        for i in (rows[shards == shard] - (ends[shard] - record.rows)).tolist():
            chosen.add((table["sample_id"][i].as_py(), table["copy"][i].as_py()))
    return chosen


def check_images(name: str, rows: Rows, schema: Schema) -> None:
    """Decodes the images of some rows of the shard of that name.

    Raises: Damaged for the first that does not decode, or to another height or width than all have.
    """
    if schema.encoding in ("raw", "float32"):
        return  # its length was checked when the row was read
    for sample_id, data in zip(rows.ids, rows.images, strict=True):
        try:
            image = images.decode(data)
        except ImageError as err:
            raise Damaged(f"{name}: {sample_id} copy {rows.copy} does not decode: {err}") from err
        if schema.shape and image.shape[:2] != schema.shape[:2]:
            raise Damaged(f"{name}: {sample_id} copy {rows.copy} has the shape {image.shape}")


def recompute(
    kept: dict[tuple[str, int], Rows],
    job: Job,
    schema: Schema,
    dataset: str,
    data_dir: Path,
    report: Report,
) -> int:
    """How many of the kept rows, each by itself, are the same when made again from the source.

    Raises: Damaged for one that differs; UserError if the source is gone or has changed.
    """
    from pipeline.library_ops import LibraryStage
    from pipeline.opencv_kernel import augment_batch, prepare
    from pipeline.shard import decode_sample, encode

    if job.network:
        raise UserError("its rows are features, which the network alone could make again")
    policy = parsed_policy(job.policy)
    if any(op.is_group for op in policy.library) and job.version != version_of(job.policy):
        raise UserError("an earlier version wrote it, which drew groups of library ops otherwise")
    source = open_source(dataset, data_dir)
    listing = listing_of(dataset, source, report)
    if not set(job.splits) <= set(listing.splits):
        raise UserError(f"{dataset}: it has other splits than when the output was written")
    samples = choose_samples(listing, job.splits, job.limit)
    scans = {split: scan(source, part) for split, part in samples.items()}
    if fingerprint(listing.classes, samples, scans) != job.source:
        raise UserError(f"{dataset}: it is not what it was when the output was written")
    where = {name: (part, i) for part in samples.values() for i, name in enumerate(part.ids)}
    library = LibraryStage(policy.library) if policy.library else None
    for (sample_id, copy), rows in kept.items():
        part, i = where[sample_id]
        data = next(source.read([part.refs[i]]))
        image = decode_sample(source, part, i, data, job.image_size)[None]
        keys = sample_keys([sample_id])
        ready = prepare(image, policy.fill)
        out, params, done = augment_batch(policy, image, ready, keys, copy, job.seed, library)
        same = (
            np.array_equal(encode(out, schema, job)[0], rows.images[0])
            and all(params[name][0] == rows.params[name][0] for name in schema.params)
            and part.labels[i] == rows.labels[0]
            and done == rows.library
        )
        if not same:
            raise Damaged(f"{sample_id} copy {copy}: differs from what the source gives")
    return len(kept)
