"""Runs of one real job, each with a fault at a random moment, and the same command again after it.

    python benchmarks/chaos.py [RUNS] [--seed SEED] [--only WORD]   200 runs, about 20 minutes

The job writes 320 photos x 5 in 32 shards with two workers: local ones, or a scheduler and two
workers started by hand. After the second command each output must be the undisturbed one byte for
byte; a reader that opened it again and again throughout must have found it absent or whole; no
process and no temporary file may be left. Prints a table of faults and outcomes.

Full disks and read-only folders need root (a mount of one's own); they are left out without it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from measure import PIPELINE, ROOT, scratch_folder
from offline import make_photos

sys.path.insert(0, str(ROOT))
from datasets.errors import UserError
from datasets.index import index_path
from datasets.manifest import damages, read_manifest, sha256_file

HANGS_AFTER_S, STOPS_WITHIN_S, GONE_WITHIN_S = 180, 5, 10
SEMAPHORES = Path("/dev/shm")
DISK_MB = 256
TTL = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}  # of clusters started by hand
FINE_CODES = {0, 5, 143, -signal.SIGKILL}


@dataclass
class Scene:
    """One run: its folder (`disk` is a file system of its own where that can be), its processes."""

    folder: Path
    photos: Path
    random: random.Random
    address: str | None = None
    run: subprocess.Popen[str] | None = None
    cluster: list[subprocess.Popen[bytes]] = field(default_factory=list)
    scratch: set[str] = field(default_factory=set)

    @property
    def out(self) -> Path:
        return self.folder / "disk" / "out"

    @property
    def environment(self) -> dict[str, str]:
        jump = self.random.choice([-3600, 3600])
        return {
            **os.environ,
            **TTL,
            "CHAOS_RUN": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": f"{ROOT / 'benchmarks' / 'clock'}{os.pathsep}{ROOT}",
            "CLOCK_FILE": str(self.folder / "jumped"),
            "CLOCK_JUMP": str(jump),
        }

    def start_job(self) -> subprocess.Popen[str]:
        options = ["--dataset", str(self.photos), "--image-size", "96", "--encoding", "png"]
        options += ["--policy", "standard", "--copies", "4", "--block-samples", "10", "--quiet"]
        where = ["--scheduler", self.address] if self.address else ["--workers", "2"]
        self.run = subprocess.Popen(
            [PIPELINE, "augment", *options, "--split", "all", *where, "--out", str(self.out)],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self.run

    def start_cluster(self) -> None:
        """A scheduler and two workers, each with its nanny."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.address = f"tcp://127.0.0.1:{port}"
        dask = [sys.executable, "-m", "distributed.cli"]
        scheduler = [f"{dask[2]}.dask_scheduler", "--host", "127.0.0.1", "--port", port]
        worker = [f"{dask[2]}.dask_worker", self.address, "--nthreads", "1"]
        self.cluster = [
            subprocess.Popen(
                [*dask[:2], *command, "--no-dashboard"],
                env=self.environment | {"DASK_TEMPORARY_DIRECTORY": str(self.folder / "dask")},
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for command in (scheduler, worker, worker)
        ]

    def end_cluster(self) -> None:
        for process in reversed(self.cluster):
            process.terminate()
        for process in self.cluster:
            try:
                process.wait(GONE_WITHIN_S)
            except subprocess.TimeoutExpired:  # Dask's own, in the middle of restarting a worker
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.cluster = []

    def processes(self) -> list[psutil.Process]:
        """All that this run has started, and what those have: by a variable they inherit."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get("CHAOS_RUN") == str(self.folder):
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes that do the work: children of the fork server, or of nannies."""
        assert self.run is not None
        parents = [psutil.Process(p.pid) for p in self.cluster[1:]]
        if not self.cluster:
            own = psutil.Process(self.run.pid).children()
            parents = [p for p in own if "forkserver" in " ".join(p.cmdline())]
        children = [child for parent in parents for child in parent.children()]
        return [p for p in children if "resource_tracker" not in " ".join(p.cmdline())]

    def one_worker(self) -> psutil.Process:
        """Raises: LookupError if there is none at this moment."""
        try:
            return self.random.choice(self.workers())
        except psutil.Error as err:
            raise LookupError from err


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
    ballast = scene.folder / "disk" / "ballast"
    with suppress(OSError), ballast.open("wb", 0) as file:
        while True:
            file.write(bytes(2**20))
    yield
    ballast.unlink()


@contextmanager
def read_only(scene: Scene) -> Iterator[None]:
    """From the moment on when no file there is open for writing."""
    disk = str(scene.folder / "disk")
    assert scene.run is not None
    while mount("-o", "remount,ro", disk) and scene.run.poll() is None:
        pass
    yield
    mount("-o", "remount,rw", disk)


@contextmanager
def clock_jump(scene: Scene) -> Iterator[None]:
    (scene.folder / "jumped").touch()
    yield


def mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], check=False, stderr=subprocess.DEVNULL).returncode


Fault = Callable[[Scene], "contextmanager[None]"]
ANYWHERE: dict[str, Fault] = {
    "SIGKILL of the coordinator": kill_coordinator,
    "SIGSTOP and SIGKILL of the coordinator": stop_and_kill_coordinator,
    "SIGKILL of a worker": kill_worker,
    "SIGTERM": terminate,
    "SIGSTOP of a worker for a while": stop_worker,
    "SIGSTOP of the coordinator for a while": stop_coordinator,
    "clock jumps by an hour": clock_jump,
}
WITH_MOUNTS: dict[str, Fault] = {"full disk": full_disk, "read-only output": read_only}
# Faults of object storage have their place here: each would need `out` to be a URL.
LOCAL: dict[str, Fault] = {"SIGKILL of all at once": kill_group}
BY_HAND: dict[str, Fault] = {
    "SIGKILL of a nanny": kill_nanny,
    "SIGKILL of the scheduler": kill_scheduler,
    "SIGSTOP of the scheduler for a while": stop_scheduler,
}


@contextmanager
def reader(scene: Scene) -> Iterator[None]:
    """Opens the output again and again meanwhile; AssertionError if it was ever half-done."""
    with subprocess.Popen(
        [sys.executable, __file__, "--read", str(scene.out)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            found, _ = process.communicate()
        assert not found, f"a reader found {found.strip()}"


def read_again_and_again(out: Path) -> None:
    """Prints what is wrong, once, with an output that is there."""
    while True:
        if out.exists():
            try:
                wrong = list(damages(out, read_manifest(out)))
            except UserError as err:
                wrong = [(str(out), str(err))]
            if wrong:
                print(wrong, flush=True)
                return
        time.sleep(0.02)


def tree_hash(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path)[1] for path in files}


def wait(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said; raises AssertionError if it hangs or ends in a traceback."""
    try:
        _, said = run.communicate(timeout=HANGS_AFTER_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still there after {HANGS_AFTER_S} s") from None
    assert "Traceback" not in said, said
    return run.returncode, said.strip()


def disturb(scene: Scene, fault: Fault, moment: float) -> str:
    """What came of a run with a fault after so many seconds, and that the next one mends it."""
    run = scene.start_job()
    try:
        run.wait(moment)
    except subprocess.TimeoutExpired:
        for _ in range(1000):  # until the fault finds what it is to hit
            try:
                with fault(scene):
                    code, said = wait(run)
                break
            except LookupError:
                if run.poll() is not None:
                    code, said = wait(run)
                    break
                time.sleep(0.01)
        outcome = f"exit code {code}"
    else:
        code, said = wait(run)
        outcome = f"exit code {code}, too late"
    assert code in FINE_CODES, f"exit code {code}: {said}"
    scene.scratch |= {path.name for path in (scene.folder / "tmp").glob("pipeline-*")}
    code, said = wait(scene.start_job())
    assert code == 0, f"resumed: exit code {code}: {said}"
    return outcome


def check_nothing_left(scene: Scene) -> None:
    names = [path.name for path in scene.out.parent.iterdir()]
    expected = index_path(scene.out, read_manifest(scene.out).job_sha256).name
    beside = sorted({*names} - {"out", "out.runs.jsonl", expected})
    assert not beside, f"left beside the output: {beside}"
    _, alive = psutil.wait_procs(scene.processes(), timeout=GONE_WITHIN_S)
    assert not alive, f"left: {[' '.join(p.cmdline())[:80] for p in alive]}"
    temporary = sorted(p.name for p in (scene.folder / "tmp").iterdir())
    assert not temporary, f"left in the temporary folder: {temporary}"
    semaphores = [p.name for name in scene.scratch for p in SEMAPHORES.glob(f"sem.{name}-*")]
    assert not semaphores, f"left: {semaphores}"


@contextmanager
def new_scene(folder: Path, photos: Path, chance: random.Random, by_hand: bool) -> Iterator[Scene]:
    """A folder and, where wanted, a cluster; all its processes end with it, whatever happened."""
    for name in ("disk", "tmp", "dask"):
        (folder / name).mkdir(parents=True)
    scene = Scene(folder, photos, chance)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        if os.geteuid() == 0:
            mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder / "disk"))
            stack.callback(subprocess.run, ["umount", str(folder / "disk")], check=False)
        stack.callback(lambda: [p.kill() for p in scene.processes()])
        if by_hand:
            scene.start_cluster()
        yield scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read_again_and_again(arguments.read)
        return
    if os.geteuid() == 0 and "CHAOS_MOUNTS" not in os.environ:  # which nobody else sees
        os.environ["CHAOS_MOUNTS"] = "own"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    raise SystemExit(0 if unleash(arguments.runs, arguments.seed, arguments.only) else 1)


def unleash(n_runs: int, seed: int, only: str) -> bool:
    """Prints the table; whether nothing was lost or left in any run."""
    common = ANYWHERE | (WITH_MOUNTS if os.geteuid() == 0 else {})
    if os.geteuid():
        print(f"not root, so without: {', '.join(WITH_MOUNTS)}")
    faults = [(False, *item) for item in (common | LOCAL).items()]
    faults += [(True, *item) for item in (common | BY_HAND).items()]
    faults = [fault for fault in faults if only in fault[1]]
    table: dict[tuple[bool, str], Counter[str]] = {}
    failures: list[str] = []
    chance = random.Random(seed)
    with scratch_folder() as folder:
        photos = make_photos(folder)
        for path in sorted(photos.rglob("*.jpg"))[::5]:
            path.unlink()
        with new_scene(folder / "whole", photos, chance, by_hand=False) as scene:
            started = time.monotonic()
            code, said = wait(scene.start_job())
            usual = time.monotonic() - started
            assert code == 0, said
            expected = tree_hash(scene.out)
        order = [
            fault
            for _ in range(-(-n_runs // len(faults)))
            for fault in chance.sample(faults, len(faults))
        ]
        for i, (by_hand, name, fault) in enumerate(order[:n_runs]):
            with new_scene(folder / str(i), photos, chance, by_hand) as scene:
                try:
                    with reader(scene):
                        outcome = disturb(scene, fault, chance.uniform(0.1, 1) * usual)
                    assert tree_hash(scene.out) == expected, "other bytes"
                    scene.end_cluster()
                    check_nothing_left(scene)
                except AssertionError as err:
                    failures.append(f"run {i}, {name}: {err}")
                    outcome = f"FAILED: {err}"
            print(f"{i:3} {'by hand' if by_hand else 'local':7} {name}: {outcome}", flush=True)
            table.setdefault((by_hand, name), Counter())[outcome] += 1
    print()
    for (by_hand, name), outcomes in sorted(table.items()):
        told = ", ".join(f"{outcome} {n}x" for outcome, n in sorted(outcomes.items()))
        print(f"{'by hand' if by_hand else 'local':7} {name:40} {outcomes.total():3} runs: {told}")
    print(f"{n_runs} runs, {len(failures)} failed", *failures, sep="\n")
    return not failures


if __name__ == "__main__":
    main()
