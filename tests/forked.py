"""Real commands without the half second that each would take for its imports, or the five that
trainings would.

Run as a script, this is a process that has imported the modules it is told, and started nothing of
them. Each command is a fork of it: its arguments, environment, folder, output and exit code are its
own.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path

TIMEOUT_S = 300
KILL = Path(__file__).parent / "kill"
MODULES = (
    "cli",
    "pipeline.carry",
    "pipeline.check",
    "pipeline.offline",
    "pydantic",
    "rich.progress",
)
# Not for all: a process ends more slowly with them.
STORAGE_MODULES = (*MODULES, "s3fs", "upath")
SCRIPT = "-c"  # before Python source that uses TensorFlow, and its arguments
TRAINING = {"train", "evaluate", "crossval", "ablate", "compare", "visualize", "--online", SCRIPT}
TRAINING_MODULES = (
    *MODULES,
    "distributed.system",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "tensorflow",
    "trainers.results",
    "trainers.train",
)


@cache
def server(*modules: str) -> subprocess.Popen[str]:
    """The process that forks; it ends when this one does."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, *modules],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(process.communicate)
    return process


def modules_for(words: list[str], env: dict[str, str]) -> tuple[str, ...]:
    if TRAINING & {*words}:
        return TRAINING_MODULES
    return STORAGE_MODULES if "AWS_ENDPOINT_URL" in env else MODULES


def run_forked(
    words: list[str], env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished command `pipeline WORDS`, or script; after five minutes it ends with -14.

    env: What its environment has besides this process's. With a step to be killed at (see
      `tests/kill`) it has a process group of its own.
    """
    env = {**os.environ, **(env or {})}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)]
        process = server(*modules_for(words, env))
        assert process.stdin is not None
        assert process.stdout is not None
        json.dump([words, env, os.getcwd(), *files], process.stdin)
        print(file=process.stdin, flush=True)
        code = int(process.stdout.readline())
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


def serve() -> None:
    """Runs what is asked for, one after the other; comes back in each child too, to its command."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            words, environment, folder, out, err = json.loads(line)
            signal.alarm(TIMEOUT_S)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            for file, number in ((os.devnull, 0), (out, 1), (err, 2)):
                os.dup2(os.open(file, os.O_RDWR), number)
            sys.argv = ["pipeline", *words]
            if "KILL_STEP" in environment:
                os.setsid()
                runpy.run_path(str(KILL / "sitecustomize.py"))  # as Python does when it starts
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    for name in sys.argv[1:]:
        import_module(name)
    gc.freeze()
    serve()
    if sys.argv[1:2] == [SCRIPT]:
        source = sys.argv.pop(2)
        del sys.argv[0]
        exec(source, {"__name__": "__main__"})
    else:
        sys.modules["cli"].main()
