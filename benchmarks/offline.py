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
from dataclasses import dataclass
from pathlib import Path

from measure import CACHE, PEERS_PYTHON, PIPELINE, ROOT, row, scratch_folder, seconds

PEERS = ROOT / "benchmarks" / "peers"
ROUNDS = 5  # all in turn, and the best of each counts: machines are not equally fast all the time
WORKERS = 2


@dataclass(frozen=True)
class Peer:
    """One command to compare with. claim: at least so many times our seconds. rounds: fewer for
    what takes minutes. bare: compared without start-up on both sides, which it prints itself."""

    name: str
    script: str
    claim: float
    more: tuple[str, ...] = ()
    rounds: int = ROUNDS
    bare: bool = False

    def run(self, source: Path, copies: int, folder: Path) -> float:
        out = folder / "peer"
        out.mkdir()
        kind = "cifar10" if (source / "cifar-10-batches-bin").is_dir() else "photos"
        python = sys.executable if self.bare else PEERS_PYTHON
        script = str(PEERS / self.script)
        took, printed = seconds(
            [python, script, kind, str(source), str(out), str(copies), *self.more]
        )
        shutil.rmtree(out)
        return float(printed) if self.bare else took


def ours(folder: Path, options: list[str]) -> tuple[float, float]:
    """Seconds of the whole command, and of its work without start-up."""
    out = folder / "ours"
    took, _ = seconds([PIPELINE, "augment", *options, "--out", str(out), "--workers", str(WORKERS)])
    log = folder / "ours.runs.jsonl"
    work = json.loads(log.read_text())["seconds"]["work"]
    shutil.rmtree(out)
    log.unlink()
    return took, work


def compare(source: Path, copies: int, options: list[str], peers: list[Peer], folder: Path) -> bool:
    """Prints the table; whether every claim holds."""
    mine: list[tuple[float, float]] = []
    theirs: dict[Peer, list[float]] = {peer: [] for peer in peers}
    for i in range(ROUNDS):
        mine.append(ours(folder, [*options, "--copies", str(copies), "--no-original"]))
        for peer, found in theirs.items():
            if i < peer.rounds:
                found.append(peer.run(source, copies, folder))
    took, work = (min(column) for column in zip(*mine, strict=True))
    row("pipeline augment", took)
    row("pipeline augment, without start-up", work)
    holds = [
        row(peer.name, min(found), min(found) / (work if peer.bare else took), peer.claim)
        for peer, found in theirs.items()
    ]
    return all(holds)


BARE = "bare loop, without start-up"
CIFAR10 = [
    Peer(BARE, "bare_loop.py", 0.8, bare=True),
    Peer("albumentations, pool of 2", "albumentations_pool.py", 7, rounds=1),
    Peer("albumentations, pool of 2, fused", "albumentations_pool.py", 4, ("fused",), rounds=1),
    Peer("Keras preprocessing layers in tf.data", "keras_layers.py", 7, rounds=2),
    Peer("ImageDataGenerator", "image_data_generator.py", 20, rounds=1),
]
POOL = "albumentations_pool.py"
PHOTOS = [
    Peer(BARE, "bare_loop.py", 0.9, bare=True),
    Peer("albumentations, pool of 2, decode per copy", POOL, 3.5, ("per-copy",), rounds=3),
    Peer("albumentations, pool of 2, decode once", POOL, 1.5),
    Peer("albumentations, pool of 2, decode once, fused", POOL, 1, ("fused",)),
]


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
        options = ["--policy", "standard"]
        if arguments.what == "cifar10":
            source = arguments.data_dir / "cifar10"
            options += ["--dataset", "cifar10", "--data-dir", str(arguments.data_dir)]
            holds = compare(source, 10, [*options, "--no-eval-splits"], CIFAR10, folder)
        else:
            source = arguments.photos or make_photos(folder)
            options += ["--dataset", str(source), "--split", "all", "--image-size", "224"]
            options += ["--encoding", "jpeg", "--quality", "95"]
            holds = compare(source, 32, options, PHOTOS, folder)
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
