"""What happens to a run: each fault is a context in which the run is waited for.

What a fault does for a while is over when its block begins; what stays until the run has ended is
fixed after the block. LookupError: there is nothing to hit at this moment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import psutil
from scene import Scene, mount

STOPS_WITHIN_S = 5
Fault = Callable[[Scene], "contextmanager[None]"]


def kill(process: psutil.Process | subprocess.Popen[bytes] | subprocess.Popen[str] | None) -> None:
    assert process is not None
    process.kill()


@contextmanager
def kill_group(scene: Scene) -> Iterator[None]:
    assert scene.run is not None
    os.killpg(scene.run.pid, signal.SIGKILL)
    yield


@contextmanager
def kill_coordinator(scene: Scene) -> Iterator[None]:
    kill(scene.run)
    yield


@contextmanager
def stop_and_kill_coordinator(scene: Scene) -> Iterator[None]:
    assert scene.run is not None
    scene.run.send_signal(signal.SIGSTOP)
    time.sleep(scene.random.uniform(0, 2))
    kill(scene.run)
    yield


@contextmanager
def kill_worker(scene: Scene) -> Iterator[None]:
    kill(scene.one_worker())
    yield


@contextmanager
def kill_nanny(scene: Scene) -> Iterator[None]:
    kill(scene.cluster[scene.random.choice([1, 2])])
    yield


@contextmanager
def kill_scheduler(scene: Scene) -> Iterator[None]:
    kill(scene.cluster[0])
    yield
    restart_cluster(scene)


def restart_cluster(scene: Scene) -> None:
    """If the run has one that was started by hand."""
    if scene.cluster:
        scene.end_cluster()
        scene.start_cluster()


@contextmanager
def terminate(scene: Scene) -> Iterator[None]:
    assert scene.run is not None
    scene.run.terminate()
    with suppress(subprocess.TimeoutExpired):
        scene.run.wait(STOPS_WITHIN_S)
        yield
        return
    raise AssertionError(f"still there {STOPS_WITHIN_S} s after SIGTERM")


@contextmanager
def stop_for_a_while(process: psutil.Process, scene: Scene, longest: float) -> Iterator[None]:
    process.suspend()
    time.sleep(scene.random.uniform(0.5, longest))
    with suppress(psutil.NoSuchProcess):  # its nanny may have given up on it
        process.resume()
    yield


def stop_worker(scene: Scene) -> contextmanager[None]:
    return stop_for_a_while(scene.one_worker(), scene, 10)


def stop_scheduler(scene: Scene) -> contextmanager[None]:
    return stop_for_a_while(psutil.Process(scene.cluster[0].pid), scene, 8)


def stop_coordinator(scene: Scene) -> contextmanager[None]:
    assert scene.run is not None
    return stop_for_a_while(psutil.Process(scene.run.pid), scene, 8)


@contextmanager
def full_disk(scene: Scene) -> Iterator[None]:
    ballast = scene.disk / "ballast"
    with suppress(OSError), ballast.open("wb", 0) as file:
        while True:
            file.write(bytes(2**20))
    yield
    ballast.unlink()


@contextmanager
def read_only(scene: Scene) -> Iterator[None]:
    """From the moment on when no file there is open for writing."""
    assert scene.run is not None
    while mount("-o", "remount,ro", str(scene.disk)) and scene.run.poll() is None:
        pass
    yield
    mount("-o", "remount,rw", str(scene.disk))


@contextmanager
def clock_jump(scene: Scene) -> Iterator[None]:
    (scene.folder / "jumped").touch()
    yield
    restart_cluster(scene)  # as the run says, where it stood still


def fail(scene: Scene, told: str, share: float) -> None:
    """From now on the storage does so to that share of requests."""
    assert scene.front is not None
    scene.front.fault = lambda _method, _path: told if scene.random.random() < share else None


def wait_at_most(scene: Scene, seconds: float) -> None:
    assert scene.run is not None
    with suppress(subprocess.TimeoutExpired):
        scene.run.wait(seconds)


@contextmanager
def fail_for_a_while(scene: Scene, told: str, most: float) -> Iterator[None]:
    """To a share of the requests, at most that one."""
    fail(scene, told, scene.random.uniform(0.1, most))
    wait_at_most(scene, scene.random.uniform(1, 5))
    fail(scene, told, 0)
    yield


@contextmanager
def fail_to_the_end(scene: Scene) -> Iterator[None]:
    fail(scene, scene.random.choice(["error", "drop"]), 1)
    yield
    fail(scene, "error", 0)


@contextmanager
def terminate_without_storage(scene: Scene) -> Iterator[None]:
    fail(scene, "drop", 1)
    wait_at_most(scene, scene.random.uniform(0.5, 2))
    with terminate(scene):
        yield
    fail(scene, "drop", 0)


@contextmanager
def restart_server(scene: Scene) -> Iterator[None]:
    """The server is killed, and another one takes its place after a while."""
    fail(scene, "drop", 1)
    # It ends what it has begun: killed, rclone leaves half an object, which no S3 does.
    time.sleep(0.3)
    scene.server.close()
    wait_at_most(scene, scene.random.uniform(0.5, 4))
    scene.start_server()
    fail(scene, "drop", 0)
    yield


ANYWHERE: dict[str, Fault] = {
    "SIGKILL of the coordinator": kill_coordinator,
    "SIGSTOP and SIGKILL of the coordinator": stop_and_kill_coordinator,
    "SIGKILL of a worker": kill_worker,
    "SIGTERM": terminate,
    "SIGSTOP of a worker for a while": stop_worker,
    "SIGSTOP of the coordinator for a while": stop_coordinator,
    "clock jumps by an hour": clock_jump,
}
LOCAL: dict[str, Fault] = {"SIGKILL of all at once": kill_group}
BY_HAND: dict[str, Fault] = {
    "SIGKILL of a nanny": kill_nanny,
    "SIGKILL of the scheduler": kill_scheduler,
    "SIGSTOP of the scheduler for a while": stop_scheduler,
}
WITH_MOUNTS: dict[str, Fault] = {"full disk": full_disk, "read-only output": read_only}
OF_STORAGE: dict[str, Fault] = {
    "storage answers errors for a while": partial(fail_for_a_while, told="error", most=0.9),
    "storage cuts connections for a while": partial(fail_for_a_while, told="drop", most=0.9),
    "storage is slow for a while": partial(fail_for_a_while, told="late", most=0.4),
    "storage is killed and started again": restart_server,
    "storage fails to the end of the run": fail_to_the_end,
    "SIGTERM while the storage is gone": terminate_without_storage,
}
