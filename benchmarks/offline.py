"""The whole `augment --offline` command against others that write the same Parquet.

    python benchmarks/offline.py cifar10 [--data-dir DIR]   50,000 images x 10 copies, raw
    python benchmarks/offline.py photos [--photos FOLDER]   to 224 px x 32 copies, JPEG 95

Two workers; everything is written to memory. Each ratio is a peer's seconds over ours, from the
same run; the bare loop is compared without start-up on both sides. Photos are those of FOLDER (a
subfolder a class), else 400 pieces of the two that scikit-learn brings.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from measure import PEERS_PYTHON, PIPELINE, ROOT, row, scratch_folder, seconds

PEERS = ROOT / "benchmarks" / "peers"
CACHE = Path.home() / ".cache" / "augmentation-pipeline"
REPEATS = 3  # of what takes seconds: the best of them counts, for both sides
WORKERS = 2


def ours(folder: Path, options: list[str]) -> tuple[float, float]:
    """Seconds of the whole command, and of its work without start-up."""
    best = (float("inf"), float("inf"))
    for _ in range(REPEATS):
        out = folder / "ours"
        command = [PIPELINE, "augment", *options, "--out", str(out), "--workers", str(WORKERS)]
        took, _ = seconds(command)
        log = folder / "ours.runs.jsonl"
        best = min(best, (took, json.loads(log.read_text())["seconds"]["work"]))
        shutil.rmtree(out)
        log.unlink()
    return best


def peer(
    python: str, script: str, source: Path, copies: int, folder: Path, *more: str, repeats: int = 1
) -> tuple[float, str]:
    """The best seconds of a peer's whole command, and what it printed then."""
    out, best = folder / "peer", (float("inf"), "")
    for _ in range(repeats):
        out.mkdir()
        name = "cifar10" if (source / "cifar-10-batches-bin").is_dir() else "photos"
        command = [python, str(PEERS / script), name, str(source), str(out), str(copies), *more]
        best = min(best, seconds(command))
        shutil.rmtree(out)
    return best


def compare_with_bare_loop(source: Path, copies: int, folder: Path, work: float, claim: float):
    bare = min(
        float(peer(sys.executable, "bare_loop.py", source, copies, folder)[1])
        for _ in range(REPEATS)
    )
    row("bare loop, without start-up", bare)
    return row("ours, without start-up", work, bare / work, claim)


def cifar10(data_dir: Path, folder: Path) -> bool:
    options = ["--dataset", "cifar10", "--data-dir", str(data_dir), "--copies", "10"]
    options += ["--no-original", "--no-eval-splits", "--policy", "standard"]
    took, work = ours(folder, options)
    row("pipeline augment", took)
    source = data_dir / "cifar10"
    holds = [compare_with_bare_loop(source, 10, folder, work, 0.8)]
    for name, script, claim in (
        ("albumentations, pool of 2", "albumentations_pool.py", 7),
        ("Keras preprocessing layers in tf.data", "keras_layers.py", 7),
        ("ImageDataGenerator", "image_data_generator.py", 20),
    ):
        theirs, _ = peer(PEERS_PYTHON, script, source, 10, folder)
        holds.append(row(name, theirs, theirs / took, claim))
    return all(holds)


def photos(source: Path, folder: Path) -> bool:
    options = ["--dataset", str(source), "--split", "all", "--image-size", "224", "--copies", "32"]
    options += ["--no-original", "--policy", "standard", "--encoding", "jpeg", "--quality", "95"]
    took, work = ours(folder, options)
    row("pipeline augment", took)
    holds = [compare_with_bare_loop(source, 32, folder, work, 0.9)]
    for name, more, claim in (
        ("albumentations, pool of 2, decode per copy", ["per-copy"], 3.5),
        ("albumentations, pool of 2, decode once", [], 1.5),
    ):
        script = "albumentations_pool.py"
        theirs, _ = peer(PEERS_PYTHON, script, source, 32, folder, *more, repeats=REPEATS)
        holds.append(row(name, theirs, theirs / took, claim))
    return all(holds)


def make_photos(folder: Path) -> Path:
    """400 pieces of two photographs, of about 500 x 375 pixels, as JPEG in two class folders."""
    import cv2
    import numpy as np
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for label, image in enumerate(load_sample_images().images):
        target = folder / "photos" / str(label)
        target.mkdir(parents=True)
        for i in range(200):
            top, left = rng.integers(0, 50), rng.integers(0, 140)
            piece = cv2.cvtColor(image[top : top + 375, left : left + 500], cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(target / f"{i:03d}.jpg"), piece)
    return folder / "photos"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["cifar10", "photos"])
    parser.add_argument("--data-dir", type=Path, default=CACHE)
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    with scratch_folder() as folder:
        if arguments.what == "cifar10":
            holds = cifar10(arguments.data_dir, folder)
        else:
            holds = photos(arguments.photos or make_photos(folder), folder)
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
