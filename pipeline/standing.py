"""What stands where an output is to go, and what that is to the job: done before, in its way, or
something to take over from."""

from __future__ import annotations

import json
from dataclasses import asdict

from datasets import storage
from datasets.commit import is_empty, refuse_to_replace
from datasets.errors import Damaged, OutputError
from datasets.index import index_path
from datasets.manifest import (
    UNFINISHED,
    Manifest,
    damages,
    read_manifest,
    refuse_missing_or_cut,
)
from datasets.schema import canonical_json
from datasets.versions import refuse_others
from pipeline.base import (
    Base,
    has_sidecars,
    is_of_changed_source,
    is_successor,
    source_changes,
)
from pipeline.job import differences
from pipeline.plan import Plan
from pipeline.report import Report


def is_intact_version(plan: Plan) -> bool:
    """Whether the version that this job would publish stands on a disk, whole. It is not replaced:
    somebody may read it, and what would be written is the same."""
    if not plan.is_published or storage.is_object(plan.out):
        return False
    try:
        return not any(damages(plan.folder, read_manifest(plan.folder)))
    except (OutputError, Damaged):  # of a disk that fails nothing is known
        return False


def find_finished(plan: Plan, overwrite: bool) -> Manifest | None:
    """The manifest if `out` holds this very job's output; None where it may be written.

    Raises: OutputError if something else is there that this run must not replace; Damaged if a file
      of it is gone or cut.
    """
    out = plan.folder
    if plan.is_published:
        refuse_others(plan.out)
    if is_empty(out):
        return None
    refuse_to_replace(out, overwrite=True)
    if overwrite and not is_intact_version(plan):
        return None
    manifest = read_manifest(out)
    if manifest.job_sha256 == plan.job_sha256:
        refuse_missing_or_cut(out, manifest)
        return manifest
    if is_of_changed_source(plan.job, manifest):
        changes = told_changes(plan)
        cost = ", which makes only what changed" if changes else ""
        raise OutputError(
            f"{out}: the source has changed since this was written{changes}; choose another --out, "
            f"or replace it with --overwrite{cost}"
        )
    changed = differences(manifest.job, json.loads(canonical_json(asdict(plan.job))))
    cost = ", which makes only what changed" if is_successor(plan.job, manifest) else ""
    raise OutputError(
        f"{out}: holds the output of another job ({changed}); choose another --out, or replace it "
        f"with --overwrite{cost}"
    )


def told_changes(plan: Plan) -> str:
    """` (1 new, 0 changed, 2 gone)`, or nothing where the output has no index that says it."""
    base = plan.base
    if base is None or base.folder != plan.folder or not base.entries:
        return ""
    n_new, n_changed, n_gone = source_changes(base, plan.classes, plan.samples, plan.scans)
    if not (n_new or n_changed or n_gone):
        return " (it has other classes)"
    return f" ({n_new:,} new, {n_changed:,} changed, {n_gone:,} gone)"


def find_base(plan: Plan, overwrite: bool, report: Report) -> Base | None:
    """The output from which this run takes over what is unchanged; None: all is made again."""
    base = plan.base
    if base is None or (base.folder == plan.out and not overwrite):
        return None
    if base.folder == plan.partial or not is_successor(plan.job, base.manifest):
        return None
    if base.entries and has_sidecars(base.folder, base.manifest):
        return base
    report.say(
        f"{base.folder}: all of it is made again, since its index "
        f"({index_path(base.folder, base.manifest.job_sha256)}) is not there or not whole",
        event="no_index",
    )
    return None


def tell_other_classes(plan: Plan, report: Report) -> None:
    """Says so where the output that this one replaces, or is the latest after, had others."""
    base = plan.base
    if base is None or UNFINISHED.fullmatch(base.folder.name):
        return
    if base.manifest.classes != list(plan.classes):
        report.say(
            f"the classes are others than in {base.folder} ({len(plan.classes)}, there were "
            f"{len(base.manifest.classes)}), so a class may have another number; train again "
            "what knows the old ones",
            event="classes",
            classes=list(plan.classes),
        )
