"""Memory, open files and the coordinator's work over 2,048 shards.

    python benchmarks/flat.py [--data-dir DIR]

CIFAR-10's 50,000 training images in 2,048 shards, on two workers: resident memory and open files of
the coordinator and of each worker while the last quarter of the shards was written, against the
second quarter. What a shard costs the coordinator (which runs Dask's scheduler too, for local
workers) is its processor time beside that of the same job in 16 shards, by 2,032.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil
from measure import CACHE, PIPELINE, scratch_folder

SHARDS, FEW = 2048, 16
SAMPLES = 50_000
LOOK_EVERY_S = 0.05
CLAIM_MS, CLAIM_GROWTH = 0.5, 1.05
MARGIN_BYTES, MARGIN_FILES = 2 * 2**20, 3  # what any process may gain by chance


@dataclass(frozen=True)
class Look:
    """What one process was at one moment of the run."""

    done: int  # shards of the whole run
    name: str
    rss: int
    files: int


def watch(shards: int, data_dir: Path, folder: Path) -> tuple[list[Look], float]:
    """All looks at the processes of one run, and the processor seconds of its coordinator."""
    out = folder / "out"
    command = [PIPELINE, "augment", "--dataset", "cifar10", "--data-dir", str(data_dir)]
    command += ["--copies", "2", "--no-eval-splits", "--block-samples", str(-(-SAMPLES // shards))]
    command += ["--workers", "2", "--quiet", "--out", str(out)]
    looks: list[Look] = []
    cpu = 0.0
    with subprocess.Popen(command) as run:
        coordinator = psutil.Process(run.pid)
        while run.poll() is None:
            done = len(list(folder.glob(".out.partial-*/.records/*.json")))
            try:
                times = coordinator.cpu_times()
                cpu = times.user + times.system
                looks += [look(done, name, p) for name, p in processes(coordinator)]
            except psutil.NoSuchProcess:
                pass
            time.sleep(LOOK_EVERY_S)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    shutil.rmtree(out)
    return looks, cpu


def processes(coordinator: psutil.Process) -> list[tuple[str, psutil.Process]]:
    """The coordinator and its workers, which are the children of its fork server."""
    servers = [p for p in coordinator.children() if "forkserver" in " ".join(p.cmdline())]
    workers = [p for server in servers for p in server.children()]
    return [("coordinator", coordinator), *[(f"worker {p.pid}", p) for p in workers]]


def look(done: int, name: str, process: psutil.Process) -> Look:
    with process.oneshot():
        return Look(done, name, process.memory_info().rss, process.num_fds())


def is_flat(looks: list[Look]) -> bool:
    """Prints each process's second and last quarter; whether they are alike."""
    flat = True
    for name in dict.fromkeys(each.name for each in looks):
        of = [each for each in looks if each.name == name]
        second = [each for each in of if SHARDS // 4 <= each.done < SHARDS // 2]
        last = [each for each in of if each.done >= SHARDS * 3 // 4]
        if not second or not last:
            continue
        rss = [mean(each.rss for each in part) for part in (second, last)]
        files = [mean(each.files for each in part) for part in (second, last)]
        grew = rss[1] > rss[0] * CLAIM_GROWTH + MARGIN_BYTES or files[1] > files[0] + MARGIN_FILES
        flat &= not grew
        print(
            f"{name:16} {rss[0] / 2**20:7.1f} -> {rss[1] / 2**20:7.1f} MB ({rss[1] / rss[0]:.3f}x)"
            f"   {files[0]:5.1f} -> {files[1]:5.1f} open files   {'GREW' if grew else 'flat'}"
        )
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=CACHE)
    arguments = parser.parse_args()
    with scratch_folder() as folder:
        few = min(watch(FEW, arguments.data_dir, folder)[1] for _ in range(2))
        runs = [watch(SHARDS, arguments.data_dir, folder) for _ in range(2)]
        looks, many = min(runs, key=lambda found: found[1])
    flat = is_flat(looks)
    cost = (many - few) / (SHARDS - FEW) * 1000
    holds = cost < CLAIM_MS
    print(
        f"coordinator: {many:.2f} s of processor time, {few:.2f} s with {FEW} shards: "
        f"{cost:.3f} ms a shard   under {CLAIM_MS} ms: {'holds' if holds else 'MISSED'}"
    )
    raise SystemExit(0 if flat and holds else 1)


if __name__ == "__main__":
    main()
