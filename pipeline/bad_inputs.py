"""Inputs that cannot be used: which, and when they are too many."""

from __future__ import annotations

from collections.abc import Sequence

from datasets.errors import NotCommitted, SourceError
from datasets.fingerprint import Scan
from datasets.source import Samples
from pipeline.report import Report, counted

ADVICE = "fix or remove them, or run again with a higher --max-bad"


def unreadable(samples: dict[str, Samples], scans: dict[str, Scan]) -> list[tuple[str, str]]:
    """(sample id, reason) of those whose file or header cannot be used."""
    return [
        (samples[split].ids[i], why)
        for split, found in scans.items()
        for i, why in sorted(found.errors.items())
    ]


def refuse_unreadable(dataset: str, samples: dict[str, Samples], scans: dict[str, Scan]) -> None:
    """Raises: SourceError, with one of the reasons, if there is no image that can be read."""
    if any(found.shapes.any() for found in scans.values()):
        return
    if reasons := unreadable(samples, scans):
        n, (name, why) = sum(map(len, samples.values())), reasons[0]
        raise SourceError(
            f"{dataset}: not one of its {n:,} files is an image that can be read; the first is "
            f"{name}: {why}"
        )
    raise SourceError(f"{dataset}: the split {' or '.join(scans)} has no image; add some")


def refuse_too_many_bad(
    bad: Sequence[tuple[str, str]], total: int, max_bad: float, advice: str, report: Report
) -> None:
    """Raises: NotCommitted that names five of the (sample id, reason) where they are too many; the
    event before it names all."""
    if len(bad) > max_bad * total or len(bad) == total:
        files = [{"sample": name, "reason": why} for name, why in bad]
        told = f"{counted(len(bad), 'input')} cannot be used"
        report.event(told, event="bad_inputs", files=files)
        names = "; ".join(f"{name}: {why}" for name, why in bad[:5])
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NotCommitted(
            f"{len(bad)} of {total} inputs cannot be used, --max-bad {max_bad:g} allows "
            f"{int(max_bad * total)}: {names}{more}; {advice}"
        )
