"""Shards that others wrote, row by row: what is read, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from datasets import tfrecord
from datasets.errors import SourceError
from datasets.fingerprint import scan
from datasets.images import encode
from datasets.manifest import Record
from datasets.shard_files import PARQUET, TFRECORD
from pipeline.offline import in_order
from tests.test_shard_sources import opened

IMAGES = np.random.default_rng(5).integers(0, 256, (6, 7, 9, 3), np.uint8)
FILES = [encode(image, "png", 95) for image in IMAGES]


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
        ({"image": FILES[:1], "label": ["owl"]}, "its column 'label' holds text; .*: number them"),
        ({"image": FILES[:1], "label": [b"owl"]}, "has the label b'owl'; expected a whole number"),
        ({"image": FILES[:2], "label": [0, None]}, r"its row \(0, 1\) has no label, but"),
        ({"image": FILES[:2], "label": [0, -1]}, r"its row \(0, 1\) has no label, but others have"),
        ({"image": FILES[:2], "label": [0, np.nan]}, r"its row \(0, 1\) has no label, but others"),
        (
            {"image": FILES[:2], "label": [-1, -1]},
            "not one row has a label; expected whole numbers",
        ),
        ({"image": FILES[:1], "label": [1.7]}, "has the label 1.7; expected a whole number from 0"),
        ({"image": FILES[:1], "label": [np.inf]}, "has the label inf; expected a whole number"),
        ({"image": FILES[:1], "label": [10**9]}, "has the label 1000000000; .* from 0 to 999,999"),
        ({"image": FILES[:1], "label": [-2]}, "has the label -2; expected a whole number from 0"),
        ({"image": FILES[:1], "label": [[0, 1]]}, r"has the label \[0, 1\]; expected a whole"),
    ],
)
def test_parquet_that_cannot_be_a_data_set_is_told_in_one_line(
    tmp_path: Path, columns: dict[str, Any], expected: str
) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", columns)
    with pytest.raises(SourceError, match=expected):
        opened(tmp_path)


def test_labels_that_are_whole_numbers_may_be_stored_as_floats(tmp_path: Path) -> None:
    columns = {"image": FILES[:3], "label": [10.0, 2.0, 0.0]}
    write_parquet(tmp_path / "train-00000-of-00001.parquet", columns)
    assert opened(tmp_path)[1].splits["train"].labels.tolist() == [10, 2, 0]


@pytest.mark.parametrize("missing", [-1, None, float("nan")])
def test_a_split_without_labels_is_left_out_and_named(tmp_path: Path, missing: Any) -> None:
    for split, labels in (("test", [missing] * 6), ("train", [0, 1] * 3)):
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        write_parquet(path, {"image": FILES, "label": labels})
    listing = opened(tmp_path)[1]
    assert list(listing.splits) == ["train"]
    assert listing.classes == ("0", "1")
    assert listing.ignored == ("test (a split without labels)",)


@pytest.mark.parametrize(
    "info", ["{", "[]", '{"info": 1}', '{"info": {"features": {"label": {"names": [0, 1]}}}}']
)
def test_metadata_that_is_not_of_the_hub_is_told_in_one_line(tmp_path: Path, info: str) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    table = pa.table({"image": FILES, "label": [0] * 6})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), path)
    with pytest.raises(
        SourceError, match=f"{path}: its shape or `huggingface` metadata cannot be read: "
    ):
        opened(tmp_path)


GREY = [encode(image[..., :1], "png", 95) for image in IMAGES]


@pytest.mark.parametrize("format", ["parquet", "tfrecord"])
@pytest.mark.parametrize(
    ("files", "channels"),
    [(GREY, 1), ([*GREY[:5], FILES[5]], 3), (FILES, 3), ([b"broken", *GREY[:5]], 1)],
)
def test_images_stay_in_colour_unless_all_are_grey(
    tmp_path: Path, format: str, files: list[bytes], channels: int
) -> None:
    for part, some in enumerate((files[:3], files[3:])):
        if format == "parquet":
            path = tmp_path / f"train-0000{part}-of-00002.parquet"
            write_parquet(path, {"image": as_structs([*some]), "label": [0] * 3})
        else:
            path = tmp_path / f"birds-train.tfrecord-0000{part}-of-00002"
            write_tfrecord(path, [{"image": data, "label": 0} for data in some])
    assert opened(tmp_path)[0].channels == channels


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["0-of-3", "2-of-3"], "train has 2 shards, expected 3: 00001-of-00003 is missing; fetch"),
        (["0-of-2"], "train has 1 shards, expected 2: 00001-of-00002 is missing"),
        (["0-of-1", "0-of-2", "1-of-2"], "more than its 2 shards: 00000-of-00001 is one too many"),
        (["0-of-1", "0-of-1-0123456789abcdef"], "its 1 shards: 00000-of-00001 is one too many"),
    ],
)
def test_each_shard_of_a_split_must_be_there_once(
    tmp_path: Path, parts: list[str], expected: str
) -> None:
    write_parquet(tmp_path / "test-00000-of-00001.parquet", {"image": FILES, "label": [0] * 6})
    for part in parts:
        index, of, n, *rest = part.split("-")
        name = "-".join(["train", f"0000{index}", of, f"0000{n}", *rest])
        write_parquet(tmp_path / f"{name}.parquet", {"image": FILES, "label": [0] * 6})
    with pytest.raises(SourceError, match=f"{tmp_path}: .*{expected}"):
        opened(tmp_path)


def test_shards_of_six_digits_come_in_the_order_of_their_numbers() -> None:
    names = [f"train-{i:05d}-of-131072.parquet" for i in (10_000, 10_001, 99_999, 100_000)]
    assert all(PARQUET.fullmatch(name) for name in names)
    assert TFRECORD.fullmatch("digits-train.tfrecord-00005-of-131072")
    records = [Record(name, "train", 1, 1, "", 0, {}, []) for name in names]
    assert [record.name for record in in_order(records[::-1])] == names


def test_a_missing_tfrecord_shard_is_noticed(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "birds-train.tfrecord-00001-of-00002", [{"image": b"", "label": 0}])
    with pytest.raises(SourceError, match="expected 2: 00000-of-00002 is missing"):
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


@pytest.mark.parametrize(
    ("names", "told"), [(["emu", "owl"], "named emu, owl"), (None, "named by their numbers alone")]
)
def test_shards_that_name_their_classes_differently_are_refused(
    tmp_path: Path, names: list[str] | None, told: str
) -> None:
    columns = {"image": FILES, "label": [0, 1] * 3}
    info = {"info": {"features": {"label": {"names": names}}}} if names else None
    write_parquet(tmp_path / "test-00000-of-00001.parquet", columns, NAMED)
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, columns, info)
    with pytest.raises(SourceError, match=f"{path}: its classes are {told}, those of .* owl, emu;"):
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
    assert source.damaged == {(str(path), 1)}  # read once, not once a row


def write_tfrecord(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A shard as others write it: no sample ids, no copies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = tfrecord.Writer(file, None, "none")  # type: ignore[arg-type]  # not asked for rows
        for row in rows:
            example = tfrecord.example_class()()
            for name, given in row.items():
                feature = example.features.feature[name]
                for value in given if isinstance(given, list) else [given]:
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
        ({"image": 7, "label": 0}, "its feature image holds numbers; expected image files"),
        ({"image": FILES[0], "label": b"owl"}, "has the label b'owl'; expected a whole number"),
        (
            {"image": FILES[0], "label": [0, 5]},
            r"its row \(12, .*\) has 2 values of label, expected",
        ),
        ({"image": FILES[:3], "label": 0}, "has 3 values of image, expected one"),
    ],
)
def test_tfrecord_that_cannot_be_a_data_set_is_told_in_one_line(
    tmp_path: Path, row: dict[str, Any], expected: str
) -> None:
    write_tfrecord(tmp_path / "birds-train.tfrecord-00000-of-00001", [row])
    with pytest.raises(SourceError, match=expected):
        opened(tmp_path)


def test_pixels_that_are_stored_in_another_way_are_told_in_one_line(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "birds-train.tfrecord-00000-of-00001", [{"image": b"x", "label": 0}])
    tensor = {"shape": {"dimensions": ["7", "9", "3"]}, "dtype": "uint8", "encoding": "zlib"}
    features = {"featuresDict": {"features": {"image": {"tensor": tensor}}}}
    (tmp_path / tfrecord.FEATURES).write_text(json.dumps(features))
    source, listing = opened(tmp_path)
    with pytest.raises(SourceError, match="uint8 with encoding 'zlib'; expected"):
        list(source.read(listing.splits["train"].refs))


def test_class_names_that_cannot_be_read_are_told_in_one_line(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "birds-train.tfrecord-00000-of-00001", [{"image": b"x", "label": 0}])
    (tmp_path / tfrecord.LABELS).write_bytes(b"\xff\n")
    with pytest.raises(SourceError, match=f"{tmp_path / tfrecord.LABELS}: cannot be read: "):
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
