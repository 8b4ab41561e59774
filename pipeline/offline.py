"""`pipeline augment --offline`: from a plan to a committed folder of shards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import tfrecord
from datasets.blocks import MIN_BLOCKS, SMALL
from datasets.commit import (
    RECORDS,
    RUN,
    commit,
    hold,
    is_empty,
    is_sealed,
    partial_folder,
    partial_folders,
    read_records,
    refuse_if_held,
    refuse_to_replace,
    replaced_folder,
    seal,
    write_atomically,
)
from datasets.errors import EnvironmentFailed, OutputError
from datasets.manifest import Manifest, Record, read_manifest
from datasets.schema import canonical_json
from pipeline.job import Job, differences, probe, versions
from pipeline.plan import (
    AugmentConfig,
    Plan,
    describe_plan,
    estimate_bytes,
    largest_bytes,
    make_plan,
    output_folder,
    refuse_too_many_bad,
)
from pipeline.report import Report, size
from pipeline.task import Tasks
from pipeline.workers import run, start

if TYPE_CHECKING:
    from distributed import Client

DISK_MARGIN = 1.05


@dataclass(frozen=True)
class Summary:
    """What a run did, for people: rows and bytes of the output, and what could not be used."""

    out: Path
    rows: int
    n_bytes: int
    n_shards: int
    n_reused: int
    n_written: int
    splits: dict[str, int]
    quarantined: list[tuple[str, str]]
    seconds: dict[str, float]
    was_done: bool = False


def find_finished(plan: Plan, overwrite: bool) -> Manifest | None:
    """The manifest if `out` holds this very job's output; None where it may be written.

    Raises: OutputError if something else is there that this run must not replace.
    """
    out = plan.out
    if is_empty(out):
        return None
    refuse_to_replace(out, overwrite=True)
    if overwrite:
        return None
    manifest = read_manifest(out)
    if manifest.job_sha256 == plan.job_sha256:
        return manifest
    changed = differences(manifest.job, json.loads(canonical_json(asdict(plan.job))))
    raise OutputError(
        f"{out}: holds the output of another job ({changed}); choose another --out, or replace it "
        "with --overwrite"
    )


def dry_run(config: AugmentConfig, report: Report) -> str:
    """What `materialize` would do, in a few lines; nothing is written.

    Raises: what `materialize` would raise before any work.
    """
    plan = make_plan(config, report)
    try:
        if find_finished(plan, config.overwrite) is not None:
            return f"{plan.out}: this job was done before; nothing to do"
    except OutputError as err:
        return f"{describe_plan(plan, config.workers)}\nbut not there: {err}"
    return describe_plan(plan, config.workers)


def prepare_partial(out: Path, job: Job) -> None:
    """The folder this run works in, new or as an earlier run of the same job left it.

    Raises: EnvironmentFailed if it cannot be made; OutputError if the earlier run used other
      library versions, whose bytes would differ.
    """
    partial = partial_folder(out, job.sha256())
    run_file = {"job": asdict(job), "probe": probe(), "versions": versions()}
    text = canonical_json(run_file)
    try:
        (partial / RECORDS).mkdir(parents=True, exist_ok=True)
        if not (partial / RUN).exists():
            write_atomically(partial / RUN, text.encode())
    except OSError as err:
        raise EnvironmentFailed(
            f"{partial.parent}: cannot be written ({err.strerror}); choose another --out"
        ) from err
    before = (partial / RUN).read_text()
    if before != text:
        changed = differences(json.loads(before), run_file)
        raise OutputError(
            f"{partial}: an unfinished run was made with other libraries ({changed}), so its bytes "
            f"would differ; use those again, or `pipeline clean {out}` and start anew"
        )


def check_disk(plan: Plan, done: dict[str, Record]) -> None:
    """Raises: EnvironmentFailed if the rest of the output will not fit on the disk."""
    rows_done = sum(record.rows for record in done.values())
    left = 1 - rows_done / max(1, plan.n_images)
    free = shutil.disk_usage(plan.out.parent).free
    if plan.n_images * left * largest_bytes(plan) * 2 < free:
        return  # it fits however it is encoded, so that nothing need be measured
    needed = estimate_bytes(plan)[0] * left * DISK_MARGIN
    if needed > free:
        raise EnvironmentFailed(
            f"{plan.out.parent}: about {size(needed)} are needed and {size(free)} are free; free "
            "some space, or write fewer --copies or a smaller --image-size"
        )


def materialize(config: AugmentConfig, report: Report) -> Summary:
    """Writes the job's shards and commits them, or finds that this was done before.

    Raises: UserError of each kind; whatever happens, `out` is absent, as it was, or whole.
    """
    out = output_folder(config)
    refuse_if_held(out)
    with ExitStack() as stack:
        clients: list[Callable[[], Client]] = []

        def begin(n_samples: int) -> None:
            # Workers start while the source is read; not for one shard, or where all may be done.
            is_new = is_empty(out) or config.overwrite
            if is_new and n_samples >= SMALL and (config.workers or config.scheduler):
                n_workers = min(config.workers, MIN_BLOCKS)
                clients.append(start(n_workers, config.scheduler, stack))

        started = time.monotonic()
        plan = make_plan(config, report, begin)
        return write(config, plan, report, clients[0] if clients else None, started)


def write(
    config: AugmentConfig,
    plan: Plan,
    report: Report,
    client: Callable[[], Client] | None,
    started: float,
) -> Summary:
    """The part of `materialize` that comes after the plan."""
    if plan.ignored:
        shown = ", ".join(plan.ignored[:3]) + (" and more" if len(plan.ignored) > 3 else "")
        report.say(
            f"{len(plan.ignored)} passed over: {shown}",
            event="ignored",
            files=list(plan.ignored),
        )
    with hold(plan.out):
        partial = plan.partial
        finished = find_finished(plan, config.overwrite)
        if finished is not None:
            if replaced_folder(partial).exists():  # a crash just before the end
                shutil.rmtree(replaced_folder(partial))
            return summarize(plan, finished.shards, (), {}, was_done=True)
        for other in partial_folders(plan.out):
            if other not in (partial, replaced_folder(partial)):
                report.say(
                    f"{other}: left by an unfinished run of another job; "
                    f"`pipeline clean {plan.out}` removes it",
                    event="stale",
                )
        if is_sealed(partial):
            commit(partial, plan.out, config.overwrite)
            return summarize(plan, read_manifest(plan.out).shards, (), {}, was_done=False)
        done = read_records(partial)
        check_disk(plan, done)
        prepare_partial(plan.out, plan.job)
        tasks = plan.tasks(without=done)
        planned = time.monotonic()
        if done:
            report.say(
                f"resuming: {len(done)} of {len(done) + len(tasks)} shards are done",
                event="resume",
                shards_done=len(done),
            )
        records, first = run_tasks(config, tasks, client, partial, report)
        worked = time.monotonic()
        shards = sorted([*done.values(), *records], key=lambda r: r.name)
        refuse_too_many_bad(
            [item for record in shards for item in record.quarantined],
            sum(len(part) for part in plan.samples.values()),
            config.max_bad,
            "nothing was committed; mend or remove them, or run again with a higher --max-bad "
            "(finished shards are kept)",
        )
        finish(plan.out, plan.job, plan.classes, shards, config.overwrite)
        seconds = {
            "plan": planned - started,
            "start_up": first - planned,
            "work": worked - first,
            "commit": time.monotonic() - worked,
        }
        summary = summarize(plan, shards, done, seconds, was_done=False)
        append_history(plan, summary, report)
        return summary


def run_tasks(
    config: AugmentConfig,
    tasks: Tasks,
    client: Callable[[], Client] | None,
    partial: Path,
    report: Report,
) -> tuple[list[Record], float]:
    """The records of all tasks, and when the first one was started (monotonic seconds)."""
    from pipeline.shard import write_shard

    records: list[Record] = []
    started: list[float] = []
    with report.progress(sum(tasks.sizes.values()), "augmenting") as progress:
        for record in run(
            write_shard,
            tasks,
            config.workers,
            config.scheduler,
            client,
            shared=partial / RUN,
            say=report.say,
            on_ready=lambda: started.append(time.monotonic()),
        ):
            records.append(record)
            progress.advance(tasks.sizes[record.name])
    return records, started[0] if started else time.monotonic()


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


def summarize(
    plan: Plan,
    shards: Sequence[Record],
    reused: Collection[str],
    seconds: dict[str, float],
    was_done: bool,
) -> Summary:
    return Summary(
        out=plan.out,
        rows=sum(r.rows for r in shards),
        n_bytes=sum(r.bytes for r in shards),
        n_shards=len(shards),
        n_reused=len(reused),
        n_written=sum(r.rows for r in shards if r.name not in reused),
        splits={s: sum(r.rows for r in shards if r.split == s) for s in sorted(plan.job.splits)},
        quarantined=sorted(item for r in shards for item in r.quarantined),
        seconds=seconds,
        was_done=was_done,
    )


def append_history(plan: Plan, summary: Summary, report: Report) -> None:
    """One line in OUT.runs.jsonl, beside the output: what a run took, which is not its result."""
    entry: dict[str, Any] = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": os.uname().nodename,
        "command": sys.argv,
        "job_sha256": plan.job_sha256,
        "rows": summary.rows,
        "bytes": summary.n_bytes,
        "shards": summary.n_shards,
        "reused_shards": summary.n_reused,
        "quarantined": len(summary.quarantined),
        "ignored": list(plan.ignored),
        "seconds": {k: round(v, 3) for k, v in summary.seconds.items()},
    }
    path = plan.out.with_name(f"{plan.out.name}.runs.jsonl")
    try:
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as err:  # the output is committed, which is what counts
        report.say(f"{path}: cannot be written ({err.strerror})", event="warning")
