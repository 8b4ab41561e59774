"""Kills a process, or its whole group, the moment it reaches a step of the commit protocol; or
sends it another signal.

Python imports this at start-up where the folder is on PYTHONPATH; worker processes inherit that. So
the product has no hook for its tests.
"""

import contextlib
import os
import re
import sys
import threading

# What happens right before the action of that name; so the state is that after the one before.
STEPS = {
    "open shard": ("open", r"\.partial-\w+/\.train-[^/]+\.tmp$"),
    "write shard": ("open", r"\.partial-\w+/\.train-[^/]+\.tmp$"),
    "rename shard": ("os.rename", r"\.partial-\w+/\.train-[^/]+\.tmp$"),
    "write record": ("open", r"\.records/\.train[^/]+\.tmp$"),
    "rename record": ("os.rename", r"\.records/\.train[^/]+\.tmp$"),
    "rename fifth record": ("os.rename", r"\.records/\.train[^/]+\.tmp$", 5),
    "link shard": ("os.link", r"/out/train-[^/]+$"),
    "rename index": ("os.rename", r"/\.\.out\.index-[^/]+\.tmp$"),
    "rename manifest": ("os.rename", r"/\._manifest\.json[^/]+\.tmp$"),
    "remove records": ("shutil.rmtree", r"/\.records$"),
    "rename success": ("os.rename", r"/\._SUCCESS[^/]+\.tmp$"),
    "move old aside": ("os.rename", r"/out$"),
    "commit": ("os.rename", r"\.partial-\w+$"),
    "rename latest": ("os.rename", r"/\.latest\.tmp$"),
    "remove version": ("shutil.rmtree", r"/\.\w+\.removed$"),
    "remove old": ("shutil.rmtree", r"\.replaced-\w+$"),
    "rename state": ("os.rename", r"/\.state\.npz[^/]+\.tmp$"),
    "rename state again": ("os.rename", r"/\.state\.npz[^/]+\.tmp$", 2),
    "rename result": ("os.rename", r"/\.result\.json[^/]+\.tmp$"),
    "replace run": ("os.rename", r"\.partial-\w+/out$"),
    "remove index": ("os.remove", r"/\.out\.index-\w+\.parquet$"),
    "remove lock": ("os.remove", r"\.lock$"),
}


def kill() -> None:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(os.environ["KILL_MARKER"], os.O_CREAT | os.O_EXCL))
        number = int(os.environ["KILL_SIGNAL"])
        if os.environ["KILL_VICTIM"] == "group":
            os.killpg(os.getpgid(0), number)
        else:
            os.kill(os.getpid(), number)


def kill_once_written(path: str) -> None:
    """Waits until some bytes are in the file, then kills."""
    while True:
        with contextlib.suppress(OSError):
            if os.stat(path).st_size:
                kill()
                return


def watch(event: str, arguments: tuple) -> None:
    if event != wanted or not isinstance(arguments[0], str | os.PathLike):
        return
    path = os.fspath(arguments[0])
    if isinstance(path, str) and re.search(pattern, path):
        wait[0] -= 1
        if wait[0] > 0:
            return
        if os.environ["KILL_STEP"] == "write shard":
            threading.Thread(target=kill_once_written, args=(path,), daemon=True).start()
        else:
            kill()


if "KILL_STEP" in os.environ:
    wanted, pattern, *more = STEPS[os.environ["KILL_STEP"]]
    wait = more or [1]  # which time it is reached, from 1
    sys.addaudithook(watch)
