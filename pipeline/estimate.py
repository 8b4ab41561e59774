"""What a plan will cost, from a few samples of it that are written to nowhere."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import numpy as np

from pipeline.plan import Plan
from pipeline.report import counted, duration, size
from pipeline.task import Task, usable_shapes

# Samples that are written for an estimate, two copies of each; more while they decode to 1 MB.
FEW, MAX_MEASURED, MEASURED_BYTES = 8, 512, 2**20


def estimate_cost(plan: Plan) -> tuple[float, float]:
    """(bytes, seconds on one core) that the whole output takes, from a measured sample of it.

    A few samples of the largest block are written to nowhere, with two copies: 8, or more
    where images are so small that what a file costs beside its rows would tell.
    """
    from pipeline.shard import fill_shard

    task = plan.tasks()[0]
    n = max(FEW, min(MAX_MEASURED, MEASURED_BYTES // largest_bytes(plan)))
    # First in a child, since an input may kill what decodes it; this also pays for the imports.
    some = excerpt(task, np.arange(min(n, len(task.samples))))
    bad = {sample_id for sample_id, _ in fill_shard(some, io.BytesIO(), True).quarantined}
    good = np.array([i for i, name in enumerate(some.samples.ids) if name not in bad], np.int64)
    started = time.perf_counter()
    record = fill_shard(excerpt(some, good), io.BytesIO(), in_child=False)
    seconds = time.perf_counter() - started
    share = plan.n_images / max(1, record.rows)
    return record.bytes * share, seconds * share


def largest_bytes(plan: Plan) -> int:
    """Of the largest image, decoded; or of all, where they will have one size."""
    sizes = np.array([plan.job.shape]) if plan.job.shape else usable_shapes(plan.scans)
    return max(1, int(sizes.prod(axis=1, dtype=np.int64).max()))


def excerpt(task: Task, positions: np.ndarray) -> Task:
    """The task of the samples at these positions, and of the first two copies."""
    split = task.job.splits[task.split]
    fewer = {**task.job.splits, task.split: {**split, "copies": min(2, split["copies"])}}
    return replace(task.take(positions), job=replace(task.job, splits=fewer))


def describe_plan(plan: Plan, n_workers: int) -> str:
    """What would be written, in a few lines.

    n_workers: Processes of this machine; 0 for this one alone.
    """
    n_bytes, seconds = estimate_cost(plan)
    seconds /= max(1, n_workers)
    workers = f"{n_workers} workers" if n_workers > 1 else "one worker"
    n_shards = sum(split["blocks"] for split in plan.job.splits.values())
    lines = [
        f"would write {plan.folder}: {counted(plan.n_images, 'image')} in "
        f"{counted(n_shards, 'shard')}, about {size(n_bytes)}, "
        f"about {duration(seconds)} on {workers} (measured on a few samples)",
        f"policy  {plan.job.policy}",
        f"image   {'x'.join(map(str, plan.job.shape)) if plan.job.shape else 'sizes differ'}, "
        f"{plan.job.format}, {plan.job.encoding}",
    ]
    for split, blocks in plan.job.splits.items():
        n, copies = len(plan.samples[split]), len(plan.job.copies(split))
        lines.append(
            f"{split:7} {counted(n, 'sample')} x {counted(copies, 'copy', 'copies')} in "
            f"{counted(blocks['blocks'], 'shard')}"
        )
    return "\n".join(lines)
