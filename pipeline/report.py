"""What a run tells while it goes: a bar on a terminal, plain lines in a log, or JSON lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets.errors import printable

if TYPE_CHECKING:
    from pipeline.summary import Summary

LINE_EVERY_S = 10.0


def duration(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def counted(n: int, one: str, many: str = "") -> str:
    """1 shard, 2,000 shards."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def size(n_bytes: float) -> str:
    """512 B, 3.4 MB, 1.2 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError


@dataclass
class Progress:
    """Images done so far; `advance` is called as shards finish.

    on_advance: Told of the images done and how many a second that is.
    """

    on_advance: Callable[[int, float], None]
    done: int = 0

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def advance(self, n: int) -> None:
        self.done += n
        self.on_advance(self.done, self.done / max(1e-9, time.monotonic() - self.started))


@dataclass(frozen=True)
class Report:
    """Where lines go: standard error; as text, results go to standard output."""

    quiet: bool = False
    log_format: str = "text"

    @property
    def has_bars(self) -> bool:
        """Whether somebody watches, at a terminal."""
        return not self.quiet and self.log_format == "text" and sys.stderr.isatty()

    def say(self, text: str, **fields: Any) -> None:
        """One line of text, or one JSON object with `message` and the fields."""
        if self.quiet:
            return
        self.write(text, text, fields)

    def event(self, text: str, **fields: Any) -> None:
        """What is of use to a collector alone: nothing as text."""
        if self.log_format == "json":
            self.say(text, **fields)

    def error(
        self, message: str, exit_code: int, mistakes: Sequence[str] = (), **fields: Any
    ) -> None:
        """One line that is never left out, and one for each mistake that it is about."""
        told = {"event": "error", "exit_code": exit_code, **fields}
        self.write(f"pipeline: {message}", message, told)
        for mistake in mistakes:
            self.write(f"  {mistake}", mistake, {"event": "mistake"})

    def warn(self, text: str, **fields: Any) -> None:
        """One line that is never left out, of what does not end the run."""
        self.write(text, text, {"event": "warning", **fields})

    def result(self, text: str) -> None:
        """What a command was asked for: on standard output, or told like all else as JSON."""
        if self.quiet:
            return
        if self.log_format == "json":
            self.say(text, event="result")
        else:
            print(text, flush=True)

    def relay(self, prefix: str, event: dict[str, Any]) -> None:
        """What another process has told as JSON: all of it as JSON, or its errors alone if quiet;
        as text not what `event` tells, nor the error that it ends with, which is the caller's."""
        kind = event.get("event")
        if kind == "result" and self.log_format == "text":
            try:
                self.result(event["message"])
            except OSError as err:  # whoever read them has gone, which must not end the run
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                self.warn(f"{prefix}: results cannot be printed from here on ({err.strerror})")
            return
        if self.log_format == "json":
            is_told = not self.quiet or kind == "error"
        else:
            is_told = not self.quiet and kind not in ("error", "shard")
        if is_told:
            self.write(f"{prefix}: {event['message']}", event["message"], event)

    def write(self, text: str, message: str, fields: dict[str, Any]) -> None:
        if self.log_format == "json":
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line = json.dumps({"time": now, "message": message, **fields})
        else:
            line = printable(text)
        with suppress(OSError):  # a run is worth more than its log, whose disk may be full
            print(line, file=sys.stderr, flush=True)

    def lines(self, total: int, verb: str) -> Callable[[int, float], None]:
        """Says every ten seconds how many images are done and how long the others will take."""
        last_line = time.monotonic()

        def tell(done: int, rate: float) -> None:
            nonlocal last_line
            now = time.monotonic()
            if now - last_line < LINE_EVERY_S or done >= total:
                return
            last_line = now
            left = (total - done) / rate if rate else 0.0
            self.say(
                f"{verb}: {done:,} of {total:,} images, {rate:,.0f} images/s, "
                f"{duration(left)} left",
                event="progress",
                doing=verb,
                done=done,
                total=total,
                images_per_s=round(rate),
            )

        return tell

    @contextmanager
    def progress(self, total: int, verb: str) -> Iterator[Progress]:
        """A bar with rate and time left on a terminal; lines every ten seconds elsewhere."""
        if not self.has_bars:
            yield Progress(self.lines(total, verb))
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn(verb),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} images/s"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(verb, total=total, rate="-")
            yield Progress(lambda done, rate: bar.update(task, completed=done, rate=f"{rate:,.0f}"))


def report_summary(summary: Summary, report: Report) -> None:
    """Says what a run did: the output, what could not be used, and what it took."""
    if summary.was_done:
        text = f"{summary.out}: this job was done before; nothing to do"
    else:
        parts = ", ".join(f"{split} {rows:,}" for split, rows in summary.splits.items())
        text = (
            f"{summary.out}: {counted(summary.rows, 'image')} ({parts}) in "
            f"{counted(summary.n_shards, 'shard')}, {size(summary.n_bytes)}"
        )
        if summary.n_reused:
            text += f" ({counted(summary.n_reused, 'shard')} from the run before)"
        is_carried = summary.n_kept or summary.n_carried
        if is_carried:
            text += (
                f" ({counted(summary.n_kept, 'shard')} kept, "
                f"{counted(summary.n_carried, 'row')} carried over, "
                f"{summary.n_written:,} made)"
            )
        if work := summary.seconds.get("work"):
            text += f", in {duration(sum(summary.seconds.values()))}"
            if summary.n_written and not is_carried:
                text += f" ({summary.n_written / work:,.0f} images/s without start-up)"
    n_reused = summary.n_shards if summary.was_done else summary.n_reused
    report.say(
        text,
        event="done",
        out=str(summary.out),
        rows=summary.rows,
        bytes=summary.n_bytes,
        shards=summary.n_shards,
        shards_written=summary.n_shards - n_reused,
        shards_reused=n_reused,
        shards_kept=summary.n_kept,
        rows_carried=summary.n_carried,
        rows_made=summary.n_written,
        quarantined=len(summary.quarantined),
        seconds=summary.seconds,
    )
    for name, why in summary.quarantined:
        report.say(f"not used: {name}: {why}", event="quarantined", sample=name, reason=why)
