"""A user's own images: a folder of class folders, or a list of paths and labels."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from datasets.errors import SourceError
from datasets.fingerprint import fingerprint, scan
from datasets.folder import Folder, split_by_hash
from datasets.images import decode, encode
from datasets.listing import ListFile
from datasets.source import Listing, Source, check_listing, is_held_out
from tests.running import run, write_photos

IDS = st.lists(st.text(max_size=8), max_size=40, unique=True)
PNG = encode(np.arange(60, dtype=np.uint8).reshape(4, 5, 3), "png", 95)


def write_files(root: Path, *paths: str, data: bytes = PNG) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def classes_of(listing: Listing) -> dict[str, str]:
    """Sample id -> the name of its class."""
    return {
        sample_id: listing.classes[label]
        for samples in listing.splits.values()
        for sample_id, label in zip(samples.ids, samples.labels.tolist(), strict=True)
    }


def splits_of(listing: Listing) -> dict[str, set[str]]:
    return {split: set(samples.ids) for split, samples in listing.splits.items()}


def test_a_subfolder_is_a_class_and_paths_are_ids(tmp_path: Path) -> None:
    root = write_files(tmp_path, "dog/b.png", "dog/more/c.png", "cat/a.png", "cat/b.png")
    listing = Folder(root).listing()
    assert listing.classes == ("cat", "dog")
    assert classes_of(listing) == {
        **{"cat/a.png": "cat", "cat/b.png": "cat"},
        **{"dog/b.png": "dog", "dog/more/c.png": "dog"},
    }


def test_each_image_is_read_from_its_own_file(tmp_path: Path) -> None:
    source = Folder(write_photos(tmp_path / "photos", 10))
    for samples in source.listing().splits.values():
        for sample_id, data in zip(samples.ids, source.read(samples.refs), strict=True):
            assert data == (source.root / sample_id).read_bytes()


def test_train_val_and_test_folders_are_splits(tmp_path: Path) -> None:
    root = write_files(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    listing = Folder(write_files(root, "Test/fox/4.png")).listing()
    assert listing.classes == ("cat", "dog", "fox")
    assert splits_of(listing) == {
        "train": {"train/cat/1.png", "train/dog/2.png"},
        "val": {"val/cat/3.png"},
        "test": {"Test/fox/4.png"},
    }
    assert classes_of(listing)["Test/fox/4.png"] == "fox"


def test_a_class_may_be_called_train_where_others_are_no_splits(tmp_path: Path) -> None:
    listing = Folder(write_files(tmp_path, "train/1.png", "bus/2.png")).listing()
    assert listing.classes == ("bus", "train")


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path, "Train/cat/1.png", "train/cat/2.png")
    with pytest.raises(SourceError, match="folders Train, train are one split; join"):
        Folder(root).listing()


@given(IDS, st.text(max_size=8), st.floats(0, 1))
def test_adding_a_sample_never_moves_another_to_the_other_side(
    ids: list[str], added: str, fraction: float
) -> None:
    before = is_held_out(ids, fraction)
    assert is_held_out([added, *ids], fraction)[1:].tolist() == before.tolist()


@given(IDS, st.randoms(use_true_random=False))
def test_a_split_by_hash_puts_every_sample_on_one_side_whatever_their_order(
    ids: list[str], rng
) -> None:
    def sides(ids: list[str]) -> dict[str, set[tuple[str, int, str]]]:
        labels = np.array([len(i) for i in ids], np.int64)
        made = split_by_hash(ids, labels, ids)
        return {
            split: set(zip(s.ids, s.labels.tolist(), s.refs, strict=True))
            for split, s in made.items()
        }

    found = sides(ids)
    assert found["train"] | found["test"] == {(i, len(i), i) for i in ids}
    assert not found["train"] & found["test"]
    assert sides(rng.sample(ids, len(ids))) == found


def test_the_share_that_is_held_out_is_the_asked_one() -> None:
    ids = [f"{i}.png" for i in range(10_000)]
    for fraction in (0.1, 0.2, 0.5):
        # Five standard deviations of a binomial count.
        allowed = 5 * np.sqrt(len(ids) * fraction * (1 - fraction))
        assert abs(is_held_out(ids, fraction).sum() - fraction * len(ids)) < allowed
    assert not is_held_out(ids, 0).any()
    assert is_held_out(ids, 1).all()


def test_the_case_of_an_extension_does_not_matter(tmp_path: Path) -> None:
    names = ("cat/a.PNG", "cat/b.JpG", "cat/c.jpeg", "cat/d.Tiff", "cat/e.WEBP")
    listing = Folder(write_files(tmp_path, *names)).listing()
    assert set(classes_of(listing)) == set(names)
    assert listing.ignored == ()


def test_hidden_files_and_folders_are_ignored_without_a_word(tmp_path: Path) -> None:
    root = write_files(tmp_path, "cat/a.png", "cat/.a.png", "cat/.thumbs/a.png", ".git/a.png")
    listing = Folder(write_files(root, ".DS_Store", data=b"")).listing()
    assert listing.classes == ("cat",)
    assert set(classes_of(listing)) == {"cat/a.png"}
    assert listing.ignored == ()


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_files_that_are_passed_over_are_named(tmp_path: Path, prefix: str) -> None:
    photos = write_files(tmp_path / "photos", f"{prefix}cat/a.png")
    passed_over = sorted([f"{prefix}cat/deep/notes.txt", f"{prefix}loose.png", "README"])
    write_files(photos, *passed_over)
    command = ("augment", "--dataset", photos, "--workers", 0, "--out", tmp_path / "out")
    told = run(*command).stderr.splitlines()[0]
    assert told.startswith("3 passed over")
    assert all(name in told for name in passed_over)
    events = map(json.loads, run(*command, "--log-format", "json").stderr.splitlines())
    assert [e["files"] for e in events if e["event"] == "ignored"] == [passed_over]


def test_names_that_are_no_utf8_reach_the_rows(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 8), tmp_path / "out"
    folder = os.path.join(os.fsencode(photos), b"caf\xe9")
    os.mkdir(folder)
    image = np.random.default_rng(2).integers(0, 256, (20, 24, 3), np.uint8)
    with open(os.path.join(folder, b"\xff\xfe.png"), "wb") as file:
        file.write(encode(image, "png", 95))
    run(
        *("augment", "--dataset", photos, "--encoding", "png", "--copies", 1, "--split", "all"),
        *("--workers", 2, "--out", out),
    )
    rows = [row for path in out.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 9 * 2
    (original,) = (r for r in rows if r["sample_id"] == r"caf\xe9/\xff\xfe.png" and not r["copy"])
    assert_array_equal(decode(original["image"]["bytes"]), image)
    info = json.loads(pq.read_schema(next(out.glob("*.parquet"))).metadata[b"huggingface"])["info"]
    assert info["features"]["label"]["names"][original["label"]] == r"caf\xe9"


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    elsewhere = write_files(tmp_path / "elsewhere", "b.png")
    root = write_files(tmp_path / "photos", "cat/a.png", "cat/deep/c.png")
    (root / "cat" / "deep" / "up").symlink_to(root / "cat")
    (root / "cat" / "all").symlink_to(root)
    (root / "cat" / "other").symlink_to(elsewhere)
    (root / "cat" / "d.png").symlink_to(elsewhere / "b.png")
    names = {Path(i).name for i in classes_of(Folder(root).listing())}
    assert names == {"a.png", "b.png", "c.png", "d.png"}


def test_a_folder_that_is_linked_twice_counts_once_under_the_first_name(tmp_path: Path) -> None:
    elsewhere = write_files(tmp_path / "elsewhere", "1.png")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for name in "hdaecfbg":  # in no order, or the order of the disk might decide
        (tmp_path / "photos" / "cat" / name).symlink_to(elsewhere)
    assert set(classes_of(Folder(tmp_path / "photos").listing())) == {"cat/a/1.png"}


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


@pytest.mark.parametrize(
    "name", ["cat\r", " cat", "cat ", "c\tat", "c\nat", "\x7fcat", "cat\x85", " "]
)
def test_a_class_name_that_no_reader_keeps_is_refused(tmp_path: Path, name: str) -> None:
    listing = Folder(write_files(tmp_path, f"{name}/1.png", "dog/2.png")).listing()
    with pytest.raises(SourceError, match=r"a class is named .*: rename it") as caught:
        check_listing("photos", listing)
    assert repr(name) in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_no_regular_file_is_named_and_never_read(tmp_path: Path) -> None:
    root = write_files(tmp_path, "cat/a.png")
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "cat" / "device.png").symlink_to("/dev/zero")
    with (root / "cat" / "large.png").open("wb") as file:
        file.truncate(10**9 + 1)  # a hole: takes no room
    source = Folder(root)
    found = {}
    for samples in source.listing().splits.values():
        errors = scan(source, samples).errors
        found |= {samples.ids[i]: why for i, why in errors.items()}
    assert found == {
        "cat/device.png": "cannot be read: not a regular file",
        "cat/large.png": "cannot be read: 1,000,000,001 bytes, at most 1,000,000,000 are read",
        "cat/pipe.jpg": "cannot be read: not a regular file",
    }


def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    photo = write_files(tmp_path / "photos", "a.png") / "a.png"
    (tmp_path / "lists").mkdir()
    source = write_list(tmp_path / "lists", "csv", {"path": [photo], "label": ["cat"]})
    samples = next(s for s in source.listing().splits.values() if len(s))
    assert list(source.read(samples.refs)) == [PNG]


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
        ("parquet", {"image": [{"bytes": PNG}], "label": [1]}, "row 1: .* give its folder instead"),
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
