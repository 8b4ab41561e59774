"""A user's own images in a folder of class folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from datasets.catalog import open_source
from datasets.errors import SourceError
from datasets.fingerprint import scan
from datasets.folder import Folder, split_by_hash
from datasets.images import decode, encode
from datasets.shard_files import find_shards
from datasets.source import Listing, check_listing, is_held_out
from pipeline.online import open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from tests.running import run, write_photos
from trainers.data import DataConfig, open_data

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


def test_other_folders_beside_splits_are_passed_over_by_name(tmp_path: Path) -> None:
    root = write_files(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "val/4.png")
    listing = Folder(write_files(root, "__MACOSX/train/._1.png", "extra/c/5.png")).listing()
    assert listing.classes == ("a", "b")
    assert splits_of(listing) == {
        "train": {"train/a/1.png", "train/b/2.png"},
        "test": {"test/a/3.png"},
    }
    assert listing.ignored == tuple(
        f"{name}/ (no split with class folders)" for name in ("__MACOSX", "extra", "val")
    )


@pytest.mark.parametrize(
    "inside", [("daisy/1.png", "rose/2.png"), ("train/daisy/1.png", "test/daisy/2.png")]
)
def test_a_folder_around_the_classes_is_no_class(tmp_path: Path, inside: tuple[str, ...]) -> None:
    root = write_files(tmp_path, "__MACOSX/._a.png", *(f"flower_photos/{path}" for path in inside))
    with pytest.raises(
        SourceError, match=f"the classes, give {root / 'flower_photos'}, else a CSV"
    ):
        Folder(root).listing()
    assert len(check_listing("flowers", Folder(root / "flower_photos").listing()).classes) > 0


def test_one_class_folder_with_images_of_its_own_is_a_class(tmp_path: Path) -> None:
    listing = Folder(write_files(tmp_path, "cat/1.png", "cat/young/2.png")).listing()
    assert classes_of(listing) == {"cat/1.png": "cat", "cat/young/2.png": "cat"}


@pytest.mark.parametrize(
    "shard",
    [
        "plain_text/train-00000-of-00001.parquet",
        "plain_text/data/train-00000-of-00001-0123456789abcdef.parquet",
        "1.0.0/birds-train.tfrecord-00000-of-00001",
        "small/1.0.0/birds-train.tfrecord-00000-of-00001",
    ],
)
def test_shards_that_lie_deeper_are_told_where(tmp_path: Path, shard: str) -> None:
    root = write_files(tmp_path, shard, "README.md", f"{shard.split('/')[0]}/features.json")
    with pytest.raises(
        SourceError, match=r"no images found, but shards in .*; give that"
    ) as caught:
        open_source(str(root), tmp_path).listing()
    place = Path(str(caught.value).partition("shards in ")[2].partition(";")[0])
    assert root / shard in find_shards(place)["train"]


@pytest.mark.parametrize("shard", ["train.parquet", "train/0000.parquet", "a/x.tfrecord"])
def test_shards_whose_names_are_not_known_are_told_how_to_name_them(
    tmp_path: Path, shard: str
) -> None:
    root = write_files(tmp_path, shard)
    with pytest.raises(
        SourceError, match=f"no images found, but {shard}: if that is a shard, name"
    ):
        open_source(str(root), tmp_path).listing()


def test_splits_below_the_classes_are_never_split_anew(tmp_path: Path) -> None:
    root = write_files(tmp_path, "bottle/train/good/1.png", "bottle/test/bad/2.png", "cable/3.png")
    with pytest.raises(SourceError, match="hold folders test and train, whose images would be"):
        Folder(root).listing()
    (root / "bottle" / "test").rename(root / "bottle" / "other")
    assert Folder(root).listing().classes == ("bottle", "cable")


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
    names = ("cat/a.PNG", "cat/b.JpG", "cat/c.jpeg", "cat/d.Tiff", "cat/e.WEBP", "cat/f.jfif")
    listing = Folder(write_files(tmp_path, *names)).listing()
    assert set(classes_of(listing)) == set(names)
    assert listing.ignored == ()


def test_images_that_cannot_be_decoded_here_count_as_inputs_that_cannot_be_used(
    tmp_path: Path,
) -> None:
    others = ("cat/a.heic", "cat/b.AVIF", "dog/c.jp2", "dog/d.svg", "dog/e.psd", "dog/f.tga")
    source = Folder(write_files(tmp_path, "cat/g.png", *others, data=b"unknown"))
    listing = source.listing()
    assert listing.ignored == ()
    errors = [why for part in listing.splits.values() for why in scan(source, part).errors.values()]
    assert errors == ["not a JPEG, PNG, WebP, BMP, TIFF or GIF image"] * 7


def test_hidden_files_and_folders_are_ignored_without_a_word(tmp_path: Path) -> None:
    root = write_files(tmp_path, "cat/a.png", "cat/.a.png", "cat/.thumbs/a.png", ".git/a.png")
    listing = Folder(write_files(root, ".DS_Store", data=b"")).listing()
    assert listing.classes == ("cat",)
    assert set(classes_of(listing)) == {"cat/a.png"}
    assert listing.ignored == ()


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_files_that_are_passed_over_are_named(tmp_path: Path, prefix: str) -> None:
    photos = write_files(tmp_path / "photos", f"{prefix}cat/a.png")
    loose = f"{prefix}loose.png"
    write_files(photos, f"{prefix}cat/deep/notes.txt", loose, "README")
    passed_over = sorted(
        [f"{prefix}cat/deep/notes.txt", f"{loose} (an image in no class folder)", "README"]
    )
    command = ("augment", "--dataset", photos, "--workers", 0, "--out", tmp_path / "out")
    told = run(*command).stderr.splitlines()[0]
    assert told.startswith("passed over: ")
    assert all(name in told for name in passed_over)
    events = map(json.loads, run(*command, "--log-format", "json").stderr.splitlines())
    assert [e["files"] for e in events if e["event"] == "ignored"] == [passed_over]


def test_files_that_are_passed_over_are_named_online_and_by_trainings_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", 30)
    write_files(photos, "README", "cat/notes.txt")
    config = AugmentConfig(str(photos), Path("unused"), image_size=(8, 8))
    open_images(config, "memory", Report())
    assert "passed over: README, cat/notes.txt" in capsys.readouterr().err
    open_data(DataConfig(config), Report())
    assert "passed over: README, cat/notes.txt" in capsys.readouterr().err


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
    root = write_files(tmp_path / "photos", "dog/2.png")
    assert set(classes_of(Folder(root).listing())) == {"cat/a/1.png", "dog/2.png"}


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


def test_other_classes_are_told_whenever_another_version_becomes_the_latest(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    job = ("augment", "--copies", 1, "--workers", 0, "--publish", "--out", out, "--dataset")
    run(*job, photos)
    first = (out / "latest").resolve()
    other = write_photos(tmp_path / "other", classes=("ant", "cat", "dog"))
    assert f"the classes are others than in {first} (3, there were 2)" in run(*job, other).stderr
    assert "(2, there were 3), so a class may have another number" in run(*job, photos).stderr
    assert "the classes are" not in run(*job, photos).stderr


def test_classes_without_an_image_and_classes_that_came_or_went_are_told(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "@eaDir").mkdir()
    job = ("augment", "--dataset", photos, "--copies", 1, "--workers", 0, "--overwrite")
    job += ("--out", tmp_path / "out")
    assert "no image is of the class '@eaDir'" in run(*job).stderr
    (photos / "@eaDir").rmdir()
    said = run(*job).stderr
    assert "no image is of" not in said
    assert f"the classes are others than in {tmp_path / 'out'} (2, there were 3)" in said
