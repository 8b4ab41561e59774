"""Records of runs, one JSON line each, whatever way a run ended; and what is told of the last one.

In the folder of a job's history, for a job NAME:

    NAME.runs.jsonl        a line for each run, the oldest first
    NAME.prom              the last run, for Prometheus
    .NAME.started.json     the record so far of a run that is going, or was killed; the whole record
                           of one that has ended and could not be added to the lines
    .NAME.lock             held by the run that is going
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.commit import hold
from datasets.errors import EnvironmentFailed, OutputBusy
from datasets.storage import write_atomically
from pipeline.metrics import exposition

LINES, STARTED = ".runs.jsonl", ".started.json"
KILLED = 137  # 128 and SIGKILL
# `pipeline status` asks for the lock of a run that was killed for a moment, too.
TRIES, WAIT_S = 5, 0.1
# What the end of a run adds to its record, and how much of an error is kept where that must do: in
# JSON a character takes up to 6 bytes.
ROOM_BYTES, MAX_ERROR = 8192, 1000


def timestamp(at: float | None = None) -> str:
    """UTC, to the second; of now, or of seconds since 1970."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Adds one line, on disk when this returns. What a crash left of a line before is cut off."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            whole = path.read_bytes().rpartition(b"\n")
            file.truncate(len(whole[0] + whole[1]))
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records, the oldest first; a line that is none is passed over."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # cut off by a crash, or no record
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def as_ended(record: dict[str, Any]) -> dict[str, Any]:
    """What history says of a run that is not going any more: that it was killed, unless its record
    says how it ended."""
    if record.get("exit_code") is not None:
        return record
    return {**record, "exit_code": KILLED, "error": "killed"}


@dataclass(frozen=True)
class History:
    """The records of one job's runs."""

    folder: Path
    name: str

    @property
    def lines(self) -> Path:
        return self.folder / f"{self.name}{LINES}"

    @property
    def marker(self) -> Path:
        return self.folder / f".{self.name}{STARTED}"

    @property
    def metrics(self) -> Path:
        return self.folder / f"{self.name}.prom"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it no other run of the job begins, and every run of before has its record.

        Raises: OutputBusy if a run is going; EnvironmentFailed if the folder cannot be written.
        """
        with ExitStack() as stack:
            for left in reversed(range(TRIES)):
                try:
                    stack.enter_context(hold(self.folder / self.name))
                    break
                except OutputBusy:
                    if not left:
                        going = self.started() or {}
                        raise OutputBusy(
                            f"{self.name}: a run of {going.get('file', 'this job')} has been going "
                            f"since {going.get('start', 'just now')}; wait for that one"
                        ) from None
                    time.sleep(WAIT_S)
                except EnvironmentFailed as err:
                    raise unwritable(self.folder, err.__cause__) from err
            if record := self.started():
                with self.on_disk():
                    self.add(as_ended(record))
            yield

    def started(self) -> dict[str, Any] | None:
        """The record so far of a run that is going, or was killed."""
        try:
            found = json.loads(self.marker.read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("run") else None

    def begin(self, record: dict[str, Any]) -> None:
        """Writes down that a run is going, and how far it is; with room for its end."""
        data = json.dumps(record).encode()
        with self.on_disk():
            write_atomically(self.marker, data.ljust(len(data) + ROOM_BYTES))

    def finish(self, record: dict[str, Any]) -> str | None:
        """Adds the record of a run. Why it could not be, where the next run will do it.

        Raises: EnvironmentFailed if it could not be kept for that one either.
        """
        try:
            self.add(record)
        except OSError as err:
            with self.on_disk():
                self.keep(record)
            return str(unwritable(self.folder, err))
        return None

    def add(self, record: dict[str, Any]) -> None:
        """Adds the record of a run that has ended, unless it was added before, and forgets that the
        run was going."""
        records = read_lines(self.lines)
        if all(one.get("run") != record["run"] for one in records):
            append_line(self.lines, record)
            records.append(record)
        write_atomically(self.metrics, exposition(self.name, records))
        self.marker.unlink(missing_ok=True)

    def keep(self, record: dict[str, Any]) -> None:
        """Writes the record over the marker, whose room it has even on a full disk."""
        error = record["error"] and record["error"][:MAX_ERROR]
        data = json.dumps({**record, "error": error}).encode()
        with self.marker.open("r+b") as file:
            file.write(data.ljust(os.fstat(file.fileno()).st_size))
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise unwritable(self.folder, err) from err


def unwritable(folder: Path, err: BaseException | None) -> EnvironmentFailed:
    why = getattr(err, "strerror", None) or err
    return EnvironmentFailed(
        f"{folder}: the history cannot be written ({why}); fix that, or choose another folder as "
        "history: in the job file"
    )
