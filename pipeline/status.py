"""`pipeline status`: the last run of each job, and whether it is well."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets.commit import is_held
from datasets.errors import UserError
from datasets.storage import is_object
from pipeline.history import LINES, STARTED, History, as_ended, read_lines
from pipeline.report import duration

# What exit codes mean, in a few words.
MEANINGS = {
    0: "done",
    1: "a bug",
    2: "wrong use",
    3: "bad inputs",
    4: "output held",
    5: "worth a retry",
    6: "past its deadline",
    129: "hung up",
    130: "interrupted",
    137: "killed",
    143: "stopped",
}


@dataclass(frozen=True)
class Status:
    """Of one job: its last run. exit_code is None while that is going."""

    folder: str
    job: str
    state: str
    start: str | None
    end: str | None
    exit_code: int | None
    error: str | None
    rows: int | None
    quarantined: int | None
    last_success: str | None

    @property
    def took(self) -> str:
        if not self.start or not self.end:
            return ""
        between = datetime.fromisoformat(self.end) - datetime.fromisoformat(self.start)
        return duration(between.total_seconds())

    @property
    def trouble(self) -> str:
        """What went wrong, and when it last went well."""
        success = "it has never succeeded"
        if self.last_success:
            success = f"last success {shown_time(self.last_success)} UTC"
        return f"{self.error}; {success}" if self.error else success


def known_folder(folder: Path) -> Path:
    """The folder. Raises: UserError if it is none of this machine."""
    if is_object(folder):
        raise UserError(
            f"{folder}: runs into object storage are recorded on the machine that they ran on; "
            "expected the folder that their job file calls history"
        )
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; expected a folder of histories (that which a job file "
            "calls history), or one of outputs"
        )
    return folder


def statuses(folders: Sequence[Path]) -> list[Status]:
    """Of every job whose history is in one of the folders, and of every output there that
    `pipeline augment` has written. Nothing is written: who looks may be another user than who runs
    the job, and owns what he makes."""
    found = [status_of(folder, name) for folder in folders for name in names_in(folder)]
    return [status for status in found if status is not None]


def are_well(found: Sequence[Status]) -> bool:
    """Whether every last run has succeeded, or is still going."""
    return all(status.exit_code in (0, None) for status in found)


def names_in(folder: Path) -> list[str]:
    """Raises: PermissionError if the folder cannot be read, where `Path.glob` finds nothing."""
    found = os.listdir(folder) if folder.is_dir() else []
    names = {name.removesuffix(LINES) for name in found if name.endswith(LINES)}
    markers = (name for name in found if name.startswith(".") and name.endswith(STARTED))
    return sorted(names | {name[1:].removesuffix(STARTED) for name in markers})


def status_of(folder: Path, name: str) -> Status | None:
    """The last run of the job of that name, whose history is in the folder; None without any
    run."""
    history, is_running = History(folder, name), False
    begun = history.started()
    is_over = begun is None or begun.get("exit_code") is not None or not is_held(folder / name)
    records = read_lines(history.lines)  # last: a run that has ended meanwhile is in them
    if begun and all(one.get("run") != begun["run"] for one in records):
        is_running = not is_over
        records.append(begun if is_running else as_ended(begun))
    if not records:
        return None
    last = records[-1]
    successes = [str(one["end"]) for one in records if one.get("exit_code") == 0 and "end" in one]
    code = None if is_running else last.get("exit_code", 1)
    return Status(
        folder=str(folder),
        job=name,
        state="running" if code is None else MEANINGS.get(code, "failed"),
        start=last.get("start"),
        end=last.get("end"),
        exit_code=code,
        error=last.get("error"),
        rows=total(last, "rows"),
        quarantined=total(last, "quarantined"),
        last_success=successes[-1] if successes else None,
    )


def total(record: dict[str, Any], count: str) -> int | None:
    """Of all steps of a job, or of the one that the record is of."""
    counted = [part[count] for part in record.get("steps", [record]) if count in part]
    return sum(counted) if counted else None


def as_json(found: Sequence[Status]) -> str:
    return json.dumps([asdict(status) for status in found], indent=2)


def show(found: Sequence[Status], folders: Sequence[Path]) -> None:
    """Prints a table, and under it what went wrong and when it last went well."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, emoji=False)
    if not found:
        where = ", ".join(str(folder.absolute()) for folder in folders)
        console.print(f"no runs in {where}", soft_wrap=True)
        return
    table = Table(
        Column("job", overflow="fold"),
        *(Column(name, no_wrap=True) for name in ("last run, UTC", "took")),
        "outcome",
        *(Column(name, justify="right", no_wrap=True) for name in ("rows", "not used")),
        box=box.SIMPLE_HEAD,  # which leaves most room in 80 columns
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    names = [one.job if len(folders) == 1 else str(Path(one.folder, one.job)) for one in found]
    for name, one in zip(names, found, strict=True):
        table.add_row(
            name,
            shown_time(one.start),
            one.took,
            f"{one.state} ({one.exit_code})" if one.exit_code else one.state,
            *("" if n is None else f"{n:,}" for n in (one.rows, one.quarantined)),
        )
    console.print(table)
    for name, one in zip(names, found, strict=True):
        if one.exit_code:
            console.print(f"{name}: {one.trouble}", soft_wrap=True)


def shown_time(timestamp: str | None) -> str:
    """2026-11-25 10:30, UTC."""
    return timestamp[:16].replace("T", " ") if timestamp else ""
