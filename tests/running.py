"""Running the real command in tests, and what its output looked like."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil

from tests.forked import KILL, run_forked

PIPELINE = str(Path(sys.executable).with_name("pipeline"))
# What is looked at once, as Python starts or a module is imported: that takes a new process.
AT_START = {"PYTHONPATH", "PYTHONIOENCODING", "COLUMNS", "TMPDIR", "KERAS_HOME"}


def run(
    *arguments: object, code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished command; its exit code is checked. A traceback is never an answer.

    What augments does so in its own process, if nothing else is asked for: workers take 2 s.
    """
    words = [*map(str, arguments)]
    if words[:1] == ["augment"] and not {"--workers", "--scheduler", "--online"} & {*words}:
        words += ["--workers", "0"]
    if AT_START & {*(env or {})}:
        result = subprocess.run(
            [PIPELINE, *words],
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
            timeout=300,
            check=False,
        )
    else:
        result = run_forked(words, env)
    assert result.returncode == code, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    return result


def start(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The command, running in a process group of its own."""
    return subprocess.Popen(
        [PIPELINE, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )


def wait_until(found: Callable[[], object], what: str) -> None:
    """Until the function finds something; a minute at most."""
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


def wait_for_first_shard(out: Path) -> None:
    """Until a run into `out` has written one."""
    pattern = f".{out.name}.partial-*/.records/[!.]*"
    wait_until(lambda: list(out.parent.glob(pattern)), "the first shard")


def marked_processes(name: str, value: object) -> list[psutil.Process]:
    """All processes that have this variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == str(value):
                found.append(process)
    return found


class Cluster:
    """A Dask scheduler and workers started by hand, a thread each; to be used in a `with`."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None) -> None:
        self.folder, self.env = folder, {**os.environ, **(env or {})}
        self.processes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"

    def scheduler(self, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        port = self.address.rpartition(":")[2]
        return self._start("dask_scheduler", "--host", "127.0.0.1", "--port", port, env=env)

    def worker(
        self, env: dict[str, str] | None = None, before: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """before: A command that starts it, such as `unshare`."""
        folder = ("--local-directory", str(self.folder))
        options = (self.address, "--nthreads", "1", *folder)
        return self._start("dask_worker", *options, env=env, before=before)

    def _start(
        self,
        name: str,
        *arguments: str,
        env: dict[str, str] | None = None,
        before: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{name}", *arguments, "--no-dashboard"]
        process = subprocess.Popen(
            [*before, *command],
            stderr=subprocess.DEVNULL,
            env={**self.env, **(env or {})},
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # Dask's own, while it starts its worker
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_script(script: str, *arguments: object) -> None:
    """Runs Python source in a process of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run_killed(
    *arguments: object, step: str, victim: str, folder: Path, number: int = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    """Starts the command in a process group of its own, with a SIGKILL, or the signal of another
    number, for the whole group (victim="group") or for the one process that gets there
    (victim="process") when it first reaches the step (see tests/kill). Its exit code is negative
    where it was killed itself."""
    marker = folder / f"killed-{step}"
    path = os.pathsep.join([str(KILL), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"PYTHONPATH": path, "KILL_STEP": step, "KILL_VICTIM": victim, "KILL_MARKER": str(marker)}
    env["KILL_SIGNAL"] = str(int(number))
    result = run_forked([*map(str, arguments)], env)
    assert marker.exists(), f"never reached {step}: {result.stderr}"
    return result


def run_killed_after(seconds: float, *arguments: object) -> bool:
    """Starts the command and kills its whole process group after a while; whether it was killed."""
    process = subprocess.Popen(
        [PIPELINE, *map(str, arguments)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def tree_hash(folder: Path) -> dict[str, str]:
    """Every file below the folder, hidden ones included, and the sha256 of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def leftovers(out: Path) -> list[str]:
    """What lies beside an output under its name with a dot, and is not its index."""
    job = json.loads((out / "_manifest.json").read_text())["job_sha256"]
    known = f".{out.name}.index-{job[:16]}.parquet"
    beside = sorted(path.name for path in out.parent.iterdir())
    return [name for name in beside if name.startswith(f".{out.name}") and name != known]


def write_photos(folder: Path, n: int = 12, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A folder of small PNG files with random pixels, a subfolder a class; the same every time."""
    rng = np.random.default_rng(1)
    for i in range(n):
        path = folder / classes[i % len(classes)] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = 20 + i % 3, 24
        cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), np.uint8))
    return folder


def fill_up(path: Path) -> None:
    """Takes all the room of a disk with one file."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
