"""`pipeline augment --offline`: from a plan to a committed folder of shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from datasets import storage
from datasets.blocks import MIN_BLOCKS, SMALL
from datasets.commit import (
    RECORDS,
    RUN,
    commit,
    hold,
    is_empty,
    is_sealed,
    moved_aside,
    read_records,
    refuse_if_held,
    restore,
    tidy,
    unfinished_runs,
)
from datasets.errors import OutputError
from datasets.manifest import VERSION, Record, read_manifest
from datasets.versions import last_pointer, latest, refuse_without_links
from pipeline.bad_inputs import ADVICE, refuse_too_many_bad, unreadable
from pipeline.base import Base
from pipeline.estimate import describe_plan
from pipeline.output import (
    check_disk,
    finish,
    is_indexed,
    prepare_partial,
    refuse_other_bytes,
    release,
    save_index,
)
from pipeline.output_place import output_folder
from pipeline.plan import AugmentConfig, Plan, make_plan
from pipeline.report import Report, counted
from pipeline.scratch import sweep
from pipeline.standing import find_base, find_finished, tell_other_classes
from pipeline.summary import Summary, recorded, summarize
from pipeline.task import Tasks
from pipeline.workers import run, start

if TYPE_CHECKING:
    from concurrent.futures import Future

    from distributed import Client

    from pipeline.carry import Made


def dry_run(config: AugmentConfig, report: Report) -> str:
    """What `materialize` would do, in a few lines; nothing is written.

    Raises: what `materialize` would raise of the options and the source.
    """
    plan = make_plan(config, report)
    n_workers = 1 if config.scheduler else config.workers  # those of a cluster come and go
    try:
        finished = find_finished(plan, config.overwrite)
        tell_other_classes(plan, report)
        if finished is not None:
            if plan.is_published and latest(plan.out) != plan.version:
                return f"{plan.folder}: this job was done before; would make it the latest again"
            return f"{plan.out}: this job was done before; nothing to do"
    except OutputError as err:
        return f"{describe_plan(plan, n_workers)}\nbut not there: {err}"
    if is_sealed(plan.partial) and not is_made_again(config, plan):
        return f"{plan.folder}: all of it was made by a run that came to no end; would commit it"
    refuse_unreadable_share(plan, config.max_bad, report)
    lines = [describe_plan(plan, n_workers)]
    done = {} if is_made_again(config, plan) else read_records(plan.partial)
    if done:
        n_shards = sum(part["blocks"] for part in plan.job.splits.values())
        lines.append(
            f"done    {len(done)} of {counted(n_shards, 'shard')}, by a run that came to no end; "
            "only the others would be made"
        )
    if base := find_base(plan, config.overwrite, report):
        lines.append(describe_base(plan, done, base))
    return "\n".join(lines)


def describe_base(plan: Plan, done: Collection[str], base: Base) -> str:
    """What would be taken over, in a line, beside the shards that are done."""
    n_whole = n_rows = 0
    for task in plan.tasks(done, base):  # one at a time, as they are made
        if task.carried is None:
            continue
        if task.carried.is_whole:
            n_whole += 1
        else:
            n_samples = int((task.carried.origins >= 0).sum())
            n_rows += n_samples * len(plan.job.copies(task.split))
    return (
        f"kept    {counted(n_whole, 'shard')} as they are and {counted(n_rows, 'image')} of others"
    )


def materialize(config: AugmentConfig, report: Report) -> Summary:
    """Writes the job's shards and commits them, or finds that this was done before.

    Raises: UserError of each kind; whatever happens, `out` is absent, as it was, or whole.
    """
    out = output_folder(config)
    refuse_if_held(out)
    if config.publish:
        refuse_without_links(out)
    if moved_aside(out):
        with hold(out):
            restore(out)
    sweep()  # also where no worker is needed, since a killed run had all shards
    with ExitStack() as stack:
        clients: list[Future[Client]] = []

        def begin(n_samples: int, n_new: int) -> Future[Client] | None:
            # Workers start while the source is read; not for one shard, or where all may be done,
            # but where there are many samples that no output has.
            is_published = config.publish or storage.is_object(out)
            is_new = config.overwrite or (latest(out) is None if is_published else is_empty(out))
            has_work = n_samples >= SMALL and (is_new or n_new >= SMALL)
            if not has_work or not (config.workers or config.scheduler):
                return None
            clients.append(start(min(config.workers, MIN_BLOCKS), config.scheduler, stack))
            return clients[0]

        started = time.monotonic()
        plan = make_plan(config, report, begin)
        return write(config, plan, report, clients[0] if clients else None, started)


def in_order(records: Iterable[Record]) -> list[Record]:
    """By split and number, which has more digits from 100,000 shards on."""
    return sorted(records, key=lambda record: (record.split, len(record.name), record.name))


def write(
    config: AugmentConfig,
    plan: Plan,
    report: Report,
    client: Future[Client] | None,
    started: float,
) -> Summary:
    """The part of `materialize` that comes after the plan."""
    with ExitStack() as stack:
        check_held = stack.enter_context(hold(plan.out))
        if plan.folder != plan.out and not storage.is_object(plan.out):
            stack.enter_context(hold(plan.folder))  # `clean` looks at that one
        before = last_pointer(plan.out) if plan.is_published else 0
        finished = find_finished(plan, config.overwrite)
        tell_other_classes(plan, report)
        if finished is not None:
            tidy(plan.partial)  # after a crash just before the end
            if not is_indexed(plan):
                save_index(plan, report)
            was_latest = not plan.is_published or latest(plan.out) == plan.version
            if not was_latest:
                report.say(f"{plan.folder}: was made before; it becomes the latest", event="back")
            summary = not_made(plan, finished.shards, started, was_done=was_latest)
        else:
            if storage.is_object(plan.out):
                storage.abort_uploads(plan.out, VERSION)
            if is_sealed(plan.partial) and not is_made_again(config, plan):
                check_held()
                save_index(plan, report)
                commit(plan.partial, plan.folder, config.overwrite)
                shards = read_manifest(plan.folder).shards
                summary = not_made(plan, shards, started, was_done=False)
            else:
                summary = make(config, plan, report, client, started, check_held)
        release(plan, before, config.keep, report)
        commit_s = time.monotonic() - started - sum(summary.seconds.values())
        summary = replace(summary, seconds={**summary.seconds, "commit": commit_s})
        return recorded(plan, summary, report)


def not_made(plan: Plan, shards: list[Record], started: float, was_done: bool) -> Summary:
    """The summary of a run that found all its shards made."""
    seconds = {"plan": time.monotonic() - started}
    return summarize(plan, shards, {record.name for record in shards}, seconds, was_done)


def is_made_again(config: AugmentConfig, plan: Plan) -> bool:
    """Whether a finished version is replaced where it was made, as it is in object storage."""
    return storage.is_object(plan.out) and config.overwrite and not is_empty(plan.folder)


def make(
    config: AugmentConfig,
    plan: Plan,
    report: Report,
    client: Future[Client] | None,
    started: float,
    check_held: Callable[[], None],
) -> Summary:
    """Makes the shards that are not there yet, and commits them all.

    check_held: Raises where this process has lost the output to another.
    """
    refuse_unreadable_share(plan, config.max_bad, report)
    partial = plan.partial
    if is_made_again(config, plan):
        refuse_other_bytes(plan)
        storage.remove(partial / RECORDS)
    done = read_records(partial)
    base = find_base(plan, config.overwrite, report)
    others = [p for p in unfinished_runs(plan.out, plan.is_published) if p != partial]
    for other in others:
        is_pruned = config.keep and plan.is_published and not is_sealed(other)
        if (base is None or other != base.folder) and not is_pruned:  # else `release` tells
            report.say(
                f"{other}: left by an unfinished run of another job; "
                f"`pipeline clean {plan.out}` removes it",
                event="stale",
            )
    if plan.job.shape is None:
        report.say(
            "the images have different sizes and keep them; to train on the output, give "
            "--image-size",
            event="sizes",
        )
    tasks = plan.tasks(done, base)
    check_disk(plan, tasks, base)
    prepare_partial(plan.folder, plan.job, plan.out)
    planned = time.monotonic()
    if done:
        report.say(
            f"resuming: {len(done)} of {len(done) + len(tasks)} shards are done",
            event="resume",
            shards_done=len(done),
        )
    made, first = run_tasks(config, plan, tasks, client, report)
    worked = time.monotonic()
    shards = in_order([*done.values(), *(m.record for m in made)])
    refuse_too_many_bad(
        [item for record in shards for item in record.quarantined],
        plan.n_samples,
        config.max_bad,
        f"nothing was committed; {ADVICE} (finished shards are kept)",
        report,
    )
    check_held()
    finish(plan.folder, plan.job, plan.classes, shards, config.overwrite)
    if base and base.folder in others:  # what was of use of it is in the output
        storage.remove(base.folder)
    seconds = {"plan": planned - started, "start_up": first - planned, "work": worked - first}
    return replace(
        summarize(plan, shards, done, seconds, was_done=False),
        n_kept=sum(m.is_kept for m in made),
        n_carried=sum(m.n_carried for m in made),
        n_written=sum(m.record.rows - m.n_carried for m in made if not m.is_kept),
    )


def refuse_unreadable_share(plan: Plan, max_bad: float, report: Report) -> None:
    """Before any work, which finds what does not decode. Raises: NotCommitted if so many inputs
    cannot be read that nothing would be committed."""
    bad = unreadable(plan.samples, plan.scans)
    refuse_too_many_bad(bad, plan.n_samples, max_bad, f"nothing was committed; {ADVICE}", report)


def run_tasks(
    config: AugmentConfig,
    plan: Plan,
    tasks: Tasks,
    client: Future[Client] | None,
    report: Report,
) -> tuple[list[Made], float]:
    """How each shard was made, and when the first task was started (monotonic seconds). The index
    is written too, while workers are at the other shards."""
    from pipeline.carry import make_shard

    done: list[Made] = []
    started: list[float] = []
    with report.progress(sum(tasks.sizes.values()), "augmenting") as progress:
        for made in run(
            make_shard,
            tasks,
            config.workers,
            config.scheduler,
            client,
            shared=plan.partial / RUN,
            say=report.say,
            on_ready=lambda: started.append(time.monotonic()),
        ):
            if made.damage and not any(before.damage for before in done):
                report.say(
                    f"{made.damage}; what it holds is made again, like others that may be damaged",
                    event="damaged",
                )
            report.event(
                f"{made.record.name}: written in {made.seconds:.2f} s",
                event="shard",
                shard=made.record.name,
                worker=made.worker,
                rows=made.record.rows,
                seconds=round(made.seconds, 3),
            )
            done.append(made)
            progress.advance(tasks.sizes[made.record.name])
            if len(done) == 1:
                save_index(plan, report)
    if not tasks:  # a run was killed between its last shard and its end
        save_index(plan, report)
    return done, started[0] if started else time.monotonic()
