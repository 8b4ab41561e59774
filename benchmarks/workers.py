"""Two workers against one: the whole command, CIFAR-10 x 20 and photos to 224 px x 64.

    python benchmarks/workers.py [--data-dir DIR] [--photos FOLDER]

Both jobs take about as long with one worker, so that the start, which two do not share, tells as
much in both. Everything is written to memory. One and two workers take turns, and the ratio of each
round counts, in the median: a machine that others use too is faster in one minute than in the next.
Photos are those of FOLDER (a subfolder a class), else 400 pieces of the two that
scikit-learn brings.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import median

from measure import CACHE, PIPELINE, scratch_folder, seconds
from offline import make_photos

ROUNDS = 5
CLAIM = 0.56


def compare(name: str, options: list[str], folder: Path) -> bool:
    """Prints the seconds of each round, with the parts of both; whether the claim holds."""
    ratios = []
    for number in range(1, ROUNDS + 1):
        took = {}
        for n in (1, 2):
            out = folder / "out"
            command = [PIPELINE, "augment", *options, "--out", str(out), "--workers", str(n)]
            took[n], _ = seconds(command)
            log = folder / "out.runs.jsonl"
            parts = json.loads(log.read_text())["seconds"]
            shutil.rmtree(out)
            log.unlink()
            told = ", ".join(f"{part} {s:.2f}" for part, s in parts.items())
            print(f"{name}, round {number}, workers: {n}   {took[n]:6.2f} s   ({told})")
        ratios.append(took[2] / took[1])
    ratio = median(ratios)
    verdict = "holds" if ratio <= CLAIM else "MISSED"
    each = ", ".join(f"{one:.3f}" for one in ratios)
    print(
        f"{name}: two take {ratio:.3f} of one's (median of {each})   at most {CLAIM}: {verdict}",
        flush=True,
    )
    return ratio <= CLAIM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=CACHE)
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    cifar = ["--dataset", "cifar10", "--data-dir", str(arguments.data_dir), "--copies", "20"]
    photos = ["--image-size", "224", "--encoding", "jpeg", "--copies", "64", "--split", "all"]
    policy = ["--policy", "standard", "--quiet"]
    with scratch_folder() as folder:
        source = str(arguments.photos or make_photos(folder))
        holds = [
            compare("CIFAR-10 x 20", [*cifar, *policy], folder),
            compare("photos x 64", ["--dataset", source, *photos, *policy], folder),
        ]
    raise SystemExit(0 if all(holds) else 1)


if __name__ == "__main__":
    main()
