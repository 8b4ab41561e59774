"""`pipeline run`: the steps of a job, one after another, each in a process of its own.

A step that ends badly ends the job with its exit code. A signal or the job's deadline ends the step
that is going, in order where it does that in time. Nothing of a step outlives the job, however that
ends: each step is a process group, which is killed after it, and see `pipeline.parent`.
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import shlex
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any, NoReturn

from datasets.errors import EnvironmentFailed, UserError, system_failure
from pipeline.history import History, read_lines, timestamp
from pipeline.jobfile import JobFile
from pipeline.metrics import COUNTS
from pipeline.report import Report, duration
from pipeline.step_places import missing_inputs
from pipeline.steps import Step

PAST_DEADLINE = 6  # no 5: who tries again at once would take that time once more
GRACE_S = 4.0  # that a step has to end in order
OVER_S = 4.9  # after which this process ends in any case: who reads its log may stand still
MAX_WAIT_S = 3600.0  # epoll counts milliseconds in 32 bits
MAX_TIMER_S = 1e9  # the kernel nanoseconds in 64
READ_BYTES = 2**16
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PACKAGES = (
    "augmentation-pipeline",
    "keras",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "tensorflow",
)


def command_lines(job: JobFile) -> str:
    """What `run_job` would run, a line each."""
    return "\n".join(shlex.join(["pipeline", *step.words]) for step in job.steps)


@dataclass
class Signals:
    """Those that ask for the end are noted, instead of breaking in anywhere; `file` can be read
    once one has come, or a child has ended."""

    file: socket.socket
    received: int = 0

    def note(self, number: int, frame: object) -> None:
        if not self.received:
            self.received = number
            signal.setitimer(signal.ITIMER_REAL, OVER_S)

    def give_up(self, number: int, frame: object) -> NoReturn:
        """Ends this process at once; the kernel ends its step with it. Without a last message: if
        nobody reads the log, to write it would wait for ever."""
        os._exit(128 + self.received if self.received else PAST_DEADLINE)


@contextmanager
def noted_signals() -> Iterator[Signals]:
    """Yields the signals that this process gets within the block, which ends at none of them; the
    handlers of before are put back behind it."""
    ours, pythons = socket.socketpair()
    with ours, pythons:
        ours.setblocking(False)
        pythons.setblocking(False)
        signals = Signals(ours)
        is_kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by `nohup`
        asked = [number for number in ENDING if not (is_kept and number == signal.SIGHUP)]
        before = {number: signal.signal(number, signals.note) for number in asked}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, signals.give_up)
        signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        try:
            yield signals
        finally:
            signal.set_wakeup_fd(-1)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class End:
    """Why a job ends early, with which exit code, and the signal that its step gets."""

    why: str
    code: int
    signal: int


def end_of(signals: Signals, end_at: float) -> End | None:
    """Why the job is to end now: a signal has come, or `time.monotonic()` is past `end_at`."""
    if signals.received:
        return End("stopped", 128 + signals.received, signals.received)
    if time.monotonic() >= end_at:
        return End("its deadline passed", PAST_DEADLINE, signal.SIGTERM)
    return None


def run_job(job: JobFile, changes: Sequence[str], start: Sequence[str], report: Report) -> int:
    """The exit code of a run of the job, once its record is written, or could not be.

    Args:
      changes: What `--set` said, for the record.
      start: The command that a step's words are appended to, after the number of this process.
    Raises: OutputBusy if a run of the job is going; EnvironmentFailed if its history cannot be
      written as it begins.
    """
    history = History(job.history, job.name)
    with noted_signals() as signals, history.held():
        record: dict[str, Any] = {
            "run": uuid.uuid4().hex[:16],
            "job": job.name,
            "file": str(job.path.absolute()),
            "sha256": job.sha256,
            "set": list(changes),
            "start": timestamp(),
            "end": None,
            "exit_code": None,
            "error": None,
            "steps": [],
            "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            "host": os.uname().nodename,
        }
        tell_other_file(history, job.path, report)
        history.begin(record)
        started = time.monotonic()
        if job.deadline_s is not None:
            signal.setitimer(signal.ITIMER_REAL, min(job.deadline_s + OVER_S, MAX_TIMER_S))
        try:
            code, error = run_steps(job, record, start, report, signals, history)
        except BaseException as err:
            told = system_failure(err) if isinstance(err, Exception) else None
            code, error = getattr(told or err, "exit_code", 1), repr(err)
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # the record is worth some time more
            whole = {**record, "end": timestamp(), "exit_code": code, "error": error}
            is_kept = finish(history, whole, report)
        if code:
            signal.setitimer(signal.ITIMER_REAL, OVER_S - GRACE_S)
            report.error(f"{job.name}: {error}", code, job=job.name)
        else:
            took = duration(time.monotonic() - started)
            report.say(f"{job.name}: done in {took}", event="job-done", job=job.name)
    # A success that nobody would hear of is worth a retry, which finds all of it done.
    return code if is_kept else code or EnvironmentFailed.exit_code


def tell_other_file(history: History, path: Path, report: Report) -> None:
    """Warns where the last run in this history was of another job file: two jobs of one name would
    count as one, whose state is that of whichever ran last."""
    records = read_lines(history.lines)
    before = str(records[-1].get("file", path)) if records else str(path)
    with suppress(OSError):  # one that is gone is no other
        if not os.path.samefile(before, path):
            report.warn(
                f"{history.name}: the last run of this name was of {before}, and status cannot "
                "tell them apart; give one of them another name: or history:",
                job=history.name,
            )


def finish(history: History, record: dict[str, Any], report: Report) -> bool:
    """Whether the record of a run was added to the history, or is kept for the next run to add."""
    name, code = record["job"], record["exit_code"]
    ended = f"failed with exit code {code}" if code else "succeeded"
    try:
        why = history.finish(record)
    except EnvironmentFailed as err:
        report.warn(
            f"{name}: {ended}, but that is recorded nowhere, and status will call it killed: {err}",
            job=name,
        )
        return False
    if why:
        report.warn(f"{name}: {ended}; its record is added by the next run: {why}", job=name)
    return True


def run_steps(
    job: JobFile,
    record: dict[str, Any],
    start: Sequence[str],
    report: Report,
    signals: Signals,
    history: History,
) -> tuple[int, str | None]:
    """The job's exit code, and why it is not 0. What each step took is added to the record."""
    end_at = inf if job.deadline_s is None else time.monotonic() + job.deadline_s
    if missing := list(missing_inputs(job.steps)):
        return UserError.exit_code, "; ".join(missing)
    for number, step in enumerate(job.steps, 1):
        log = StepLog(job, number, report)
        if end := end_of(signals, end_at):
            return end.code, f"{end.why} before step {log.prefix}"
        report.say(
            f"{log.prefix}: {shlex.join(['pipeline', *step.words])}",
            event="step",
            job=job.name,
            step=number,
        )
        code, error = run_step(step, start, log, signals, end_at)
        record["steps"].append(log.record(step, code))
        with suppress(EnvironmentFailed):  # the end will tell, and may find room
            history.begin(record)
        if code:
            return code, error
    return 0, None


@dataclass
class StepLog:
    """What a step says: passed on line by line, with what counts kept."""

    job: JobFile
    number: int
    report: Report
    counts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    rest: bytes = b""

    def __post_init__(self) -> None:
        self.command = self.job.steps[self.number - 1].command.name
        self.prefix = f"{self.number}/{len(self.job.steps)} {self.command}"
        self.started = time.monotonic()

    def feed(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.read(line.decode(errors="replace").rstrip())

    def close(self) -> None:
        if self.rest:
            self.feed(b"\n")

    def read(self, line: str) -> None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or "message" not in event:
            if not line:
                return
            event = {"time": timestamp(), "message": line, "event": "output"}
        if event.get("event") == "done":
            self.counts = {k: event[k] for k in (*COUNTS, "test_accuracy") if k in event}
        if event.get("event") == "error":
            self.error = f"{event['message']}{event.get('traceback', '')}"
        whole = {**event, "job": self.job.name, "step": self.number, "command": self.command}
        self.report.relay(self.prefix, whole)

    def record(self, step: Step, code: int) -> dict[str, Any]:
        took = round(time.monotonic() - self.started, 3)
        return {"command": step.words, "exit_code": code, "seconds": took, **self.counts}


def run_step(
    step: Step, start: Sequence[str], log: StepLog, signals: Signals, end_at: float
) -> tuple[int, str | None]:
    """The job's exit code after this step, 0 if it goes on, and why it ends.

    end_at: When the deadline passes, in monotonic seconds.
    """
    name, *words = step.words
    try:
        process = subprocess.Popen(
            [*start, str(os.getpid()), name, "--log-format", "json", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            # Ctrl-C at a terminal then reaches this process alone, which passes it on once.
            process_group=0,
        )
    except OSError as err:
        raise EnvironmentFailed(f"{start[0]}: cannot be started ({err.strerror})") from err
    try:
        end = follow(process, log.feed, signals, end_at)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind, too
        code = process.wait()
        log.close()
    if code == 0:
        return 0, None
    if end is not None:
        return end.code, f"{end.why} in step {log.prefix}; the same command goes on from there"
    if code < 0:
        return 128 - code, f"step {log.prefix} was killed by {signal.Signals(-code).name}"
    return code, f"step {log.prefix} ended with exit code {code}: {log.error or 'see above'}"


def follow(
    process: subprocess.Popen[bytes],
    feed: Callable[[bytes], None],
    signals: Signals,
    end_at: float,
) -> End | None:
    """Passes on what a process says, until it has ended; why it was told to, if it was."""
    end, kill_at = None, inf
    pipe = process.stdout
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    with pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        selector.register(signals.file, selectors.EVENT_READ)
        # Not reaped yet: until it is, its number is no other group's.
        while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if end is None and (end := end_of(signals, end_at)):
                os.kill(process.pid, end.signal)
                kill_at = time.monotonic() + GRACE_S
            if time.monotonic() >= kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                kill_at = inf
            left = min(kill_at, inf if end else end_at) - time.monotonic()
            for key, _ in selector.select(min(max(0, left), MAX_WAIT_S)):
                if key.fileobj is signals.file:
                    signals.file.recv(READ_BYTES)
                elif data := pipe.read(READ_BYTES):
                    feed(data)
                else:
                    selector.unregister(pipe)
        while data := pipe.read(READ_BYTES):
            feed(data)
    return end
