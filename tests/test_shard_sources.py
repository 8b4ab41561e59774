"""Shards as a source: ours, Hugging Face's and TFDS's give back the images that were put in."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from datasets import tfrecord
from datasets.catalog import open_source
from datasets.errors import SourceError
from datasets.fingerprint import scan
from datasets.images import decode, encode
from datasets.manifest import read_manifest
from datasets.source import Listing, Source, check_listing
from tests.running import run, tree_hash, write_photos
from tests.test_readers import PYTHON, ROOT

IMAGES = np.random.default_rng(5).integers(0, 256, (6, 7, 9, 3), np.uint8)
FILES = [encode(image, "png", 95) for image in IMAGES]


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


def write_parquet(path: Path, columns: dict[str, Any], info: Any = None, rows: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if info is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)


def as_structs(files: list[bytes | None]) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": None} for data in files]


NAMED = {"info": {"features": {"label": {"names": ["owl", "emu"], "_type": "ClassLabel"}}}}


@pytest.mark.parametrize("info", [NAMED, None])
@pytest.mark.parametrize("names", [("image", "label"), ("img", "fine_label")])
def test_parquet_of_the_hub_gives_images_numbered_by_row(
    tmp_path: Path, info: Any, names: tuple[str, str]
) -> None:
    image, label = names
    if info is not None:
        info = {"info": {"features": {label: NAMED["info"]["features"]["label"]}}}
    for part, suffix in ((0, ""), (1, "-0123456789abcdef")):  # with and without a hash
        path = tmp_path / "data" / f"train-0000{part}-of-00002{suffix}.parquet"
        write_parquet(path, {image: as_structs(FILES[3 * part :][:3]), label: [0, 1, 0]}, info)
    source, listing = opened(tmp_path)
    assert listing.classes == (("owl", "emu") if info else ("0", "1"))
    train = listing.splits["train"]
    assert train.ids == [f"train/{i:06d}" for i in range(6)]
    assert train.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert list(source.read(train.refs)) == FILES
    assert list(source.read(train.refs[::-1])) == FILES[::-1]


def test_plain_binary_images_are_read_too(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-00000-of-00001.parquet", {"image": FILES, "label": [0] * 6})
    source, listing = opened(tmp_path)
    assert list(source.read(listing.splits["test"].refs)) == FILES


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"picture": FILES, "label": [0] * 6}, "its columns are picture, label; expected an image"),
        ({"image": FILES, "kind": [0] * 6}, r"expected .* a label column \(label or labels"),
        ({"image": [[[1, 2]]], "label": [0]}, "its column 'image' holds list.*; expected image"),
        ({"image": ["a.png"], "label": [0]}, "its column 'image' holds string; expected image"),
        ({"image": FILES[:1], "label": ["owl"]}, "has the label 'owl'; expected a whole number"),
        ({"image": FILES[:2], "label": [0, None]}, "has the label None; expected a whole number"),
        ({"image": FILES[:1], "label": [-1]}, "has the label -1; expected a whole number from 0"),
    ],
)
def test_parquet_that_cannot_be_a_data_set_is_told_in_one_line(
    tmp_path: Path, columns: dict[str, Any], expected: str
) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", columns)
    with pytest.raises(SourceError, match=expected):
        opened(tmp_path)


def test_a_shard_that_is_cut_or_unlike_the_first_is_named(tmp_path: Path) -> None:
    first, second = (tmp_path / f"train-0000{i}-of-00002.parquet" for i in range(2))
    write_parquet(first, {"image": FILES, "label": [0] * 6})
    second.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(SourceError, match=f"{second}: cannot be read: .*; fetch or write it again"):
        opened(tmp_path)
    write_parquet(second, {"image": FILES, "kind": [0] * 6})
    with pytest.raises(SourceError, match=f"{second}: no column 'label', which {first} has"):
        opened(tmp_path)


def test_rows_whose_images_cannot_be_read_are_named_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "hub" / "train-00000-of-00001.parquet"
    write_parquet(path, {"image": as_structs([None, *FILES[1:]]), "label": [0] * 6})
    bytes_of_row_3 = path.read_bytes().index(FILES[3])
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    assert chunk.data_page_offset < bytes_of_row_3
    data[chunk.data_page_offset : chunk.data_page_offset + 8] = b"\xff" * 8  # its page's header
    path.write_bytes(data)
    source, listing = opened(path.parent)
    assert scan(source, listing.splits["train"]).errors == {
        0: "cannot be read: has no bytes in the image column",
        2: "cannot be read: its row group cannot be read",
        3: "cannot be read: its row group cannot be read",
    }


def write_tfrecord(path: Path, rows: list[dict[str, bytes | int | None]]) -> Path:
    """A shard as others write it: no sample ids, no copies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = tfrecord.Writer(file, None, "none")  # type: ignore[arg-type]  # not asked for rows
        for row in rows:
            example = tfrecord.example_class()()
            for name, value in row.items():
                feature = example.features.feature[name]
                if isinstance(value, bytes):
                    feature.bytes_list.value.append(value)
                elif value is not None:
                    feature.int64_list.value.append(value)
            writer.append(example.SerializeToString())
    return path


def test_tfrecord_of_others_is_numbered_by_row(tmp_path: Path) -> None:
    rows: list[Any] = [{"image": f, "label": i % 3, "id": i} for i, f in enumerate(FILES)]
    write_tfrecord(tmp_path / "birds-train.tfrecord-00000-of-00002", rows[:4])
    write_tfrecord(tmp_path / "birds-train.tfrecord-00001-of-00002", rows[4:])
    source, listing = opened(tmp_path)
    train = listing.splits["train"]
    assert listing.classes == ("0", "1", "2")
    assert train.ids == [f"train/{i:06d}" for i in range(6)]
    assert_array_equal(train.labels, [0, 1, 2, 0, 1, 2])
    assert list(source.read(train.refs[::-1])) == FILES[::-1]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": FILES[0]}, "expected features image and label, found image"),
        ({"image": FILES[0], "label": None}, "expected features image and label, found image"),
        ({"image": FILES[0], "label": b"owl"}, "has the label b'owl'; expected a whole number"),
    ],
)
def test_tfrecord_that_cannot_be_a_data_set_is_told_in_one_line(
    tmp_path: Path, row: dict[str, Any], expected: str
) -> None:
    write_tfrecord(tmp_path / "birds-train.tfrecord-00000-of-00001", [row])
    with pytest.raises(SourceError, match=expected):
        opened(tmp_path)


@pytest.mark.parametrize("content", [b"not a record at all", None])
def test_a_damaged_tfrecord_is_named_with_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = write_tfrecord(
        tmp_path / "birds-train.tfrecord-00000-of-00001", [{"image": FILES[0], "label": 0}]
    )
    if content is not None:
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            tfrecord.Writer(file, None, "none").append(b"no Example")  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=f"{path}: .*; fetch or write it again"):
        opened(tmp_path)


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
        source, listing = opened(tmp_path / "numbers" / "1.0.0")
        with pytest.raises(SourceError, match="uint8 with encoding 'none'; expected"):
            rows_of(source, listing)
