"""The output of a run, but for its shards: the folder it works in, the commit, the version that
readers get, the index for the run that comes next."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from datasets import storage, tfrecord
from datasets.commit import (
    RECORDS,
    RUN,
    commit,
    is_sealed,
    partial_folder,
    seal,
    unfinished_runs,
)
from datasets.errors import Damaged, EnvironmentFailed, OutputError, first_line
from datasets.index import index_path, indexes, write_index
from datasets.manifest import Manifest, Record, read_manifest
from datasets.schema import canonical_json
from datasets.storage import write_atomically
from datasets.versions import prune, publish
from pipeline.base import Base
from pipeline.estimate import estimate_cost, largest_bytes
from pipeline.job import Job, differences, probe, versions
from pipeline.plan import Plan
from pipeline.report import Report, size
from pipeline.task import Tasks

DISK_MARGIN = 1.05


def prepare_partial(out: Path, job: Job, place: Path) -> None:
    """The folder this run works in, new or as an earlier run of the same job left it.

    place: Below which `pipeline clean` finds it.
    Raises: EnvironmentFailed if it cannot be made; OutputError if the earlier run used other
      library versions, whose bytes would differ.
    """
    partial = partial_folder(out, job.sha256())
    run_file = {"job": asdict(job), "probe": probe(), "versions": versions()}
    text = canonical_json(run_file)
    try:
        if not storage.is_object(partial):  # where folders are what their objects make them
            (partial / RECORDS).mkdir(parents=True, exist_ok=True)
        if storage.kind(partial / RUN) != "file":
            write_atomically(partial / RUN, text.encode())
    except OSError as err:
        raise EnvironmentFailed(
            f"{partial.parent}: cannot be written ({err.strerror}); choose another --out"
        ) from err
    with storage.open_file(partial / RUN) as file:
        before = file.read().decode()
    if before != text:
        changed = differences(json.loads(before), run_file)
        raise OutputError(
            f"{partial}: an unfinished run was made with other libraries ({changed}), so its bytes "
            f"would differ; use those again, or `pipeline clean {place}` and start over"
        )


def refuse_other_bytes(plan: Plan) -> None:
    """Raises: OutputError if the libraries of today may write other bytes into a version that stays
    in its place, and is read, while it is made again."""
    try:
        made = read_manifest(plan.folder)
    except Damaged:
        return  # which is to be fixed
    before = {"probe": made.probe, "versions": made.versions}
    now = {"probe": probe(), "versions": versions()}
    if before != now:
        raise OutputError(
            f"{plan.folder}: was made with other libraries ({differences(before, now)}), and is "
            "read while it is made again; use those, or choose another --out"
        )


def check_disk(plan: Plan, tasks: Tasks, base: Base | None) -> None:
    """Raises: EnvironmentFailed if what these tasks write will not fit on the disk."""
    if storage.is_object(plan.out):
        return
    n_images = tasks.n_images_to_write
    free = shutil.disk_usage(plan.folder.parent).free
    if n_images * largest_bytes(plan) * 2 < free:
        return  # it fits however it is encoded, so that nothing need be measured
    if base is None:
        an_image = estimate_cost(plan)[0] / max(1, plan.n_images)
    else:  # whose rows these are, but for a few
        shards = base.manifest.shards
        an_image = sum(r.bytes for r in shards) / max(1, sum(r.rows for r in shards))
    needed = n_images * an_image * DISK_MARGIN
    if needed > free:
        raise EnvironmentFailed(
            f"{plan.out.parent}: about {size(needed)} are needed and {size(free)} are free; free "
            "some space, or write fewer --copies or a smaller --image-size"
        )


def finish(
    out: Path, job: Job, classes: tuple[str, ...], shards: list[Record], overwrite: bool
) -> None:
    """Writes manifest and sidecars, and commits."""
    sidecars: dict[str, bytes] = {}
    if job.format == "tfrecord":
        sidecars = tfrecord.sidecars(
            job.schema(classes),
            job.dataset,
            {s: [r.rows for r in shards if r.split == s] for s in sorted(job.splits)},
        )
    manifest = Manifest(
        job=asdict(job),
        job_sha256=job.sha256(),
        classes=list(classes),
        probe=probe(),
        versions=versions(),
        shards=shards,
        files={
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sidecars.items()
        },
    )
    partial = partial_folder(out, job.sha256())
    try:
        seal(partial, manifest, sidecars)
        commit(partial, out, overwrite)
    except OSError as err:
        raise EnvironmentFailed(
            f"{out}: cannot be committed ({err.strerror}); run the same command again, "
            "finished shards are kept"
        ) from err


def release(plan: Plan, before: int, keep: int | None, report: Report) -> None:
    """Makes a published version the one that readers get, and removes what is older than the last
    `keep` ones, unfinished runs of other jobs too; and the indexes of all outputs but this one."""
    if plan.is_published:
        publish(plan.out, plan.version, before)
    own = index_path(plan.folder, plan.job_sha256)
    for name, path in indexes(plan.folder.parent):
        if path != own and (plan.is_published or name == plan.folder.name):
            storage.remove(path)
    if not (keep and plan.is_published):
        return
    for version, is_gone in prune(plan.out, keep):
        told = "removed, an old version" if is_gone else "old, but kept while somebody may read it"
        report.say(f"{plan.out / version}: {told}", event="version", removed=is_gone)
    for path in unfinished_runs(plan.out, is_published=True):
        if not is_sealed(path):  # else it was ready, and is a version but for its name
            storage.remove(path)
            report.say(f"{path}: removed, left by an unfinished run of another job", event="stale")


def is_indexed(plan: Plan) -> bool:
    """Whether the index of the output in its place says of every sample what the plan does."""
    is_own = plan.base is not None and plan.base.folder == plan.folder
    known = plan.base.entries if plan.base and is_own else {}
    return all(
        name in known and known[name].stamp == stamp
        for split, part in plan.samples.items()
        for name, stamp in zip(part.ids, plan.scans[split].stamps, strict=True)
    )


def save_index(plan: Plan, report: Report) -> None:
    """Writes the index of the plan's output. It comes before the output: an output without one
    would be made again next time, an index without its output is passed over."""
    try:
        write_index(plan.folder, plan.job_sha256, plan.samples, plan.scans)
    except (OSError, EnvironmentFailed) as err:  # the output matters more
        path = index_path(plan.folder, plan.job_sha256)
        report.say(f"{path}: cannot be written ({first_line(err)})", event="warning")
