"""Library ops tried out before any work, in a process of their own: with nonsense for arguments one
may run for ever, or take all memory there is, and no signal reaches it in the library's loops.

Run as `python -m pipeline.trial POLICY SHAPES SECONDS PARENT` it is that process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from datasets.errors import PolicyError
from pipeline.library_ops import LibraryOp, run_one
from pipeline.parent import end_with_parent

TRIES = 8  # of an op on a size: some change the shape by chance
SECONDS = 60  # for one image
BYTES, BYTES_PER_BYTE = 4 * 2**30, 100  # of memory: whatever the image, and for each of its own


def try_out(
    ops: tuple[LibraryOp, ...], shapes: list[tuple[int, int, int]], seconds: int = SECONDS
) -> None:
    """Runs each op on an image of each (height, width, channels).

    Raises: PolicyError if one cannot run on it, changes its shape or type, or takes more
      seconds for one image, or more memory than 4 GB and a hundred times the image.
    """
    policy = "|".join(map(repr, ops))
    # -P: what lies in the current folder must not stand in for this package.
    command = [sys.executable, "-P", "-m", "pipeline.trial", policy, json.dumps(shapes)]
    command += [str(seconds), str(os.getpid())]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    *_, last = ["", *done.stdout.decode(errors="backslashreplace").splitlines()]
    if done.returncode == PolicyError.exit_code:
        raise PolicyError(last)
    if done.returncode == -signal.SIGALRM:
        raise PolicyError(f"{last}: takes more than {seconds} s; use smaller arguments")
    if done.returncode < 0:
        raise PolicyError(f"{last}: kills its process ({signal.Signals(-done.returncode).name})")
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="backslashreplace"))


def run_all(ops: tuple[LibraryOp, ...], shapes: list[tuple[int, int, int]], seconds: int) -> None:
    """Runs each op on each shape; a line says what comes next, in case that ends the process."""
    for op in ops:
        always = [certain(op).build("policy")]
        if op.is_group:  # what is in it, too: it may come once in a thousand images
            always.append(certain(op, deep=True).build("policy"))
        for height, width, channels in shapes:
            print(f"{op!r} on an image of {height}x{width} pixels", flush=True)
            image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
            for transform, seed in product(always, range(TRIES)):
                signal.alarm(seconds)  # nothing catches it: the process ends, whatever it does
                run_one(op, transform, image[..., 0] if channels == 1 else image, seed)
                signal.alarm(0)


def certain(op: LibraryOp, deep: bool = False) -> LibraryOp:
    """The op, always applied; deep: and so are all ops in it that are applied at all."""

    def inner(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(inner, value))
        is_used = isinstance(value, LibraryOp) and dict(value.arguments).get("p") != 0
        return certain(value, deep) if deep and is_used else value

    others = [(name, inner(value)) for name, value in op.arguments if name != "p"]
    return replace(op, arguments=(*others, ("p", 1.0)))


def serve(policy: str, shapes: list[tuple[int, int, int]], seconds: int) -> None:
    from pipeline.policy import parse_policy

    ops = parse_policy(policy).library
    largest = max(height * width * channels for height, width, channels in shapes)
    most = BYTES + BYTES_PER_BYTE * largest
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        run_all(ops, shapes, seconds)
    except PolicyError as err:
        print(" ".join(str(err).splitlines()))
        raise SystemExit(err.exit_code) from None


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    end_with_parent(int(sys.argv[4]))
    serve(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
