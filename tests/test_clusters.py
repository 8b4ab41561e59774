"""Runs on Dask clusters that others started, and what is left when processes are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from datasets.errors import EnvironmentFailed
from pipeline import cluster, workers
from pipeline.workers import connect
from tests.running import (
    Cluster,
    marked_processes,
    run,
    run_script,
    start,
    tree_hash,
    wait_for_first_shard,
)

CLOCK = Path(__file__).parents[1] / "benchmarks" / "clock"
STOPS_WITHIN_S = 5  # what is promised
JOB = ("augment", "--limit", "500", "--copies", "2", "--block-samples", "64")
# Enough for something to happen meanwhile.
LONG = (
    "augment",
    "--limit",
    "1000",
    "--copies",
    "40",
    "--block-samples",
    "16",
    "--no-eval-splits",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(*LONG, "--out", out)
    return tree_hash(out)


def another_version(folder: Path, package: str) -> dict[str, str]:
    """The environment of processes that find this version of a package installed first."""
    installed = folder / f"{package.replace('-', '_')}-1.2.3.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2.3\n")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def workers_of(nanny: psutil.Popen | int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(nanny).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]


def test_a_cluster_started_by_hand_writes_the_same_bytes(tmp_path: Path) -> None:
    run(*JOB, "--workers", 0, "--out", tmp_path / "here" / "out")
    with Cluster(tmp_path) as dask:
        dask.scheduler(), dask.worker(), dask.worker()
        run(*JOB, "--scheduler", dask.address, "--out", tmp_path / "there" / "out")
    assert tree_hash(tmp_path / "here" / "out") == tree_hash(tmp_path / "there" / "out")


def test_what_local_workers_are_forked_from_has_no_thread_that_a_fork_could_hurt() -> None:
    script = """
import os
from pathlib import Path
import pipeline.forked
for thread in Path("/proc/self/task").iterdir():
    if int(thread.name) != os.getpid():
        print((thread / "comm").read_text(), end="")
"""
    command = [sys.executable, "-W", "error", "-c", script]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    told = subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout
    assert told in ("jemalloc_bg_thd\n", "")  # it is told of forks by the system


def test_local_workers_that_die_while_they_start_are_told_in_one_line(tmp_path: Path) -> None:
    script = tmp_path / "die.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    env = {"DASK_DISTRIBUTED__WORKER__PRELOAD": f"['{script}']"}
    said = run(*JOB, "--workers", 2, "--out", tmp_path / "out", code=5, env=env).stderr
    assert "one died while it started" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_local_workers_write_no_file_to_find_the_temporary_folder() -> None:
    found = list(workers.run(eval, ["__import__('tempfile').tempdir"] * 2, 2, None, None))
    assert found == [tempfile.gettempdir()] * 2


def test_no_scheduler_at_the_address_is_told_in_one_line(tmp_path: Path) -> None:
    result = run(*JOB, "--scheduler", "tcp://127.0.0.1:1", "--out", tmp_path / "out", code=5)
    assert "no Dask scheduler answers" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_address_is_a_mistake(tmp_path: Path) -> None:
    said = run(*JOB, "--scheduler", "localhost", "--out", tmp_path / "out", code=2).stderr
    assert said.startswith("pipeline: --scheduler localhost: missing port number")
    assert len(said.splitlines()) == 1


def test_a_scheduler_that_takes_connections_and_says_nothing_is_told_in_one_line(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        said = run(*JOB, "--scheduler", address, "--out", tmp_path / "out", code=5).stderr
    assert "no Dask scheduler answers" in said
    assert len(said.splitlines()) == 1


def test_a_stop_does_not_wait_for_a_scheduler_that_says_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        waiting = start(*JOB, "--scheduler", address, "--out", tmp_path / "out")
        silent.settimeout(60)
        with silent.accept()[0]:
            waiting.terminate()
            _, said = waiting.communicate(timeout=STOPS_WITHIN_S)
    assert waiting.returncode == 143
    assert said.splitlines()[-1].startswith("pipeline: stopped")
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_told_in_one_line_while_a_scheduler_says_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        wrong = ("--encoding", "raw", "--quality", 50, "--out", tmp_path / "out")
        said = run(*JOB, "--scheduler", address, *wrong, code=2).stderr
    assert said.startswith("pipeline: --quality 50")
    assert len(said.splitlines()) == 1


def test_a_cluster_without_workers_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WAIT_FOR_WORKERS_S", 1)
    said: list[str] = []
    # The scheduler may still be starting when the client comes, which waits for it.
    with Cluster(tmp_path) as dask, ExitStack() as stack:
        dask.scheduler()
        client = connect(0, dask.address, stack)
        with pytest.raises(EnvironmentFailed, match="no worker came in 1 s; start some with"):
            cluster.check_cluster(client, dask.address, None, lambda text, **_: said.append(text))
    assert said == [f"--scheduler {dask.address}: has no worker; waiting for one"]


@pytest.mark.parametrize("package", ["numpy", pytest.param("dask", marks=pytest.mark.slow)])
def test_a_worker_with_another_version_is_named_before_work_starts(
    tmp_path: Path, package: str
) -> None:
    out = tmp_path / "out"
    with Cluster(tmp_path) as dask:
        dask.scheduler(), dask.worker(another_version(tmp_path / "other", package))
        result = run(*JOB, "--scheduler", dask.address, "--out", out, "--quiet", code=2)
    (line,) = result.stderr.splitlines()
    assert "worker tcp://127.0.0.1:" in line
    assert f"has {package} 1.2.3, here it is " in line
    assert not any(tmp_path.glob(".out.partial-*/.records/*"))


def test_a_scheduler_with_another_version_is_named_before_work_starts(tmp_path: Path) -> None:
    with Cluster(tmp_path) as dask:
        dask.scheduler(another_version(tmp_path / "other", "dask")), dask.worker()
        result = run(*JOB, "--scheduler", dask.address, "--out", tmp_path / "out", code=2)
    assert "the scheduler has dask 1.2.3, here it is " in result.stderr


def test_a_worker_with_another_version_that_came_late_writes_nothing(tmp_path: Path) -> None:
    late = f"""
import os, subprocess, sys
from pathlib import Path
from pipeline.plan import AugmentConfig, make_plan
from pipeline.report import Report
import pickle
config = AugmentConfig("digits", Path("."), out=Path({str(tmp_path / "out")!r}))
task = make_plan(config, Report(quiet=True)).tasks()[0]
task.folder.mkdir()
worker = "import pickle, sys; from pipeline.shard import write_shard; " \\
    "write_shard(pickle.load(sys.stdin.buffer))"
env = {{**os.environ, **{another_version(tmp_path / "other", "pillow")!r}}}
done = subprocess.run([sys.executable, "-c", worker], input=pickle.dumps(task), env=env,
    stderr=subprocess.PIPE)
assert b"differs from the machine that planned the job (pillow was " in done.stderr, done.stderr
assert list(task.folder.iterdir()) == []
"""
    run_script(late)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_worker_that_does_not_see_the_output_is_named_before_work_starts(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    elsewhere = f'mount -t tmpfs tmpfs {shared} && exec "$@"'
    with Cluster(tmp_path) as dask:
        dask.scheduler()
        dask.worker(before=("unshare", "--mount", "sh", "-c", elsewhere, "sh"))
        result = run(*JOB, "--scheduler", dask.address, "--out", shared / "out", code=5)
    assert "does not see" in result.stderr
    assert "keep data set and --out on storage that all workers share" in result.stderr


@pytest.mark.slow
def test_a_cluster_that_starts_workers_when_there_is_work_writes_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    adaptive = """
import subprocess, sys
from distributed import LocalCluster
if __name__ == "__main__":
    any_port = {"dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=0, threads_per_worker=1, **any_port) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="100ms")
        job = [*sys.argv[1:], "--scheduler", cluster.scheduler_address]
        subprocess.run(job, check=True)
"""
    from tests.running import PIPELINE

    script = tmp_path / "adaptive.py"  # its workers import it
    script.write_text(adaptive)
    out = tmp_path / "out"
    run_script(
        "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)",
        *(script, PIPELINE, *LONG, "--out", out),
    )
    assert tree_hash(out) == undisturbed


@pytest.mark.slow
def test_tasks_of_a_retired_worker_go_on_on_another_that_came_since(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    with Cluster(tmp_path) as dask:
        dask.scheduler()
        first = dask.worker()
        job = start(*LONG, "--scheduler", dask.address, "--out", out)
        wait_for_first_shard(out)
        first.terminate()
        first.wait()
        dask.worker()
        _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert tree_hash(out) == undisturbed


@pytest.mark.slow
def test_a_stopped_worker_does_not_hang_the_run(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    with Cluster(tmp_path, {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}) as dask:
        dask.scheduler(), dask.worker()
        victim = dask.worker()
        job = start(*LONG, "--scheduler", dask.address, "--out", out)
        wait_for_first_shard(out)
        for worker in workers_of(victim.pid):
            worker.suspend()
        _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert tree_hash(out) == undisturbed


def test_a_scheduler_that_dies_ends_the_run_and_a_new_one_goes_on(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    with Cluster(tmp_path) as dask:
        scheduler = dask.scheduler()
        dask.worker()
        job = start(*LONG, "--scheduler", dask.address, "--out", out, "--quiet")
        wait_for_first_shard(out)
        scheduler.kill()
        _, said = job.communicate(timeout=15)
    assert job.returncode == 5, said
    assert said.count("\n") == 1, said
    assert "the Dask scheduler is gone; start it again and run the same command" in said
    with Cluster(tmp_path) as dask:
        dask.scheduler(), dask.worker()
        assert "resuming: " in run(*LONG, "--scheduler", dask.address, "--out", out).stderr
    assert tree_hash(out) == undisturbed


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_the_next_run_sweeps_what_a_killed_one_left_and_leaves_a_live_one_alone(
    tmp_path: Path, temporary: Path, undisturbed: dict[str, str]
) -> None:
    env = {"TMPDIR": str(temporary)}
    dead = start(*LONG, "--out", tmp_path / "dead" / "out", env=env)
    wait_for_first_shard(tmp_path / "dead" / "out")
    os.killpg(dead.pid, signal.SIGKILL)
    dead.communicate()
    (left,) = temporary.glob("pipeline-*")
    semaphores = list(Path("/dev/shm").glob(f"sem.{left.name}-*"))
    assert semaphores
    live = start(*LONG, "--out", tmp_path / "live" / "out", env=env)
    wait_for_first_shard(tmp_path / "live" / "out")
    live.send_signal(signal.SIGSTOP)
    (of_live,) = temporary.glob("pipeline-*")
    assert of_live != left
    assert not any(semaphore.exists() for semaphore in semaphores)
    run(*LONG, "--out", tmp_path / "dead" / "out", env=env)
    assert list(temporary.glob("pipeline-*")) == [of_live]
    live.send_signal(signal.SIGCONT)
    _, said = live.communicate(timeout=120)
    assert live.returncode == 0, said
    assert list(temporary.iterdir()) == []
    assert tree_hash(tmp_path / "live" / "out") == undisturbed
    assert tree_hash(tmp_path / "dead" / "out") == undisturbed


def test_a_run_that_stands_still_since_the_clock_was_set_back_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless")  # nobody writes to it, so that its reader gets no result
    run_script(f"""
import time
from pathlib import Path
real, back_s = time.time, 0
time.time = lambda: real() - back_s
from datasets.errors import EnvironmentFailed
from pipeline import workers
if __name__ == "__main__":
    workers.SAY_EVERY_S = 1
    paths = [Path("/dev/null"), Path({str(tmp_path)!r}, "endless")]
    results = workers.run(Path.read_bytes, paths, 2, None, None)
    next(results)
    back_s = 3600
    try:
        next(results)
    except EnvironmentFailed as err:
        assert "set back by 3,600 s" in str(err)
    else:
        raise AssertionError
""")


def test_a_run_that_stands_still_since_the_schedulers_clock_was_set_back_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless, jumped = tmp_path / "endless", tmp_path / "jumped"
    os.mkfifo(endless)
    path = f"{CLOCK}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    clock = {"PYTHONPATH": path, "CLOCK_FILE": str(jumped), "CLOCK_JUMP": "-3600"}
    monkeypatch.setattr(workers, "SAY_EVERY_S", 1)
    with Cluster(tmp_path) as dask:
        dask.scheduler(clock), dask.worker()
        paths = [Path("/dev/null"), endless]
        results = workers.run(Path.read_bytes, paths, 0, dask.address, None)
        next(results)
        jumped.touch()
        with pytest.raises(EnvironmentFailed, match=r"--scheduler .*: its clock was .* by 3,600 s"):
            next(results)
        endless.open("wb").close()  # so that who reads it can end


def test_a_run_without_workers_sweeps_too(tmp_path: Path, temporary: Path) -> None:
    (temporary / "pipeline-0123abcd").mkdir()
    (temporary / ".pipeline-0123abcd.lock").touch()
    job = ("augment", "--limit", 20, "--copies", 0, "--out", tmp_path / "out", "--quiet")
    run(*job, env={"TMPDIR": str(temporary)})
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "stopped",
    ["nothing", *(pytest.param(s, marks=pytest.mark.slow) for s in ("coordinator", "everything"))],
)
def test_no_process_outlives_a_killed_coordinator(tmp_path: Path, stopped: str) -> None:
    job = start(*LONG, "--out", tmp_path / "out", env={"MARK_OF_TEST": str(tmp_path)})
    wait_for_first_shard(tmp_path / "out")
    others = [p for p in marked_processes("MARK_OF_TEST", tmp_path) if p.pid != job.pid]
    assert len(others) >= 4  # a fork server, a resource tracker, two workers
    if stopped == "coordinator":
        job.send_signal(signal.SIGSTOP)
    if stopped == "everything":
        os.killpg(job.pid, signal.SIGSTOP)
    job.kill()
    job.wait()  # not for the end of its standard error, which the others hold open
    if stopped == "everything":
        for process in others:
            process.resume()
    _, alive = psutil.wait_procs(others, timeout=10)
    assert alive == []
    job.communicate()
