"""`pipeline --help` against an empty Typer program: at most 1.5 times as long."""

from __future__ import annotations

import sys
from pathlib import Path

from measure import PIPELINE, scratch_folder, seconds

EMPTY = """
import typer
app = typer.Typer()
@app.command()
def main() -> None:
    "Does nothing."
app()
"""
REPEATS = 15
CLAIM = 1.5


def main() -> None:
    with scratch_folder() as folder:
        empty = Path(folder / "empty.py")
        empty.write_text(EMPTY)
        pairs = [
            (seconds([sys.executable, str(empty), "--help"])[0], seconds([PIPELINE, "--help"])[0])
            for _ in range(REPEATS)
        ]
    typer, ours = (min(column) for column in zip(*pairs, strict=True))
    holds = ours / typer <= CLAIM
    print(f"empty Typer program {typer:.3f} s, pipeline --help {ours:.3f} s: {ours / typer:.2f}x")
    print(f"at most {CLAIM}x: {'holds' if holds else 'MISSED'}")
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
