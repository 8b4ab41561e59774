"""One run under faults: its folder, its storage, its processes, and how far it has come."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from measure import PIPELINE, ROOT

sys.path.insert(0, str(ROOT))
from datasets.index import INDEX
from datasets.manifest import sha256_file
from datasets.versions import POINTERS
from tests.object_storage import Faulty, free_port, rclone

GONE_WITHIN_S = 10
DISK_MB = 256
TTL = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}  # of clusters started by hand
RUNS = ".runs.jsonl"  # the log beside an output, of all that was run: no two are the same


@dataclass
class Scene:
    """One run: its folder (`disk` is a file system of its own where that can be), its processes.

    front: What stands before an S3 server whose buckets are this folder and those beside it: the
      same files by URL, and faults on the way. None: all by path.
    """

    folder: Path
    photos: Path
    random: random.Random
    front: Faulty | None = None
    server: ExitStack = field(default_factory=ExitStack)
    address: str | None = None
    run: subprocess.Popen[str] | None = None
    cluster: list[subprocess.Popen[bytes]] = field(default_factory=list)
    scratch: set[str] = field(default_factory=set)

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def out(self) -> str:
        return self.name(self.disk / "out")

    def name(self, path: Path) -> str:
        """How the job calls it: by path or by URL."""
        return f"s3://{path.relative_to(self.folder.parent)}" if self.front else str(path)

    @property
    def environment(self) -> dict[str, str]:
        jump = self.random.choice([-3600, 3600])
        return {
            **os.environ,
            **TTL,
            **(self.front.front.env if self.front else {}),
            "AWS_MAX_ATTEMPTS": "2",  # by itself it takes minutes to give a storage up
            "CHAOS_RUN": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": f"{ROOT / 'benchmarks' / 'clock'}{os.pathsep}{ROOT}",
            "CLOCK_FILE": str(self.folder / "jumped"),
            "CLOCK_JUMP": str(jump),
        }

    def start_job(self) -> subprocess.Popen[str]:
        options = ["--dataset", self.name(self.photos), "--image-size", "96", "--encoding", "png"]
        options += ["--policy", "standard", "--copies", "4", "--block-samples", "10", "--quiet"]
        where = ["--scheduler", self.address] if self.address else ["--workers", "2"]
        self.run = subprocess.Popen(
            [PIPELINE, "augment", *options, "--split", "all", *where, "--out", self.out],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self.run

    def start_server(self) -> None:
        """A server for the storage; the one before has ended, and nobody is told of a new port."""
        assert self.front is not None
        self.front.behind = self.server.enter_context(rclone(self.folder.parent))

    def start_cluster(self) -> None:
        """A scheduler and two workers, each with its nanny."""
        port = str(free_port())
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

    def end_processes(self) -> None:
        """Whatever is still there; the disk can be taken away then."""
        alive = self.processes()
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=GONE_WITHIN_S)

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

    def n_shards(self) -> int:
        """How many shards are finished, committed or not."""
        names = (name for _, _, names in os.walk(self.disk) for name in names)
        return sum(name.endswith(".parquet") and not name.startswith(".") for name in names)

    def files(self) -> dict[str, str]:
        """Relative path -> what there is, of all that stands where the output was to be written;
        the same after every whole run."""
        found = {}
        for path in sorted(self.disk.rglob("*")):
            name = path.relative_to(self.disk).as_posix()
            if path.is_dir():
                if not self.front:  # object storage has no folders
                    found[f"{name}/"] = ""
            elif path.parent.name == POINTERS:
                found[name] = json.loads(path.read_text())["version"]
            else:
                varies = name.endswith(RUNS) or INDEX.fullmatch(path.name)
                found[name] = "" if varies else sha256_file(path)[1]
        return found


def mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], check=False, stderr=subprocess.DEVNULL).returncode


@contextmanager
def new_scene(
    folder: Path, photos: Path, chance: random.Random, by_hand: bool = False, is_s3: bool = False
) -> Iterator[Scene]:
    """A folder and, where wanted, a storage and a cluster; all its processes end with it, whatever
    happened."""
    for name in ("disk", "tmp", "dask"):
        (folder / name).mkdir(parents=True)
    scene = Scene(folder, photos, chance)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        if os.geteuid() == 0:
            mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(scene.disk))
            stack.callback(subprocess.run, ["umount", str(scene.disk)], check=False)
        if is_s3:
            stack.callback(scene.server.close)
            server = scene.server.enter_context(rclone(folder.parent))
            scene.front = stack.enter_context(Faulty(server, lambda _method, _path: None))
        stack.callback(scene.end_processes)
        if by_hand:
            scene.start_cluster()
        yield scene
