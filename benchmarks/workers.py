"""Two workers against one: the whole command, CIFAR-10 x 20 and photos to 224 px x 64.

    python benchmarks/workers.py [--data-dir DIR] [--photos FOLDER]

Both jobs take about as long with one worker, so that the start, which two do not share, tells as
much in both. Everything is written to memory; one and two workers take turns, and the best of each
counts. Photos are those of FOLDER (a subfolder a class), else 400 pieces of the two that
scikit-learn brings.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from measure import CACHE, PIPELINE, scratch_folder, seconds
from offline import make_photos

ROUNDS = 5
CLAIM = 0.56


def compare(name: str, options: list[str], folder: Path) -> bool:
    """Prints the seconds of each, and the parts of the best; whether the claim holds."""
    best: dict[int, tuple[float, dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for n in (1, 2):
            out = folder / "out"
            command = [PIPELINE, "augment", *options, "--out", str(out), "--workers", str(n)]
            took, _ = seconds(command)
            log = folder / "out.runs.jsonl"
            parts = json.loads(log.read_text())["seconds"]
            shutil.rmtree(out)
            log.unlink()
            best[n] = min(best.get(n, (took, parts)), (took, parts), key=lambda found: found[0])
    for n, (took, parts) in best.items():
        told = ", ".join(f"{part} {s:.2f}" for part, s in parts.items())
        print(f"{name}, workers: {n}   {took:6.2f} s   ({told})")
    ratio = best[2][0] / best[1][0]
    verdict = "holds" if ratio <= CLAIM else "MISSED"
    print(f"{name}: two take {ratio:.3f} of one's   at most {CLAIM}: {verdict}", flush=True)
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
