"""Images that a data set holds more than once are told: they flatter results, or contradict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.fingerprint import Scan
from datasets.images import encode
from datasets.source import Samples
from pipeline.repeats import Place, repeats
from tests.running import run

SEEDS = {  # one image for each number
    "train/a/1.png": 1,
    "train/a/2.png": 2,
    "train/a/2 again.png": 2,
    "train/a/3.png": 3,
    "train/b/3.png": 3,
    "train/b/4.png": 4,
    "test/a/1.png": 1,
    "test/b/4.png": 4,
    "test/b/5.png": 5,
}
ASKED = {
    "images of test that are also in train": [
        ["test/a/1.png", "train/a/1.png"],
        ["test/b/4.png", "train/b/4.png"],
    ],
    "images with several labels": [["train/a/3.png", "train/b/3.png"]],
    "images that are in train more than once": [["train/a/2 again.png", "train/a/2.png"]],
}


def write_images(folder: Path, seeds: dict[str, int]) -> Path:
    for name, seed in seeds.items():
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels, "png", 95))
    return folder


def told(stderr: str) -> dict[str, list[list[str]]]:
    """What was said of repeats -> the pairs of samples, as JSON logs have them."""
    lines = [json.loads(line) for line in stderr.splitlines()]
    return {
        line["message"].split(": ")[1]: [sorted(pair) for pair in line["samples"]]
        for line in lines
        if line.get("event") == "repeats"
    }


@pytest.mark.parametrize("online", [False, True])
def test_images_in_both_splits_with_two_labels_or_twice_are_told(
    tmp_path: Path, online: bool
) -> None:
    source = write_images(tmp_path / "source", SEEDS)
    command = ["train", "--val-fraction", "0.5"] if online else ["augment", "--workers", "0"]
    log = ["--log-format", "json", "--out", tmp_path / "out"]
    assert told(run(*command, "--dataset", source, *log).stderr) == ASKED


def test_the_text_has_an_example_and_what_to_do(tmp_path: Path) -> None:
    seeds = {"train/a/1.png": 1, "train/b/1.png": 1, "train/b/1 too.png": 1, "train/b/2.png": 2}
    source = write_images(tmp_path / "source", seeds)
    said = run("augment", "--dataset", source, "--dry-run").stderr
    assert said == (
        f"{source}: images with several labels: 1, such as train/a/1.png = "
        "train/b/1 too.png (a, b); remove the wrong ones\n"
    )


def test_parts_of_one_photo_are_images_of_their_own() -> None:
    photo, boxes = b"of one photo".ljust(32), np.array([[0, 0, 8, 8], [8, 8, 8, 8], [0, 0, 8, 8]])
    samples = Samples(["a", "b", "c"], np.array([0, 1, 0]), [0, 1, 2], boxes.astype(np.int32))
    scans = {"train": Scan([photo] * 3, np.full((3, 3), 8, np.int32))}
    assert repeats({"train": samples}, scans) == [
        [Place("train", "a", 0), Place("train", "c", 0)],
    ]


def test_files_that_cannot_be_used_are_no_images(tmp_path: Path) -> None:
    source = write_images(tmp_path / "source", {"train/a/1.png": 1, "test/a/2.png": 2})
    for name in ("train/a/empty.png", "test/a/empty.png"):
        (source / name).touch()
    options = ["--max-bad", "0.5", "--dry-run", "--log-format", "json"]
    assert told(run("augment", "--dataset", source, *options).stderr) == {}
