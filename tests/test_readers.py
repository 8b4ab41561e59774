"""Other people's readers open what was written, without any code of ours."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import images
from datasets.formats import FORMATS
from datasets.manifest import read_manifest
from tests.running import run, write_photos

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("PIPELINE_READERS_PYTHON", str(ROOT / ".venv-readers" / "bin" / "python"))
POLICY = "rotate(degrees=20)|brightness(factor=0.3)|albumentations.GaussianBlur(p=0.5)"


def read_by(library: str, folder: Path) -> list[dict[str, Any]]:
    result = subprocess.run(
        [PYTHON, str(ROOT / "tests" / "readers" / "read_all.py"), library, str(folder)],
        cwd=folder.parent,  # where no package of ours is in the way
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def read_ours(folder: Path) -> list[dict[str, Any]]:
    """The same rows by our reader; the image as a hash of pixels (of bytes for raw Parquet)."""
    manifest = read_manifest(folder)
    reader = FORMATS[manifest.job["format"]]
    found = []
    for record in manifest.shards:
        for rows in reader.read(folder / record.name):
            for i, image in enumerate(rows.images):
                label = int(rows.labels[i])
                row = {
                    "image": image_hash(image),
                    "label": label,
                    "class": manifest.classes[label],
                    "split": record.split,
                    "sample_id": rows.ids[i],
                    "copy": rows.copy,
                    **{name: float(values[i]) for name, values in rows.params.items()},
                }
                if rows.library is not None:
                    row["library_ops"] = rows.library[i]
                found.append(row)
    return found


def image_hash(image: np.ndarray | bytes) -> str:
    if isinstance(image, bytes):
        image = images.decode(image, 3)
    return hashlib.sha256(image.tobytes()).hexdigest() + str(list(image.shape[:2]))


def sort_key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["split"], row["sample_id"], row["copy"]


def close(found: dict[str, Any], want: dict[str, Any]) -> bool:
    """float32 parameters come back with the digits of a double."""
    return found.keys() == want.keys() and all(
        np.float32(found[k]) == np.float32(v) if isinstance(v, float) else found[k] == v
        for k, v in want.items()
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", 30)


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_hugging_face_gives_images_class_names_and_origin(
    tmp_path: Path, photos: Path, encoding: str
) -> None:
    out = tmp_path / "out"
    run(
        *("augment", "--dataset", photos, "--policy", POLICY, "--copies", 2),
        *("--encoding", encoding, "--out", out, "--workers", 0),
    )
    seen = sorted(read_by("hugging_face", out), key=sort_key)
    ours = sorted(read_ours(out), key=sort_key)
    assert {row["class"] for row in seen} == {"cat", "dog"}
    assert {row["split"] for row in seen} == {"train", "test"}
    assert len(seen) == len(ours)
    assert all(close(a, b) for a, b in zip(seen, ours, strict=True))


@pytest.mark.parametrize(
    "encoding", ["raw", *(pytest.param(e, marks=pytest.mark.slow) for e in ("jpeg", "png"))]
)
def test_tfds_gives_images_class_names_and_origin(
    tmp_path: Path, photos: Path, encoding: str
) -> None:
    out = tmp_path / "out"
    run(
        *("augment", "--dataset", photos, "--policy", POLICY, "--copies", 2, "--out", out),
        *("--format", "tfrecord", "--encoding", encoding, "--image-size", 20, "--workers", 0),
    )
    seen = sorted(read_by("tfds", out), key=sort_key)
    ours = sorted(read_ours(out), key=sort_key)
    assert len(seen) == len(ours)
    assert {row["class"] for row in seen} == {"cat", "dog"}
    if encoding == "jpeg":  # TensorFlow's own JPEG decoder: nearly the same pixels
        for row in (*seen, *ours):
            row["image"] = row["image"][64:]
    assert all(close(a, b) for a, b in zip(seen, ours, strict=True))


def test_parse_example_reads_rows_as_the_readme_says(tmp_path: Path) -> None:
    out = tmp_path / "augmented" / "tfrecord"
    run("augment", "--format", "tfrecord", "--limit", 60, "--out", out, "--workers", 0)
    names = ("image", "label", "sample_id", "copy", "brightness")
    ours = [{k: r[k] for k in names} for r in read_ours(out) if r["split"] == "train"]
    seen = read_by("parse_example", out)
    assert len(seen) == len(ours) == 60 * 5
    assert all(close(a, b) for a, b in zip(seen, ours, strict=True))


@pytest.mark.parametrize("library", ["duckdb", "polars"])
def test_queries_see_labels_copies_and_parameters(tmp_path: Path, library: str) -> None:
    out = tmp_path / "digits"
    run("augment", "--limit", 200, "--copies", 2, "--out", out, "--workers", 0)
    seen = read_by(library, out)
    ours = [r for r in read_ours(out) if r["split"] == "train"]
    counts = Counter((r["label"], r["copy"]) for r in ours)
    assert {(r["label"], r["copy"]): r["n"] for r in seen} == dict(counts)
    for row in seen:
        values = [
            r["brightness"] for r in ours if (r["label"], r["copy"]) == (row["label"], row["copy"])
        ]
        assert (row["low"], row["high"]) == (min(values), max(values))
