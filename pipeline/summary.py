"""What a run of `pipeline augment --offline` did, for people and for the history."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import storage
from datasets.manifest import Record
from pipeline.history import LINES, append_line, timestamp
from pipeline.plan import Plan
from pipeline.report import Report

SHOWN_IGNORED = 100


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
    n_kept: int = 0  # shards of the output that it replaces, as they were
    n_carried: int = 0  # rows of it, in other shards


def summarize(
    plan: Plan,
    shards: Sequence[Record],
    reused: Collection[str],
    seconds: dict[str, float],
    was_done: bool,
) -> Summary:
    """The summary of a run from the records of all its shards.

    Args:
      reused: Names of the shards that an earlier, unfinished run had written.
      seconds: What each stage took, by name.
      was_done: Whether the output stood there before, so that nothing was written.
    """
    return Summary(
        out=plan.folder,
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


def recorded(plan: Plan, summary: Summary, report: Report) -> Summary:
    """The summary, after a line in OUT.runs.jsonl, beside the output: what a run took, which is not
    its result."""
    entry: dict[str, Any] = {
        "start": timestamp(time.time() - sum(summary.seconds.values())),
        "end": timestamp(),
        "exit_code": 0,
        "host": os.uname().nodename,
        "command": sys.argv,
        "dataset": plan.dataset,
        "job_sha256": plan.job_sha256,
        "rows": summary.rows,
        "bytes": summary.n_bytes,
        "shards": summary.n_shards,
        "reused_shards": summary.n_reused,
        "kept_shards": summary.n_kept,
        "carried_rows": summary.n_carried,
        "quarantined": len(summary.quarantined),
        "n_ignored": len(plan.ignored),
        "ignored": list(plan.ignored[:SHOWN_IGNORED]),  # a line each night, of a million names
        "seconds": {k: round(v, 3) for k, v in summary.seconds.items()},
    }
    if storage.is_object(plan.out):
        return summary  # nothing can be appended there; jobs keep their history on this machine
    path = plan.out.with_name(f"{plan.out.name}{LINES}")
    try:
        append_line(path, entry)
    except OSError as err:  # the output is committed, which is what counts
        report.say(f"{path}: cannot be written ({err.strerror})", event="warning")
    return summary
