"""Training from shards: the online path's batches, whole and in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from datasets.errors import Damaged, EnvironmentFailed, OutputError, UserError
from pipeline.online import augmented, open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.shard_images import AllCopies, ShardImages
from pipeline.stream import Stream, as_dataset
from tests.running import run, start, write_photos

POLICY = "shift()|rotate()|brightness()"


def output(folder: Path, *options: object) -> Path:
    job = ("augment", "--limit", 300, "--copies", 3, "--seed", 5, "--policy", POLICY)
    run(*job, "--workers", 0, "--block-samples", 64, *options, "--out", folder / "out")
    return folder / "out"


def online(dataset: str = "digits", **options) -> Stream:
    config = AugmentConfig(dataset, Path("unused"), policy=POLICY, seed=5, **options)
    source = open_images(config, "memory", Report(quiet=True))
    return Stream(source, source.usable, 32, order_seed=9)


def offline(folder: Path) -> Stream:
    source = ShardImages(folder, "train")
    return Stream(source, source.usable, 32, order_seed=9)


@pytest.mark.parametrize("form", ["parquet", "tfrecord"])
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_batches_from_shards_are_the_online_ones(tmp_path: Path, form: str, encoding: str) -> None:
    out = output(tmp_path, "--format", form, "--encoding", encoding)
    ours, theirs = online(limit=300, block_samples=64), offline(out)
    n = 3 * ours.steps_per_epoch
    pairs = zip(
        augmented(ours, 0, n, "opencv").as_numpy_iterator(),
        as_dataset(theirs, 0, n).as_numpy_iterator(),
        strict=True,
    )
    for (a, b), (c, d) in pairs:
        assert_array_equal(a, c)
        assert_array_equal(b, d)


def test_an_output_that_is_replaced_is_not_read_on(tmp_path: Path) -> None:
    out = output(tmp_path)
    same, other = ShardImages(out, "train"), ShardImages(out, "train")
    whole = same.images(same.usable, 1)
    output(tmp_path, "--overwrite")
    assert_array_equal(ShardImages(out, "train").images(same.usable, 1), whole)
    assert_array_equal(other.images(other.usable[:1], 2), same.images(same.usable[:1], 2))
    output(tmp_path, "--overwrite", "--seed", 6)
    with pytest.raises(EnvironmentFailed, match="another output took its place"):
        other.images(other.usable, 1)
    newest = ShardImages(out, "train")
    (out / "_SUCCESS").unlink()  # as for a moment of each commit
    with pytest.raises(EnvironmentFailed, match="another output took its place"):
        newest.images(newest.usable, 1)


def test_photos_in_many_blocks_too(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 60)
    size = ("--image-size", "70x90", "--encoding", "png", "--block-samples", 8)
    out = output(tmp_path, "--dataset", photos, *size)
    ours = online(str(photos), image_size=(70, 90), block_samples=8, limit=300)
    theirs = offline(out)
    for step in range(2 * ours.steps_per_epoch):
        for a, b in zip(ours.batch(step), theirs.batch(step), strict=True):
            assert_array_equal(a, b)


def test_after_the_last_copy_comes_the_first_again(tmp_path: Path) -> None:
    stream = offline(output(tmp_path))
    copies = [stream.chosen(e * stream.steps_per_epoch)[0] for e in range(7)]
    assert copies == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("form", ["parquet", "tfrecord"])
def test_all_copies_of_an_epoch_are_the_rows_of_the_shards(tmp_path: Path, form: str) -> None:
    source = ShardImages(output(tmp_path, "--format", form), "train")
    rows, shown = AllCopies(source), source.usable[::2]
    stream = Stream(rows, rows.rows(shown), 32, order_seed=9)
    want = {(label, image.tobytes()) for copy in range(4) for label, image in zip(
        source.labels[shown], source.images(shown, copy), strict=True)}  # fmt: skip
    orders = []
    for epoch in range(2):
        first = epoch * stream.steps_per_epoch
        batches = [stream.batch(first + step) for step in range(stream.steps_per_epoch)]
        found = [(label, image.tobytes()) for images, labels in batches
                 for label, image in zip(labels, images, strict=True)]  # fmt: skip
        assert len(found) == 4 * len(shown)
        assert set(found) == want
        orders.append(stream.order(epoch))
    assert not np.array_equal(*orders)
    again = Stream(rows, rows.rows(shown), 32, order_seed=9)
    assert_array_equal(again.order(1), orders[1])
    copies = orders[0] // len(source.ids)
    assert len(set(copies[:32].tolist())) == 4  # a batch mixes copies


def test_originals_come_as_they_are_and_are_missed_where_there_are_none(tmp_path: Path) -> None:
    source = ShardImages(output(tmp_path), "test")
    ours = open_images(
        AugmentConfig("digits", Path("unused"), split="test", limit=300), "memory", Report(True)
    )
    where = {name: i for i, name in enumerate(ours.ids)}
    positions = np.array([where[name] for name in source.ids])
    assert_array_equal(source.images(source.usable, 0), ours.images(positions, 0))
    assert_array_equal(source.labels, ours.labels[positions])
    out = output(tmp_path / "b", "--no-original")
    with pytest.raises(UserError, match="has no originals, which validation needs"):
        ShardImages(out, "train").images(np.arange(3), 0)


def test_shards_that_change_under_a_training_are_noticed(tmp_path: Path) -> None:
    source = ShardImages(output(tmp_path), "train")
    few = output(tmp_path / "few", "--copies", 1)
    for shard in few.glob("train-*"):
        (tmp_path / "out" / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(Damaged, match=r"has 0 rows of copy 3, expected .* it changed while it was"):
        source.images(source.usable, 3)


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    out = output(tmp_path)
    with pytest.raises(UserError, match="has no split 'val', only"):
        ShardImages(out, "val")
    shard = sorted(out.glob("train-*"))[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(Damaged, match="not as it was written"):
        ShardImages(out, "train")
    shard.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    ShardImages(out, "train")  # the size fits
    with pytest.raises(Damaged, match="its sha256 is not the manifest's"):
        ShardImages(out, "train", verify=True)
    shard.write_bytes(whole)
    (out / "_SUCCESS").unlink()
    with pytest.raises(Damaged, match="no _SUCCESS"):
        ShardImages(out, "train")
    with pytest.raises(OutputError, match="no such folder"):
        ShardImages(tmp_path / "nothing", "train")


def test_a_training_that_verifies_notices_what_no_reader_would(tmp_path: Path) -> None:
    out = output(tmp_path)
    shard = min(out.glob("test-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b"created", b"Created").replace(b"parquet-cpp", b"parquet-CPP"))
    assert shard.read_bytes() != whole
    assert len(ShardImages(out, "test").usable) == 300
    # A process of its own does not wait for TensorFlow.
    training = start("train", "--offline", out, "--verify", "--out", tmp_path / "run")
    _, said = training.communicate(timeout=60)
    assert training.returncode == 3
    assert f"{shard}: its sha256 is not the manifest's" in said
    assert not (tmp_path / "run").exists()
