"""Runs tasks: in this process, on local worker processes, or on a Dask cluster."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from math import inf
from multiprocessing import forkserver, get_context, resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from datasets.errors import EnvironmentFailed, UserError, first_line
from pipeline.cluster import SAY_EVERY_S, check_cluster, look, say_no_worker
from pipeline.scratch import scratch_folder

if TYPE_CHECKING:
    import distributed
    from distributed import Client, LocalCluster

T = TypeVar("T")
R = TypeVar("R")
# Workers killed at random must not end a run; a task that kills ten in a row will kill them all.
ALLOWED_DEATHS = 10
# A local worker that has not moved for so long (stopped, or in swap) is restarted.
STILL_S = 60
CONNECT_S = 10
CONNECTS_WITHIN_S = 2.5  # where a run ends meanwhile: a scheduler may not answer for much longer
CLOSE_S = 1.5  # Dask waits 0.8 of it for what a local worker is doing, and then kills it
# What Dask holds at a time, a few for each thread, however many tasks there are.
MIN_WAITING, WAITING_A_THREAD = 64, 4
# Tasks that take less travel together: each message costs both sides about 3 ms.
BATCH_S = 1.0
LOOK_EVERY_S = 5.0  # for threads that came or went


def start(n_workers: int, scheduler: str | None, stack: ExitStack) -> Future[Client]:
    """The client to come, or what `connect` raises: a thread begins to connect. The connection, and
    the local processes, end with the stack, or soon after it where they are not there yet."""
    if scheduler is None:
        start_fork_server()
    import distributed  # noqa: F401  # not in the thread: both would compute, and wait for each other

    inside, is_over = ExitStack(), Event()
    connected: Future[Client] = Future()

    def begin() -> None:
        try:
            client = connect(n_workers, scheduler, inside)
            if is_over.is_set():  # who waited may have gone on
                inside.close()
            connected.set_result(client)
        except BaseException as err:
            connected.set_exception(err)

    def close() -> None:
        is_over.set()
        wait([connected], CONNECTS_WITHIN_S)
        if connected.done():
            inside.close()

    stack.callback(close)
    # The end of this process does not wait for it; local workers end with this process anyway.
    Thread(target=begin, daemon=True).start()
    return connected


def when_there(coming: Future[Client] | None, scheduler: str | None) -> Callable[[], bool]:
    """Tells whether the first worker is there, without waiting. Asking is work that waits for one,
    for which an adaptive cluster starts it.

    coming: From `start`; None where there will be no worker. It raises what `connect` does.
    """
    first: distributed.Future[Any] | None = None

    def is_there() -> bool:
        nonlocal first
        if coming is None or not coming.done():
            return False
        if scheduler is None:
            return True
        first = first or coming.result().submit(look, None, pure=False)
        return first.done()

    return is_there


def run(
    function: Callable[[T], R],
    tasks: Sequence[T],
    n_workers: int,
    scheduler: str | None,
    started: Future[Client] | None,
    shared: Path | None = None,
    say: Callable[..., None] = lambda text, **fields: None,
    on_ready: Callable[[], None] = lambda: None,
) -> Iterator[R]:
    """The results of `function` on each task, as they come; tasks are started in their order.

    Args:
      n_workers: Local processes; with 0, or where there is only one task, this process does it.
      scheduler: Address of a running Dask scheduler, used instead of local processes.
      started: From `start`, where that was called before the tasks were known.
      shared: A file that workers of a cluster must see.
      say: Told what the person who waits should know.
      on_ready: Called once, when the workers are there and the first task starts.
    Raises: what the function raises; EnvironmentFailed if workers keep dying on one task, or the
      scheduler cannot be reached or dies; what `check_cluster` does.
    """
    if not tasks or (scheduler is None and (n_workers == 0 or len(tasks) == 1)):
        on_ready()
        yield from map(function, tasks)
        return
    with ExitStack() as stack:
        wanted = min(n_workers, len(tasks))
        client = started.result() if started else connect(wanted, scheduler, stack)
        if client.cluster is not None and len(client.cluster.workers) < wanted:
            client.cluster.scale(wanted)  # the number of tasks was not known
        stack.enter_context(while_scheduler_lives(client, scheduler))
        if scheduler is not None:
            check_cluster(client, scheduler, shared, say)
        on_ready()
        yield from results(client, scheduler, function, tasks, say)


def connect(n_workers: int, scheduler: str | None, stack: ExitStack) -> Client:
    """A client of the running cluster, or of a local one that ends with the stack."""
    if scheduler is None:
        start_fork_server()
    import dask
    from distributed import Client, LocalCluster

    for name in ("distributed", "distributed.client"):  # which has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)
    stack.enter_context(
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
                "distributed.scheduler.worker-ttl": f"{STILL_S}s",
                "distributed.worker.multiprocessing-method": "forkserver",
                "distributed.logging.distributed": "critical",
                "distributed.worker.profile.enabled": False,
                "distributed.admin.tick.interval": "1s",  # 20 ms would be 3 % of a core here
                "distributed.worker.memory.monitor-interval": "1s",  # 100 ms: another 2 %
                "distributed.admin.system-monitor.interval": "10s",  # 500 ms: another 1 %
            }
        )
    )
    if scheduler is None:
        scratch = str(scratch_folder())
        stack.enter_context(dask.config.set({"temporary-directory": scratch}))
        try:
            cluster = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                # Any free port on this machine: the default one is fixed, open to the network, and
                # warns where a second run finds it taken.
                dashboard_address="127.0.0.1:0",
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
            )
        except RuntimeError as err:  # later deaths are Dask's to fix, not those before it knows
            raise EnvironmentFailed(
                f"--workers {n_workers}: one died while it started ({first_line(err)}); in a "
                'script of your own, call this below `if __name__ == "__main__":`; else look at '
                "the memory of this machine and run the same command again"
            ) from err
        stack.enter_context(cluster)
        stack.callback(cluster.sync, close_workers, cluster)
        client = Client(cluster)
        stack.callback(client.close)  # from any thread, where the client as a context is of one
        return client
    # Ours says it in one line, of all that matters, and stops.
    warnings.filterwarnings("ignore", message="Mismatched versions")
    try:
        greet(scheduler)
        client = Client(scheduler, timeout=CONNECT_S)
        stack.callback(client.close)
    except ValueError as err:  # before anything is asked
        raise UserError(
            f"--scheduler {scheduler}: {first_line(err)}; expected an address such as "
            "tcp://127.0.0.1:8786"
        ) from err
    except Exception as err:  # what answers there may be anything, and say anything
        raise EnvironmentFailed(
            f"--scheduler {scheduler}: no Dask scheduler answers there; start one with "
            "`dask scheduler` and give its address, such as tcp://127.0.0.1:8786"
        ) from err
    return client


async def close_workers(cluster: LocalCluster) -> None:
    """Ends the local processes sooner than Dask would, which gives them 4 s: who is told to stop
    has 5 s for all that there is to do."""
    import asyncio

    nannies = cluster.workers.values()
    await asyncio.gather(*(nanny.close(timeout=CLOSE_S) for nanny in nannies))


def greet(scheduler: str) -> None:
    """Raises: OSError if nothing greets there in time. Dask's client waits for that without end, as
    where the scheduler is stopped: its system still takes connections."""
    import asyncio

    from distributed.comm.core import connect
    from distributed.security import Security

    async def greeted() -> None:
        comm = await connect(scheduler, CONNECT_S, **Security().get_connection_args("client"))
        comm.abort()

    asyncio.run(asyncio.wait_for(greeted(), CONNECT_S))


def start_fork_server() -> None:
    """Starts what local workers are forked from: a process that has imported what they need, while
    this one imports Dask, and nothing else. Never this process: a fork keeps the locks that other
    threads hold. There is one, of PyArrow's allocator, which lets go of its own before a fork."""
    scratch_folder()  # before the first socket is made
    resource_tracker.ensure_running()  # which would unblock what is blocked next
    # Ctrl-C at a terminal reaches every process, but this one ends the others: what is started
    # while it is blocked never sees it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    get_context("forkserver").set_forkserver_preload(["pipeline.forked"])
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # or NumPy would start a thread in it
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = before


@contextmanager
def while_scheduler_lives(client: Client, scheduler: str | None) -> Iterator[None]:
    """Raises: EnvironmentFailed where the scheduler has died, whichever call to it notices."""
    from concurrent.futures import CancelledError

    from distributed.comm.core import CommClosedError

    try:
        yield
    except (CancelledError, OSError) as err:
        ended = isinstance(err, CancelledError | CommClosedError) or client.status != "running"
        if scheduler is None or not ended:
            raise
        raise EnvironmentFailed(
            f"--scheduler {scheduler}: the Dask scheduler is gone; start it again and run the same "
            "command, finished shards are kept"
        ) from err


def results(
    client: Client,
    scheduler: str | None,
    function: Callable[[T], R],
    tasks: Sequence[T],
    say: Callable[..., None],
) -> Iterator[R]:
    """Results as they come; a task whose worker dies is run again on another. Dask sees tasks that
    take little time in batches, and few of them at a time."""
    from distributed import KilledWorker

    finished: SimpleQueue[distributed.Future[tuple[float, list[R]]]] = SimpleQueue()
    waiting: dict[distributed.Future[tuple[float, list[R]]], range] = {}

    def send(some: range) -> None:
        batch = pickle.dumps([tasks[i] for i in some])
        future = client.submit(run_batch, function, batch, pure=False, priority=-some.start)
        waiting[future] = some
        future.add_done_callback(finished.put)

    sent, seconds, looked, threads = 0, inf, -inf, 1
    here_s, there_s = clock_s(), client.run_on_scheduler(clock_s) if scheduler else 0.0
    while waiting or sent < len(tasks):
        if time.monotonic() - looked > LOOK_EVERY_S:
            threads, looked = max(1, sum(client.nthreads().values())), time.monotonic()
        few = WAITING_A_THREAD * threads
        most = few if seconds == inf else max(few, MIN_WAITING)
        while sent < len(tasks) and len(waiting) < most:
            # The last batches decide when a run ends: they are small.
            n = max(1, min(-(-(len(tasks) - sent) // few), int(BATCH_S / seconds)))
            send(range(sent, sent + n))
            sent += n
        try:
            future = finished.get(timeout=SAY_EVERY_S)
        except Empty:
            refuse_set_back("this machine's clock", here_s, clock_s(), scheduler)
            if scheduler is not None:
                now_s = client.run_on_scheduler(clock_s)
                refuse_set_back(f"--scheduler {scheduler}: its clock", there_s, now_s, scheduler)
                if not client.nthreads():
                    say_no_worker(scheduler, say)
            continue
        some = waiting.pop(future)
        try:
            seconds, found = future.result()
        except KilledWorker as err:
            if len(some) > 1:  # one after the other may have died on each of them
                for i in some:
                    send(range(i, i + 1))
                continue
            raise EnvironmentFailed(
                f"workers died {err.allowed_failures} times on one task; look at the memory of the "
                "workers and at the policy's library ops: no input by itself is the cause"
            ) from err
        future.release()
        yield from found


def clock_s() -> float:
    """Of this machine: the same at any time, unless somebody sets the clock."""
    return time.time() - time.monotonic()


def refuse_set_back(whose: str, before_s: float, now_s: float, scheduler: str | None) -> None:
    """Raises: EnvironmentFailed where a clock went back; until it is what it was, Dask may hold a
    message there, and its scheduler does not look for dead workers."""
    if (back_s := before_s - now_s) > SAY_EVERY_S:
        first = "start scheduler and workers again, and then " if scheduler else ""
        raise EnvironmentFailed(
            f"{whose} was set back by {back_s:,.0f} s; Dask may delay messages for that long; "
            f"{first}run the same command again, finished shards are kept"
        )


def run_batch(function: Callable[[T], R], batch: bytes) -> tuple[float, list[R]]:
    """Seconds that a task took, and the result of each. The tasks come pickled, or Dask's scheduler
    would make objects of all that they hold, and pickle them again."""
    started = time.monotonic()
    tasks: list[T] = pickle.loads(batch)
    results = [function(task) for task in tasks]
    return max(1e-6, (time.monotonic() - started) / len(tasks)), results
