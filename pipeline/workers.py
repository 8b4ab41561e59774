"""Runs tasks: in this process, on local worker processes, or on a Dask cluster."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from multiprocessing import forkserver, get_context, resource_tracker
from typing import TYPE_CHECKING, TypeVar

from datasets.errors import EnvironmentFailed

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")
# Workers killed at random must not end a run; a task that kills ten in a row will kill them all.
ALLOWED_DEATHS = 10
WAIT_FOR_WORKERS_S = 60


def start(n_workers: int, scheduler: str | None, stack: ExitStack) -> Callable[[], Client]:
    """Begins to connect, in a thread; what it gives waits for the client, and raises what `connect`
    does. The connection, and the local processes, end with the stack."""
    inside, thread = ExitStack(), ThreadPoolExecutor(1)
    waiting = thread.submit(connect, n_workers, scheduler, inside)

    def close() -> None:
        wait([waiting])
        inside.close()
        thread.shutdown()

    stack.callback(close)
    return waiting.result


def run(
    function: Callable[[T], R],
    tasks: Sequence[T],
    n_workers: int,
    scheduler: str | None,
    started: Callable[[], Client] | None,
    on_ready: Callable[[], None] = lambda: None,
) -> Iterator[R]:
    """The results of `function` on each task, as they come; tasks are started in their order.

    Args:
      n_workers: Local processes; with 0, or where there is only one task, this process does it.
      scheduler: Address of a running Dask scheduler, used instead of local processes.
      started: From `start`, where that was called before the tasks were known.
      on_ready: Called once, when the workers are there and the first task starts.
    Raises: what the function raises; EnvironmentFailed if workers keep dying on one task or the
      scheduler cannot be reached.
    """
    if scheduler is None and (n_workers == 0 or len(tasks) <= 1):
        on_ready()
        yield from map(function, tasks)
        return
    with ExitStack() as stack:
        wanted = min(n_workers, len(tasks))
        client = started() if started else connect(wanted, scheduler, stack)
        if started and client.cluster is not None:
            client.cluster.scale(wanted)  # the number of tasks was not known
        on_ready()
        yield from submit(client, function, tasks)


def connect(n_workers: int, scheduler: str | None, stack: ExitStack) -> Client:
    """A client of the running cluster, or of a local one that ends with the stack."""
    if scheduler is None:
        # Ctrl-C at a terminal reaches every process, but this one ends the others: what is started
        # by a thread that blocks it never sees it. (The tracker would unblock it, if made here.)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        stack.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGINT})
        start_fork_server()
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    stack.enter_context(
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
                "distributed.worker.multiprocessing-method": "forkserver",
                "distributed.logging.distributed": "critical",
                "distributed.worker.profile.enabled": False,
            }
        )
    )
    if scheduler is None:
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="pipeline-", ignore_cleanup_errors=True)
        )
        cluster = stack.enter_context(
            LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                # Any free port on this machine: the default one is fixed, open to the network, and
                # warns where a second run finds it taken.
                dashboard_address="127.0.0.1:0",
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
            )
        )
        client = Client(cluster)
        stack.callback(client.close)  # from any thread, where the client as a context is of one
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return client
    try:
        client = Client(scheduler, timeout=20)
        stack.callback(client.close)
    except Exception as err:  # what answers there may be anything, and say anything
        raise EnvironmentFailed(
            f"--scheduler {scheduler}: no Dask scheduler answers there; start one with "
            "`dask scheduler` and give its address, such as tcp://127.0.0.1:8786"
        ) from err
    try:
        client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS_S)
    except TimeoutError as err:
        raise EnvironmentFailed(
            f"--scheduler {scheduler}: no worker came in {WAIT_FOR_WORKERS_S} s; start some with "
            f"`dask worker {scheduler}`"
        ) from err
    return client


def start_fork_server() -> None:
    """Starts what local workers are forked from: a process that has imported Dask, while this one
    does, and nothing else. Never this process: OpenCV hangs in a fork, which keeps all locks."""
    get_context("forkserver").set_forkserver_preload(["distributed.nanny", "distributed.worker"])
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # or NumPy would start a thread in it
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = before


def submit(client: Client, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    """Results as they come; a task whose worker dies is run again on another."""
    from distributed import KilledWorker, as_completed

    # The last tasks decide when a run ends, so the largest come first (the caller sorts them).
    futures = [
        client.submit(function, task, pure=False, priority=-i) for i, task in enumerate(tasks)
    ]
    for future in as_completed(futures):
        try:
            yield future.result()
        except KilledWorker as err:
            raise EnvironmentFailed(
                f"workers died {ALLOWED_DEATHS} times on one task; look at the memory of the "
                "workers and at the policy's library ops: no input by itself is the cause"
            ) from err
        future.release()
