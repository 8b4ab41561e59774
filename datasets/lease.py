"""Who may write an output in object storage: a lease that expires, where no file lock exists.

Leases are objects `OUT/.lease/00000001`, `00000002`, ... The highest one counts, and taking over an
old one is creating the next, which one process alone can do. Ages are told by the storage's clock.
What a lease protects from is doing work twice: what stands in the end is decided by the pointer
(`datasets.versions`), which two runs cannot both write either.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datasets import storage
from datasets.errors import EnvironmentFailed, OutputBusy
from datasets.storage_errors import translating_errors

FOLDER = ".lease"
EXPIRES_S = 60.0  # after this long without a sign of its holder
RENEW_S = 15.0
STOP_S = 1.0  # to give it back in; then it expires


def lease_file(out: Path, number: int) -> Path:
    return out / FOLDER / f"{number:08d}"


def this_process() -> dict[str, Any]:
    """This process, as others on this machine can tell whether it is still there."""
    return {
        "owner": uuid.uuid4().hex,
        "space": pid_space(),
        "pid": os.getpid(),
        "started": start_of(os.getpid()),
    }


def pid_space() -> str:
    """Where the numbers of processes count, "" if that cannot be told: machines may share a name,
    and containers of one machine count for themselves."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def start_of(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" where it is not there, or a zombie."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process that could be seen from here and has ended since."""
    is_seen = holder.get("space") == pid_space() != "" and not is_hidden(holder["pid"])
    return is_seen and start_of(holder["pid"]) != holder["started"]


def is_hidden(pid: int) -> bool:
    """Whether a process is there that /proc does not show to this user."""
    if Path(f"/proc/{pid}").exists():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def lease_numbers(out: Path) -> list[int]:
    """The numbers of the leases on an output, the one that counts last."""
    return sorted(int(n) for n in storage.files_below(out / FOLDER) if n.isdecimal())


def is_free(out: Path, number: int) -> bool:
    """Whether nobody holds that lease any more."""
    path = lease_file(out, number)
    try:
        if is_gone(json.loads(path.read_bytes())):
            return True
        return storage_time(out) - modified(path) > EXPIRES_S
    except FileNotFoundError:  # given back since
        return True


def storage_time(out: Path) -> float:
    """Seconds by the storage's clock, which all who write there share."""
    path = out / FOLDER / f"clock-{uuid.uuid4().hex}"
    path.write_bytes(b"")
    try:
        return modified(path)
    finally:
        storage.remove(path)


class Lease:
    """A lease on an output; `check` tells whether it is still held."""

    def __init__(self, out: Path) -> None:
        """Raises: OutputBusy if somebody else holds it; EnvironmentFailed if the storage fails."""
        self.out, self.is_lost, self.body = out, False, json.dumps(this_process()).encode()
        with translating_errors(out):
            numbers = lease_numbers(out)
            last = max(numbers, default=0)
            if last and not is_free(out, last):
                raise OutputBusy(busy_message(out))
            self.path = lease_file(out, last + 1)
            if not storage.create(self.path, self.body):
                raise OutputBusy(busy_message(out))
            for number in numbers:
                storage.remove(lease_file(out, number))
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._renew, daemon=True)
        self.thread.start()

    def _renew(self) -> None:
        while not self.over.wait(RENEW_S):
            with suppress(EnvironmentFailed), translating_errors(self.out):
                self._renew_once()

    def _renew_once(self) -> None:
        if self._is_mine():
            self.path.write_bytes(self.body)
        else:
            self.is_lost = True
            self.over.set()

    def _is_mine(self) -> bool:
        try:
            return max(lease_numbers(self.out)) == int(self.path.name) and (
                self.path.read_bytes() == self.body
            )
        except (FileNotFoundError, ValueError):
            return False

    def check(self) -> None:
        """Raises: OutputBusy if another run has taken over: this one gave no sign for long."""
        with translating_errors(self.out):
            if self.is_lost or not self._is_mine():
                raise OutputBusy(
                    f"{self.out}: another run took over while this one stood still; run the same "
                    "command again if its output is not there"
                )

    def release(self, patience_s: float | None = None) -> None:
        """Gives it back. patience_s: For how long that is waited for; None: to the end."""
        giving = threading.Thread(target=self._give_back, daemon=True)
        giving.start()
        giving.join(patience_s)

    def _give_back(self) -> None:
        self.over.set()
        self.thread.join()
        with suppress(EnvironmentFailed), translating_errors(self.out):
            if self._is_mine():
                storage.remove(self.path)


def modified(path: Path) -> float:
    """When an object was written, in seconds by the storage's clock."""
    return float(storage.file_system(path).modified(storage.key(path)).timestamp())


def busy_message(out: Path) -> str:
    return (
        f"{out}: another run is writing it, or was killed on another machine less than "
        f"{EXPIRES_S:.0f} s ago; wait for that one or choose another --out"
    )


def refuse_if_leased(out: Path) -> None:
    """Raises: OutputBusy if another process holds it. Changes nothing."""
    with translating_errors(out):
        numbers = lease_numbers(out)
        if numbers and not is_free(out, numbers[-1]):
            raise OutputBusy(busy_message(out))


@contextmanager
def leased(out: Path) -> Iterator[Lease]:
    """Holds `out` until the block ends; expires by itself where the process dies."""
    lease, patience_s = Lease(out), None
    try:
        yield lease
    except SystemExit:  # told to stop, which does not wait for a storage that is gone
        patience_s = STOP_S
        raise
    finally:
        lease.release(patience_s)
