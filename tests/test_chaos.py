"""Random faults in a real job: `benchmarks/chaos.py`, a few runs of its 200."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


@pytest.mark.slow
def test_after_random_faults_the_bytes_are_the_same_and_nothing_is_left() -> None:
    done = subprocess.run(
        [sys.executable, CHAOS, "6", "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 runs, 0 failed" in done.stdout
