"""A list of paths and labels as a data set; what a source held, as one hash."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.errors import SourceError
from datasets.fingerprint import fingerprint, scan
from datasets.folder import Folder
from datasets.images import encode
from datasets.listing import ListFile
from datasets.source import Source, check_listing, is_held_out
from tests.running import run, write_photos
from tests.test_folders import PNG, classes_of, splits_of, write_files

ROWS = [("a.png", "10", "train"), ("sub/b.png", "2", "val"), ("c.png", "10", "test")]


def write_list(folder: Path, kind: str, columns: dict[str, list[object]]) -> ListFile:
    path = folder / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        lines = [columns.keys(), *zip(*columns.values(), strict=True)]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    return ListFile(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_has_paths_beside_it_numeric_classes_in_order_and_splits(
    tmp_path: Path, kind: str
) -> None:
    images = {
        path: encode(np.full((4, 5, 3), i, np.uint8), "png", 95)
        for i, (path, *_) in enumerate(ROWS)
    }
    for path, data in images.items():
        write_files(tmp_path, path, data=data)
    paths, labels, sides = (list(column) for column in zip(*ROWS, strict=True))
    numbers: list[object] = [int(label) for label in labels]
    source = write_list(tmp_path, kind, {"path": paths, "label": numbers, "split": sides})
    listing = source.listing()
    assert listing.classes == ("2", "10")
    assert classes_of(listing) == {path: label for path, label, _ in ROWS}
    assert splits_of(listing) == {side: {path} for path, _, side in ROWS}
    for samples in listing.splits.values():
        assert list(source.read(samples.refs)) == [images[i] for i in samples.ids]


def test_a_list_without_splits_is_split_by_hash_of_its_paths(tmp_path: Path) -> None:
    paths: list[object] = [f"{i}.png" for i in range(50)]
    source = write_list(tmp_path, "csv", {"file_name": paths, "class": ["cat"] * 50})
    held_out = {str(p) for p, held in zip(paths, is_held_out(paths, 0.2), strict=True) if held}
    assert splits_of(source.listing())["test"] == held_out


def test_a_byte_order_mark_is_no_part_of_a_columns_name(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("path,label\nä.png,Bär\n".encode("utf-8-sig"))
    assert classes_of(ListFile(tmp_path / "l.csv").listing()) == {"ä.png": "Bär"}


def test_numbers_that_are_written_in_several_ways_have_one_order(tmp_path: Path) -> None:
    labels = ["1", "01", "0001", "00001", "001", "000001", "2"]
    paths: list[object] = [f"{i}.png" for i in range(7)]
    listing = write_list(tmp_path, "csv", {"path": paths, "label": labels}).listing()
    assert listing.classes == ("000001", "00001", "0001", "001", "01", "1", "2")


def test_whole_numbers_that_are_stored_as_floats_are_the_integers_they_are(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"path": ["a", "b", "c"], "label": [10.0, 2.0, 0.0]}
    assert write_list(tmp_path, "parquet", columns).listing().classes == ("0", "2", "10")
    assert write_list(tmp_path, "csv", columns).listing().classes == ("0.0", "2.0", "10.0")


def test_the_case_of_a_split_and_the_space_around_it_do_not_matter(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "path": ["a", "b", "c", "d"],
        "label": [1, 1, 1, 1],
        "split": ["Train", "train", "TRAIN ", "test"],
    }
    listing = check_listing("list", write_list(tmp_path, "csv", columns).listing())
    assert splits_of(listing) == {"train": {"a", "b", "c"}, "test": {"d"}}


def test_where_nothing_can_be_read_the_first_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label,split\nnone.png,a,train\n")
    for command in ("augment", "train"):
        job = (command, "--dataset", tmp_path / "list.csv", "--out", tmp_path / "out")
        said = run(*job, code=2).stderr
        assert "the first is none.png: cannot be read: No such file or directory" in said


def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    photo = write_files(tmp_path / "photos", "a.png") / "a.png"
    (tmp_path / "lists").mkdir()
    source = write_list(tmp_path / "lists", "csv", {"path": [photo], "label": ["cat"]})
    samples = next(s for s in source.listing().splits.values() if len(s))
    assert list(source.read(samples.refs)) == [PNG]


def test_a_path_from_the_root_and_one_from_the_list_may_be_one_file(tmp_path: Path) -> None:
    paths: list[object] = ["a.png", tmp_path / "a.png"]
    with pytest.raises(SourceError, match="are one file; remove one"):
        write_list(tmp_path, "csv", {"path": paths, "label": [1, 1]}).listing()


@pytest.mark.parametrize("labels", [[1, 0, 1], [1, 2, 0], [1, -1, 0], ["owl", "owl", "owl"]])
def test_a_parquet_list_has_the_classes_that_hugging_face_named(
    tmp_path: Path, labels: list[object]
) -> None:
    info = {"info": {"features": {"label": {"names": ["owl", "emu"], "_type": "ClassLabel"}}}}
    table = pa.table({"path": ["a", "b", "c"], "label": labels})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "l.parquet"
    )
    source = ListFile(tmp_path / "l.parquet")
    if labels == [1, 0, 1]:
        assert source.listing().classes == ("owl", "emu")
        assert classes_of(source.listing()) == {"a": "emu", "b": "owl", "c": "emu"}
    else:
        with pytest.raises(
            SourceError, match=r"has the label 2, but|lacks a path or|is none of their numbers"
        ):
            check_listing("list", source.listing())


@pytest.mark.parametrize(
    ("kind", "columns", "expected"),
    [
        ("parquet", {"path": ["a", "a"], "label": [1, 2]}, "sample id 'a' appears"),
        ("csv", {"path": ["a", "a"], "label": [1, 1], "split": ["train", "test"]}, "'a' appears"),
        ("parquet", {"path": ["a", None], "label": [1, 2]}, "row 2 lacks a path or a label"),
        ("parquet", {"path": ["a", "b"], "label": [None, 2]}, "row 1 lacks a path or a label"),
        ("csv", {"path": ["a"], "label": [1], "split": [""]}, "row 1 lacks a split"),
        ("parquet", {"path": ["a"], "label": [1], "split": [None]}, "row 1 lacks a split"),
        ("csv", {"path": ["a"], "label": [1], "split": ["../x"]}, "a split is named '../x'"),
        ("csv", {"path": ["a"], "label": [1], "split": ["été"]}, "a split is named 'été'"),
        ("csv", {"path": ["a"], "label": [1], "split": [" "]}, "a split is named ''"),
        ("parquet", {"path": ["a", "b"], "label": [1.0, np.nan]}, "row 2 lacks a path or a label"),
        ("parquet", {"path": ["a"], "label": [1], "split": [np.nan]}, "row 1 lacks a split"),
        (
            "csv",
            {"path": ["a\0b"], "label": [1]},
            r"row 1: expected the path of an image, found 'a\\x00b'",
        ),
        ("csv", {"path": ["a/x", "./a/x"], "label": [1, 1]}, r"'a/x' and '\./a/x' are one file"),
        ("csv", {"path": ["a/../a/x", "a/x"], "label": [1, 1]}, r"'a/\.\./a/x' and 'a/x' are one"),
        ("parquet", {"image": [{"bytes": PNG}], "label": [1]}, "row 1: .* and give its folder"),
    ],
)
def test_a_list_with_a_wrong_row_is_refused(
    tmp_path: Path, kind: str, columns: dict[str, list[object]], expected: str
) -> None:
    with pytest.raises(SourceError, match=expected) as caught:
        check_listing("list", write_list(tmp_path, kind, columns).listing())
    assert len(str(caught.value)) < 300


def fingerprint_of(source: Source) -> str:
    listing = source.listing()
    scans = {split: scan(source, samples) for split, samples in listing.splits.items()}
    return fingerprint(listing.classes, listing.splits, scans)


def test_a_fingerprint_changes_with_any_content_label_name_or_box(tmp_path: Path) -> None:
    write_photos(tmp_path, 6)
    source = Folder(tmp_path)
    before = [fingerprint_of(source)]
    path = tmp_path / "cat" / "000.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    before.append(fingerprint_of(source))
    path.rename(tmp_path / "dog" / "000.png")
    before.append(fingerprint_of(source))
    (tmp_path / "cat").rename(tmp_path / "cats")
    before.append(fingerprint_of(source))
    listing = source.listing()
    scans = {split: scan(source, samples) for split, samples in listing.splits.items()}
    boxes = {s: replace(x, boxes=np.ones((len(x), 4), np.int32)) for s, x in listing.splits.items()}
    before.append(fingerprint(listing.classes, boxes, scans))
    assert len(set(before)) == 5


def test_a_fingerprint_does_not_depend_on_order_or_place(tmp_path: Path) -> None:
    rows = write_photos(tmp_path / "a", 8)
    names = [p.relative_to(rows).as_posix() for p in sorted(rows.rglob("*.png"))]
    (tmp_path / "a").rename(tmp_path / "b")
    found = {
        fingerprint_of(
            write_list(tmp_path / "b", "csv", {"path": order, "label": [i[:3] for i in order]})
        )
        for order in (names, names[::-1], names[4:] + names[:4])
    }
    assert len(found) == 1
