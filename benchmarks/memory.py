"""Peak memory of any process of `augment --offline`: CIFAR-10 x 100 copies and x 20 copies.

    python benchmarks/memory.py [--data-dir DIR]

At most 500 MB, and within 10 % of each other: memory does not grow with copies. Shards go to disk,
since what is written to memory would count nowhere or twice. Needs 16 GB of it for a while.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil
from measure import PIPELINE
from offline import CACHE

LIMIT_MB = 500
POLL_S = 0.05


def peak_mb(pid: int) -> float:
    """The most memory that a living process has held so far, in MB; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 / 1e6 if peaks else 0.0


def measure(data_dir: Path, copies: int, out: Path) -> float:
    command = [PIPELINE, "augment", "--dataset", "cifar10", "--data-dir", str(data_dir)]
    command += ["--copies", str(copies), "--workers", "2", "--out", str(out), "--quiet"]
    process = subprocess.Popen(command)
    top, most = psutil.Process(process.pid), 0.0
    while process.poll() is None:
        try:
            family = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        most = max([most, *(peak_mb(p.pid) for p in family)])
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    shutil.rmtree(out)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=CACHE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        few, many = (
            measure(arguments.data_dir, copies, Path(folder) / "out") for copies in (20, 100)
        )
    print(f"peak of any process: {few:.0f} MB at 20 copies, {many:.0f} MB at 100 copies")
    holds = many <= LIMIT_MB and abs(many / few - 1) <= 0.1
    print(f"at most {LIMIT_MB} MB and within 10 %: {'holds' if holds else 'MISSED'}")
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
