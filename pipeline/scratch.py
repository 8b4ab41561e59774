"""The folder in which this process and its local workers keep what ends with them.

A process killed with SIGKILL removes nothing: the next `pipeline augment`, of any job, sweeps what
the dead have left. Which are dead is told by a lock that the kernel frees.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from contextlib import ExitStack
from functools import cache
from multiprocessing import process
from pathlib import Path

from datasets.commit import hold
from datasets.errors import OutputBusy

PREFIX = "pipeline-"
SEMAPHORES = Path("/dev/shm")  # where Linux shows them, as sem.NAME


@cache
def scratch_folder() -> Path:
    """An empty folder that goes when this process ends; sockets and semaphores of its
    `multiprocessing` are in it or named after it."""
    sweep()
    folder = root() / f"{PREFIX}{secrets.token_hex(4)}"
    stack = ExitStack()
    stack.enter_context(hold(folder))
    folder.mkdir(mode=0o700)
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    # No public name for these: by default they are `/mp` and a `pymp-` folder, of nobody.
    process.current_process()._config.update(  # type: ignore[attr-defined]
        semprefix=f"/{folder.name}", tempdir=str(folder)
    )
    atexit.register(stack.close)
    return folder


def root() -> Path:
    """Where these folders are: in that for temporary files, unless its name is too long."""
    found = Path(tempfile.gettempdir())
    # Names of semaphores may have 31 characters, those of sockets 107 with the path; 36 are ours.
    return found if len(os.fsencode(found)) <= 70 else Path("/tmp")


def sweep() -> None:
    """Removes the folders and semaphores of this user's processes that are gone."""
    for lock in root().glob(f".{PREFIX}*.lock"):
        folder = lock.with_name(lock.name[1 : -len(".lock")])
        try:
            if lock.stat().st_uid == os.geteuid():
                with hold(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    for semaphore in SEMAPHORES.glob(f"sem.{folder.name}-*"):
                        semaphore.unlink(missing_ok=True)
        except (OutputBusy, FileNotFoundError):  # alive, or swept by another at this moment
            continue
