"""A source of 20,000 photos that has changed a little, against a run from nothing.

    python benchmarks/incremental.py [--photos FOLDER]

50 photos are added, 50 changed and 50 removed; to 224 px, 4 copies, JPEG 95, two workers, all in
memory. Then the same command once more, with nothing to do. The photos are pieces of those in
FOLDER (at any depth), else of the two that scikit-learn brings. Needs 6 GB of memory.
"""

from __future__ import annotations

import argparse
import filecmp
import random
import time
from pathlib import Path

from measure import PIPELINE, row, scratch_folder, seconds

N_PHOTOS, N_EDITS = 20_000, 50
RATIO, NOTHING_S = 8.0, 3.0
LATELY_S = 2.0  # a file that has changed since is read again


def make_photos(folder: Path, given: Path | None) -> list[Path]:
    """20,000 different JPEGs, pieces of five sixths of the given ones, in five class folders."""
    import cv2
    import numpy as np
    from sklearn.datasets import load_sample_images

    files = sorted(p for p in given.rglob("*") if p.suffix.lower() == ".jpg") if given else []
    images = [cv2.imread(str(path)) for path in files[:400]]
    images = images or [cv2.resize(image, (500, 375)) for image in load_sample_images().images]
    rng, paths = np.random.default_rng(0), []
    for i in range(N_PHOTOS):
        image = images[i % len(images)]
        height, width = (5 * n // 6 for n in image.shape[:2])
        top, left = (rng.integers(0, n // 6 + 1) for n in image.shape[:2])
        paths.append(folder / str(i % 5) / f"{i:05d}.jpg")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 85 + i // len(images) % 11]
        cv2.imwrite(str(paths[-1]), image[top : top + height, left : left + width], quality)
    return paths


def edit(paths: list[Path]) -> None:
    """Adds, changes and removes 50 each. A byte behind its end is enough to change a photo."""
    chosen = random.Random(0).sample(paths, 3 * N_EDITS)
    for i, path in enumerate(chosen):
        if i < N_EDITS:
            path.with_name(f"new-{i}.jpg").write_bytes(path.read_bytes() + b"new")
        elif i < 2 * N_EDITS:
            path.write_bytes(path.read_bytes() + b"changed")
        else:
            path.unlink()


def is_equal(a: Path, b: Path) -> bool:
    names = sorted(path.name for path in a.iterdir())
    if names != sorted(path.name for path in b.iterdir()):
        return False
    return filecmp.cmpfiles(a, b, names, shallow=False)[0] == names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    with scratch_folder() as folder:
        photos = make_photos(folder / "photos", arguments.photos)
        time.sleep(LATELY_S)
        job = [PIPELINE, "augment", "--dataset", str(folder / "photos"), "--image-size", "224"]
        job += ["--copies", "4", "--workers", "2", "--quiet"]
        mine, whole = [*job, "--out", str(folder / "mine")], [*job, "--out", str(folder / "whole")]
        seconds(mine)
        edit(photos)
        partly, _ = seconds([*mine, "--overwrite"])
        fully, _ = seconds(whole)
        if not is_equal(folder / "mine", folder / "whole"):
            raise SystemExit("the outputs differ")
        time.sleep(LATELY_S)
        seconds(mine)  # reads once more what had been changed lately
        nothing, _ = seconds(mine)
        same, _ = seconds([*mine, "--overwrite"])
    row("from nothing", fully)
    holds = row("150 of 20,000 photos differ", partly, fully / partly, RATIO)
    holds &= row("nothing to do", nothing, NOTHING_S / nothing, 1)
    row("nothing to do, every shard checked (--overwrite)", same)
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
