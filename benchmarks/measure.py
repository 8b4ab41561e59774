"""Running and timing whole commands, and telling the result as a ratio against a claim."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIPELINE = str(Path(sys.executable).with_name("pipeline"))
CACHE = Path.home() / ".cache" / "augmentation-pipeline"
PEERS_PYTHON = str(ROOT / ".venv-peers" / "bin" / "python")
SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path.cwd()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in memory, so that no disk is measured; removed at the end."""
    folder = SCRATCH / f"pipeline-benchmark-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def seconds(command: list[str]) -> tuple[float, str]:
    """How long the command took, and what it printed last."""
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - started
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    return took, (result.stdout.strip().splitlines() or [""])[-1]


def row(name: str, took: float, ratio: float | None = None, claim: float | None = None) -> bool:
    """Prints one line of the table; whether the claim, where there is one, holds."""
    holds = claim is None or ratio is None or ratio >= claim
    text = "" if ratio is None else f"{ratio:8.2f}x"
    wanted = "" if claim is None else f"   at least {claim:g}x: {'holds' if holds else 'MISSED'}"
    print(f"{name:44} {took:8.2f} s {text}{wanted}", flush=True)
    return holds
