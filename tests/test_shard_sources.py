"""Shards as a source: ours, Hugging Face's and TFDS's give back the images that were put in."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from datasets.catalog import open_source
from datasets.errors import SourceError
from datasets.fingerprint import read_each
from datasets.images import decode
from datasets.manifest import read_manifest
from datasets.source import Listing, Source, check_listing
from tests.running import run, tree_hash, write_photos
from tests.test_readers import PYTHON, ROOT


def opened(path: Path) -> tuple[Source, Listing]:
    source = open_source(str(path), path)
    return source, check_listing(str(path), source.listing())


def rows_of(source: Source, listing: Listing) -> dict[str, tuple[str, str, str]]:
    """Sample id -> split, class, hash of the pixels."""
    rows = {}
    for split, samples in listing.splits.items():
        found = zip(samples.ids, samples.labels.tolist(), source.read(samples.refs), strict=True)
        for sample_id, label, data in found:
            image = decode(data, source.channels) if isinstance(data, bytes) else data
            pixels = hashlib.sha256(image.tobytes()).hexdigest() + str(list(image.shape[:2]))
            rows[sample_id] = split, listing.classes[label], pixels
    return rows


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", 40)


@pytest.mark.parametrize("format", ["parquet", "tfrecord"])
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_our_shards_give_the_originals_with_their_ids_labels_and_class_names(
    tmp_path: Path, photos: Path, format: str, encoding: str
) -> None:
    dataset = "digits" if encoding == "raw" else str(photos)
    run(
        *("augment", "--dataset", dataset, "--format", format, "--encoding", encoding),
        *("--copies", 2, "--workers", 0, "--out", tmp_path / "out"),
    )
    source, listing = opened(tmp_path / "out")
    original = open_source(dataset, tmp_path)
    assert rows_of(source, listing) == rows_of(original, original.listing())
    assert listing.classes == original.listing().classes
    n_copies = 2 * len(listing.splits["train"])
    assert listing.ignored == (f"{n_copies:,} augmented copies in train, beside their originals",)
    assert source.channels == original.channels


def test_augmenting_our_shards_is_augmenting_what_they_were_made_from(tmp_path: Path) -> None:
    job = ("augment", "--limit", 300, "--workers", 0)
    wanted = ("--policy", "light", "--seed", 3, "--copies", 2)
    run(*job, *wanted, "--out", tmp_path / "direct")
    for form in ("parquet", "tfrecord"):
        between, out = tmp_path / form / "digits", tmp_path / form / "out"
        run(*job, "--copies", 1, "--format", form, "--out", between)
        run(*job, *wanted, "--dataset", between, "--out", out)
        assert tree_hash(out) == tree_hash(tmp_path / "direct")


def test_a_published_output_is_named_by_its_place_and_not_by_its_version(tmp_path: Path) -> None:
    out = tmp_path / "photos"
    run("augment", "--limit", 20, "--workers", 0, "--publish", "--out", out)
    version = os.readlink(out / "latest")
    for path in (out, out / "latest", out / version):
        assert open_source(str(path), path).name == "photos"


@pytest.mark.parametrize("format", ["parquet", "tfrecord"])
def test_every_copy_is_a_sample_where_our_shards_hold_no_originals(
    tmp_path: Path, format: str
) -> None:
    run(
        *("augment", "--limit", 6, "--copies", 2, "--no-original", "--format", format),
        *("--workers", 0, "--out", tmp_path / "out"),
    )
    digits = open_source("digits", tmp_path).listing()
    _, listing = opened(tmp_path / "out")
    names = {i.partition("@")[0] for i in listing.splits["train"].ids}
    assert len(names) == 6
    assert set(listing.splits["train"].ids) == {f"{name}@{i}" for name in names for i in (1, 2)}
    assert names <= set(digits.splits["train"].ids)
    assert set(listing.splits["test"].ids) <= set(digits.splits["test"].ids)


@pytest.mark.parametrize("format", ["parquet", "tfrecord"])
def test_shards_that_are_others_since_they_were_listed_cannot_be_read(
    tmp_path: Path, format: str
) -> None:
    job = ("augment", "--limit", 6, "--copies", 1, "--workers", 0, "--format", format)
    run(*job, "--out", tmp_path / "out")
    source, listing = opened(tmp_path / "out")
    refs = listing.splits["train"].refs
    for path in (tmp_path / "out").glob("*train*-of-*"):
        path.write_bytes(b"\xff" * path.stat().st_size)
    found = list(read_each(source, refs))
    assert len(found) == len(refs)
    assert all(isinstance(data, OSError) for data in found)


@pytest.mark.parametrize("format", ["parquet", "tfrecord"])
def test_shards_without_rows_are_no_hindrance(tmp_path: Path, format: str) -> None:
    photos, out = write_photos(tmp_path / "photos", 12), tmp_path / "out"
    run(
        *("augment", "--dataset", photos, "--block-samples", 1, "--format", format),
        *("--copies", 1, "--encoding", "png", "--workers", 0, "--out", out),
    )
    assert read_manifest(out).shards[0].rows == 0  # by hash no photo is in the test split
    source, listing = opened(out)
    assert source.channels == 3
    assert len(rows_of(source, listing)) == 12


def written_by(library: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Folder -> its rows, as the library that wrote them reads them."""
    result = subprocess.run(
        [PYTHON, str(ROOT / "tests" / "readers" / "write_all.py"), library, str(folder)],
        cwd=folder,  # where no package of ours is in the way
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("library", "readable"), [("hugging_face", ["birds"]), ("tfds", ["files/1.0.0", "bytes/1.0.0"])]
)
def test_folders_written_by_the_libraries_themselves_are_read(
    tmp_path: Path, library: str, readable: list[str]
) -> None:
    written = written_by(library, tmp_path)
    for name in readable:
        source, listing = opened(tmp_path / name)
        ours = list(rows_of(source, listing).values())
        theirs = [(r["split"], r["class"], r["image"]) for r in written[name]]
        assert sorted(ours) == sorted(theirs)
        assert [r for r in ours if r[0] == "train"] == [r for r in theirs if r[0] == "train"]
        assert listing.classes == ("night heron", "ibis")
    if library == "tfds":
        with pytest.raises(
            SourceError, match=r"holds numbers; expected .* uint8 with encoding 'bytes'"
        ):
            opened(tmp_path / "numbers" / "1.0.0")
