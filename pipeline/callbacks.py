"""Python functions that TensorFlow's threads call, and how they come to an end with the process.

A thread that wants Python's lock while the interpreter ends is ended by it, which TensorFlow's do
not survive: a process that leaves a dataset half read would abort, or hang, after all its work.

Source: https://docs.python.org/3.11/c-api/init.html, `PyGILState_Ensure` and `PyEval_RestoreThread`
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from functools import cache, wraps
from math import inf
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
# Between two calls of a dataset are some 100 µs; once they fail, its buffers are full after a few.
QUIET_S = 0.2
PATIENCE_S = 2.0  # for the calls that are being answered


class Callbacks:
    """What threads are calling now; after `end` every call fails, and soon none comes."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.n_running, self.last, self.is_over = 0, -inf, False

    def allow(self, function: Callable[P, R]) -> Callable[P, R]:
        """The same function, to be called by any thread until the end. Raises: StopIteration after
        it, which `tf.numpy_function` takes without a word."""

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            self._count(1)
            try:
                if self.is_over:
                    raise StopIteration
                return function(*args, **kwargs)
            finally:
                self._count(-1)

        return called

    def _count(self, n: int) -> None:
        with self.changed:
            self.n_running += n
            self.last = time.monotonic()
            self.changed.notify_all()

    def end(self) -> None:
        """Returns when no call has come for `QUIET_S`, or after `PATIENCE_S` all the same."""
        give_up = time.monotonic() + PATIENCE_S
        with self.changed:
            self.is_over = True
            while (now := time.monotonic()) < give_up:
                until = give_up if self.n_running else min(give_up, self.last + QUIET_S)
                if until <= now:
                    return
                self.changed.wait(until - now)


@cache
def callbacks() -> Callbacks:
    """Those of this process."""
    found = Callbacks()
    atexit.register(found.end)
    return found
