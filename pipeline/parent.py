"""A process that must not live on without the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent(pid: int) -> None:
    """Has this process killed when its parent, the process `pid`, ends in whatever way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pid:  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)
