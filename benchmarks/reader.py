"""Who reads an output while it is written: opens it again and again, and must find none or all.

python benchmarks/reader.py OUT   prints what is wrong, once
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import ROOT

sys.path.insert(0, str(ROOT))
from datasets import storage
from datasets.errors import EnvironmentFailed, UserError
from datasets.manifest import damages, read_manifest
from datasets.storage_errors import translating_errors
from datasets.versions import latest, reading


@contextmanager
def polling(out: str, environment: dict[str, str]) -> Iterator[None]:
    """Reads the output meanwhile; AssertionError if it was ever half-done."""
    with subprocess.Popen(
        [sys.executable, __file__, out], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            found, _ = process.communicate()
        assert not found, f"a reader found {found.strip()}"
        assert process.returncode == -signal.SIGTERM, "the reader has ended by itself"


def is_there(out: Path) -> bool:
    return latest(out) is not None if storage.is_object(out) else out.exists()


def wrong_with(out: Path) -> list[tuple[str, str]]:
    """(file, what is wrong) with an output that is there."""
    try:
        with translating_errors(out):
            if not is_there(out):
                return []
            with reading(out) as found:
                return list(damages(found, read_manifest(found)))
    except EnvironmentFailed:  # a storage that fails shows nothing, neither half nor whole
        return []
    except UserError as err:
        return [(str(out), str(err))]


def main() -> None:
    out = storage.place(sys.argv[1])
    while not (wrong := wrong_with(out)):
        time.sleep(0.02)
    print(wrong, flush=True)


if __name__ == "__main__":
    main()
