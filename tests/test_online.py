"""The online path makes the images that the shards hold, in an order of its own, from any batch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.system import memory_limit
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import pipeline.stream
from datasets import images
from datasets.blocks import block_of, epoch_order
from datasets.errors import NotCommitted, PolicyError, UserError
from datasets.formats import FORMATS
from datasets.manifest import read_manifest
from datasets.source import sample_keys
from pipeline.online import augmented, contact_sheet, dataset, open_images, stream_through
from pipeline.pixels import cache_bytes
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.stream import Stream, import_tensorflow
from tests.running import run, run_script, write_photos

QUIET = Report(quiet=True)
EVERY_OP = ("shift()", "rotate()", "flip()", "brightness()", "flip(vertical=0.5)|fill(mode='wrap')")
ALL = "shift()|rotate()|flip()|brightness()"
TOGETHER = (ALL, "shift(x=0.4)|rotate(degrees=60)|fill(mode='wrap')")


def stream_of(dataset: str, batch_size: int = 50, cache: str = "memory", **options) -> Stream:
    config = AugmentConfig(dataset=dataset, data_dir=Path("unused"), **options)
    source = open_images(config, cache, QUIET)
    return Stream(source, source.usable, batch_size, order_seed=3)


def images_of(stream: Stream, engine: str, n_epochs: int) -> dict[tuple[int, int], np.ndarray]:
    """(position, copy) -> image, by iterating the data set; labels are checked on the way."""
    found = {}
    steps = range(n_epochs * stream.steps_per_epoch)
    for step, (batch, labels) in zip(
        steps, augmented(stream, 0, len(steps), engine).as_numpy_iterator(), strict=True
    ):
        copy, positions = stream.chosen(step)
        assert_array_equal(labels, stream.source.labels[positions])
        found.update({(int(i), copy): image for i, image in zip(positions, batch, strict=True)})
    return found


def rows_of(out: Path, split: str) -> dict[tuple[str, int], np.ndarray]:
    """(sample id, copy) -> decoded image of every row of a split."""
    manifest = read_manifest(out)
    found = {}
    for record in manifest.shards:
        if record.split != split:
            continue
        for rows in FORMATS[manifest.job["format"]].read(out / record.name):
            for i, stored in enumerate(rows.images):
                image = images.decode(stored) if isinstance(stored, bytes) else stored
                found[rows.ids[i], rows.copy] = image.copy()
    return found


def compare(dataset: str, out: Path, policy: str, engine: str, **options) -> None:
    """Every image of four epochs against copies 1 to 4 of the shards, bit for bit."""
    stream = stream_of(dataset, policy=policy, **options)
    rows = rows_of(out, "train")
    ids = stream.source.ids
    made = images_of(stream, engine, n_epochs=4)
    assert len(made) == 4 * len(ids)
    for (position, copy), image in made.items():
        assert_array_equal(image, rows[ids[position], copy])


@pytest.mark.parametrize("policy", [*EVERY_OP, ALL, f"{ALL}|albumentations.GaussNoise(p=0.6)"])
def test_epoch_e_is_copy_e_plus_1_bit_for_bit(tmp_path: Path, policy: str) -> None:
    job = ("augment", "--limit", 120, "--policy", policy, "--workers", 0, "--seed", 7)
    run(*job, "--out", tmp_path / "out")
    compare("digits", tmp_path / "out", policy, "opencv", seed=7, limit=120)


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_photos_are_the_same_through_png_whatever_the_cache(tmp_path: Path, cache: str) -> None:
    photos, out = write_photos(tmp_path / "photos", 20), tmp_path / "out"
    size = ("--image-size", "70x90", "--encoding", "png")
    run("augment", "--dataset", photos, *size, "--policy", ALL, "--workers", 0, "--out", out)
    stream = stream_of(str(photos), cache=cache, policy=ALL, image_size=(70, 90))
    rows, ids = rows_of(out, "train"), stream.source.ids
    for (position, copy), image in images_of(stream, "opencv", 2).items():
        assert_array_equal(image, rows[ids[position], copy])


def test_images_beyond_the_cache_are_decoded_whenever_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, options = write_photos(tmp_path / "photos", 20), {"image_size": (70, 90), "policy": ALL}
    whole = stream_of(str(photos), **options)
    monkeypatch.setattr("pipeline.pixels.cache_bytes", lambda: 7 * 70 * 90 * 3)
    part = stream_of(str(photos), **options)
    assert len(part.source.pixels.stored) == 7 < len(part.source.pixels)
    for copy in (0, 1):
        shown = whole.source.usable[::-1]
        assert_array_equal(part.source.images(shown, copy), whole.source.images(shown, copy))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image_size": 96}, "image_size: expected (height, width), got 96"),
        ({"out": "folder"}, 'out: expected Path("folder") or UPath("s3://..."), got \'folder\''),
        ({"dataset": Path("photos")}, "dataset: expected a name, path or URL as text, got "),
    ],
)
def test_values_of_another_form_are_told_before_any_work(
    options: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        AugmentConfig(**({"dataset": "digits"} | options))  # type: ignore[arg-type]
    assert str(caught.value).startswith(told)


def test_a_cluster_worker_caches_a_quarter_of_its_own_memory() -> None:
    # Other trainings run beside it.
    options = {"processes": False, "dashboard_address": "127.0.0.1:0", "memory_limit": "400 MB"}
    with LocalCluster(n_workers=1, **options) as cluster, Client(cluster) as client:
        assert client.submit(cache_bytes).result() == 10**8
    assert cache_bytes() == memory_limit() // 4


@pytest.mark.parametrize(
    ("size", "policy"),
    [*(((24, 24), policy) for policy in (*EVERY_OP, *TOGETHER)),
     *(((90, 70), policy) for policy in TOGETHER)],
)  # fmt: skip
def test_graph_ops_give_nearly_the_same_pixels(
    tmp_path: Path, size: tuple[int, int], policy: str
) -> None:
    photos = write_photos(tmp_path / "photos", 60)
    stream = stream_of(str(photos), policy=policy, image_size=size)
    ours, theirs = (images_of(stream, engine, 3) for engine in ("opencv", "tensorflow"))
    apart = np.abs(np.stack([ours[k].astype(int) - theirs[k] for k in ours]))
    # Random pixels are the worst case: each step of a matrix in float32 meets the steepest slopes.
    assert apart.max() <= 2
    assert (apart > 0).mean() < 1e-3


REAL = {  # data set: the variable that says where it lies, what is written of it
    "fashion_mnist": ("PIPELINE_DATA", ("--limit", 1000)),
    "cifar10": ("PIPELINE_DATA", ("--limit", 1000)),
    "photos": ("PIPELINE_PHOTOS", ("--limit", 40, "--image-size", 224, "--encoding", "png")),
}


@pytest.mark.parametrize("policy", [*EVERY_OP, ALL, f"{ALL}|albumentations.GaussNoise(p=0.6)"])
@pytest.mark.parametrize("name", REAL)
def test_real_images_are_the_same_online_and_offline(
    tmp_path: Path, name: str, policy: str
) -> None:
    place, options = REAL[name]
    folder = Path(os.environ.get(place) or "/nowhere", "" if name == "photos" else name)
    if not any(folder.glob("*")):
        pytest.skip(f"{place} names no folder with {name}")
    dataset, data_dir = (os.environ[place], "") if name == "photos" else (name, os.environ[place])
    where = ("--dataset", dataset, "--data-dir", data_dir or tmp_path)
    job = ("augment", *where, *options, "--no-eval-splits", "--policy", policy, "--workers", 0)
    run(*job, "--out", tmp_path / "out")
    size = (224, 224) if name == "photos" else None
    config = AugmentConfig(
        dataset, Path(data_dir), limit=options[1], policy=policy, image_size=size
    )
    source = open_images(config, "memory", QUIET)
    stream, rows = (
        Stream(source, source.usable, 50, order_seed=3),
        rows_of(tmp_path / "out", "train"),
    )
    ours = images_of(stream, "opencv", 4)
    assert len(ours) == 4 * len(source.ids)
    for (position, copy), image in ours.items():
        assert_array_equal(image, rows[source.ids[position], copy])
    if "albumentations" not in policy:
        theirs = images_of(stream, "tensorflow", 4)
        apart = np.stack([cv2.absdiff(ours[k], theirs[k]) for k in ours])
        print(f"{name} {policy}: {(apart == 0).mean():.4%} equal, at most {apart.max()} apart")
        assert (apart == 0).mean() >= 0.9999
        assert apart.max() <= 2


def test_a_cache_that_the_disk_cannot_hold_is_told_before_it_is_filled(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 20)
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    script += "; import cli; cli.main()"
    command = ("train", "--dataset", photos, "--image-size", 40, "--cache", "disk")
    arguments = [*map(str, command), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 5
    assert "--cache disk: " in done.stderr
    assert "give --cache none" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("copy", [0, 1, 65_535])
def test_graph_ops_draw_the_same_parameters_bit_for_bit(copy: int) -> None:
    tf = import_tensorflow()
    from pipeline.policy import parse_policy
    from pipeline.tensorflow_kernel import parameters

    policy = parse_policy(
        "shift(p=0.7)|rotate(degrees=33)|flip(vertical=0.2)|brightness()|rotate()"
    )
    keys, seed = sample_keys([str(i) for i in range(999)]), 2**64 - 5
    want = policy.params(seed, keys, copy, 40, 56)
    got = tf.function(lambda k, c: parameters(policy, seed, k, c, 40, 56))(keys, tf.constant(copy))
    assert set(got) == set(want)
    for name, values in want.items():
        assert_array_equal(got[name].numpy().view(np.uint32), values.view(np.uint32))


def test_graph_ops_can_be_saved_and_run_without_this_package(tmp_path: Path) -> None:
    tf = import_tensorflow()
    from pipeline.policy import parse_policy
    from pipeline.tensorflow_kernel import augment_batch

    policy, keys = parse_policy(ALL), sample_keys(list("abcdef"))
    batch = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)

    class Module(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec((None, 20, 30, 3), tf.uint8),
                tf.TensorSpec((None,), tf.uint64),
                tf.TensorSpec((), tf.int64),
            ]
        )
        def augment(self, images, keys, copy):
            return augment_batch(policy, images, keys, copy, 5)

    tf.saved_model.save(Module(), str(tmp_path / "saved"))
    graph = tf.saved_model.load(str(tmp_path / "saved"))
    ops = {
        node.op for f in graph.augment.concrete_functions for node in f.graph.as_graph_def().node
    }
    assert not any("PyFunc" in op for op in ops)
    want = augment_batch(policy, batch, keys, 4, 5)
    assert_array_equal(graph.augment(batch, keys, np.int64(4)), want)


def test_library_ops_are_refused_by_the_graph_engine_in_one_line() -> None:
    stream = stream_of("digits", policy="albumentations.GaussNoise()", limit=30)
    with pytest.raises(PolicyError, match="is not a graph op; use --engine opencv"):
        augmented(stream, 0, 1, "tensorflow")


@pytest.mark.parametrize("engine", ["opencv", "tensorflow"])
def test_any_batch_can_be_the_first(engine: str) -> None:
    stream = stream_of("digits", policy=ALL, limit=120)
    n = 2 * stream.steps_per_epoch
    whole = list(augmented(stream, 0, n, engine).as_numpy_iterator())
    for start in (1, stream.steps_per_epoch, n - 1):
        rest = list(augmented(stream, start, n, engine).as_numpy_iterator())
        for (a, b), (c, d) in zip(rest, whole[start:], strict=True):
            assert_array_equal(a, c)
            assert_array_equal(b, d)


@pytest.mark.parametrize("n_together", [1, 2, 3])
def test_batches_are_the_same_however_many_are_made_together(
    monkeypatch: pytest.MonkeyPatch, n_together: int
) -> None:
    whole = stream_of("digits", policy=ALL, limit=120, batch_size=16)
    monkeypatch.setattr(pipeline.stream, "TOGETHER", n_together * 16 * whole.source.sample_bytes)
    stream = stream_of("digits", policy=ALL, limit=120, batch_size=16)
    assert stream.n_together == n_together
    n = 3 * stream.steps_per_epoch
    for start, stop in ((0, n), (1, 2), (2, n - 1), (7, 9), (n, n)):
        dataset = augmented(stream, start, stop, "opencv")
        assert len(dataset) == stop - start
        found = dataset.as_numpy_iterator()
        for ours, step in zip(found, range(start, stop), strict=True):
            for a, b in zip(ours, whole.batch(step), strict=True):
                assert_array_equal(a, b)


def test_an_epoch_shows_every_sample_once_and_each_epoch_in_another_order() -> None:
    stream = stream_of("digits", limit=300, batch_size=64)
    orders = [
        np.concatenate(
            [
                stream.chosen(e * stream.steps_per_epoch + s)[1]
                for s in range(stream.steps_per_epoch)
            ]
        )
        for e in range(3)
    ]
    for order in orders:
        assert sorted(order.tolist()) == list(range(300))
    assert (orders[0] != orders[1]).mean() > 0.9
    assert (orders[1] != orders[2]).mean() > 0.9


IDS = st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=60, unique=True)


@given(IDS, st.integers(0, 5), st.integers(0, 9), st.integers(1, 9), st.randoms())
def test_the_order_of_an_epoch_is_the_same_for_part_of_the_samples(
    ids: list[str], doublings: int, epoch: int, per_group: int, random
) -> None:
    def order(names: list[str]) -> list[str]:
        keys, n_blocks = sample_keys(names), 1 << doublings
        blocks = block_of(keys, 4, n_blocks)
        return [names[i] for i in epoch_order(keys, blocks, n_blocks, per_group, 8, epoch)]

    part = random.sample(ids, len(ids) // 2)
    assert order(part) == [name for name in order(ids) if name in part]


@given(st.integers(0, 99), st.integers(1, 8))
def test_blocks_that_are_permuted_together_stay_together(epoch: int, per_group: int) -> None:
    keys = sample_keys([str(i) for i in range(400)])
    blocks = block_of(keys, 1, 8)
    order = epoch_order(keys, blocks, 8, per_group, 2, epoch)
    seen = [int(b) for b in blocks[order]]
    groups = [set(seen[:1])]
    for block in seen:
        if block not in groups[-1] and len(groups[-1]) == per_group:
            groups.append(set())
        groups[-1].add(block)
    assert sum(len(g) for g in groups) == len(set().union(*groups)) == 8


def test_inputs_that_cannot_be_used_are_named_and_left_out(tmp_path: Path, capsys) -> None:
    photos = write_photos(tmp_path / "photos", 40)
    whole = (photos / "cat" / "000.png").read_bytes()
    (photos / "cat" / "000.png").write_bytes(whole[: len(whole) // 2])
    config = AugmentConfig(str(photos), Path("unused"), image_size=(20, 20), split="train")
    with pytest.raises(NotCommitted, match=r"cat/000\.png: image file is truncated"):
        open_images(config, "memory", QUIET)
    config = AugmentConfig(str(photos), Path("unused"), image_size=(20, 20), max_bad=0.1)
    source = open_images(config, "memory", Report())
    stream = Stream(source, source.usable, 8, order_seed=0)
    assert "not used: cat/000.png: image file is truncated" in capsys.readouterr().err
    shown = {stream.source.ids[i] for i, _ in images_of(stream, "opencv", 1)}
    assert shown == set(stream.source.ids) - {"cat/000.png"}


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 10)
    with pytest.raises(UserError, match="different sizes, and a batch has one; give --image-size"):
        stream_of(str(photos))


def lines_of(document: str, word: str) -> str:
    """The block of Python in a document that has the word."""
    text = (Path(__file__).parents[1] / document).read_text()
    (lines,) = [b for b in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M) if word in b]
    return lines


def test_the_lines_of_the_readme_stream_and_write_the_same_copies(tmp_path: Path) -> None:
    script = lines_of("README.md", "materialize")
    # As a file of its own, which worker processes import.
    path = tmp_path / "readme.py"
    path.write_text(script + "    batches.save('seen')\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(path)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    tf = import_tensorflow()
    rows = rows_of(tmp_path / "augmented" / "ten-copies", "train")
    stored = Counter((copy, image.tobytes()) for (_, copy), image in rows.items() if copy)
    seen: Counter = Counter()
    n_samples = len({name for name, _ in rows})
    shown = 0
    for batch, labels in tf.data.Dataset.load(str(tmp_path / "seen")).as_numpy_iterator():
        assert batch.shape[1:] == (8, 8, 1)
        assert len(labels) == len(batch) <= 64
        copy = shown // n_samples + 1
        seen.update((copy, image.tobytes()) for image in batch)
        shown += len(batch)
    assert seen == stored


def test_the_parts_that_the_documents_show_begin_in_the_middle() -> None:
    names: dict = {}
    exec(lines_of("docs/data.md", "open_images"), names)
    steps = names["stream"].steps_per_epoch
    assert len(names["batches"]) == 7 * steps - 5
    batch, labels = next(names["batches"].as_numpy_iterator())
    expected = names["stream"].batch(3 * steps + 5)
    assert_array_equal(batch, expected[0])
    assert_array_equal(labels, expected[1])


@pytest.mark.parametrize("engine", ["opencv", "tensorflow"])
def test_a_dataset_is_the_stream_of_all_its_epochs(engine: str) -> None:
    config = AugmentConfig(dataset="digits", policy=ALL, seed=5, limit=150)
    batches = dataset(config, batch_size=40, epochs=2, order_seed=3, engine=engine)
    stream = stream_of("digits", batch_size=40, policy=ALL, seed=5, limit=150)
    expected = augmented(stream, 0, 2 * stream.steps_per_epoch, engine)
    assert len(batches) == 2 * 4
    assert batches.element_spec == expected.element_spec
    pairs = zip(batches.as_numpy_iterator(), expected.as_numpy_iterator(), strict=True)
    for (batch, labels), (other, other_labels) in pairs:
        assert (batch.dtype, labels.dtype) == (np.uint8, np.int64)
        assert_array_equal(batch, other)
        assert_array_equal(labels, other_labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"engine": "torch"}, "engine: expected one of opencv, tensorflow; got 'torch'"),
        ({"cache": "ram"}, "cache: expected one of memory, disk, none; got 'ram'"),
    ],
)
def test_a_dataset_refuses_what_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        dataset(AugmentConfig(dataset="digits"), **options)


def test_a_dataset_of_graph_ops_has_no_library_ops() -> None:
    config = AugmentConfig(dataset="digits", policy="albumentations.GaussianBlur()")
    with pytest.raises(PolicyError):
        dataset(config, engine="tensorflow")


HALF_READ = """
import sys
from pathlib import Path
from pipeline.online import augmented, open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.stream import Stream

config = AugmentConfig("digits", Path("unused"), image_size=(96, 96))
images = open_images(config, "memory", Report(quiet=True))
stream = Stream(images, images.usable, batch_size=1000, order_seed=0)
iterator = iter(augmented(stream, 0, 10_000, sys.argv[1]))
next(iterator)
"""


@pytest.mark.parametrize("engine", ["opencv", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_a_process_may_end_while_its_dataset_is_half_read(engine: str) -> None:
    run_script(HALF_READ, engine)


@pytest.mark.parametrize("engine", ["opencv", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_the_command_tells_the_rate_and_writes_a_sheet_alone(tmp_path: Path, engine: str) -> None:
    result = run(
        *("augment", "--online", "--engine", engine, "--limit", 100, "--copies", 3),
        *("--out", tmp_path / "sheet.png"),
    )
    assert "3 epochs of 100 images: " in result.stdout
    assert f"images/s with --engine {engine}" in result.stdout
    assert result.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_the_sheet_of_a_list_is_named_after_it_without_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = sorted(write_photos(tmp_path / "photos").rglob("*.png"))
    rows = [f"{path},{path.parent.name},train" for path in photos]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    monkeypatch.chdir(tmp_path)
    config = AugmentConfig("labels.csv", Path("unused"), copies=1, image_size=(16, 16))
    stream_through(config, "opencv", Report(quiet=True))
    assert [path.name for path in Path("augmented").iterdir()] == ["labels-online.png"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--copies", 0), "an epoch shows a copy; give --copies 1 or more"),
        (("--out", "sheet"), "expected the name of a file on a disk that ends with .png"),
        (("--out", "s3://data/a.png"), "expected the name of a file on a disk that ends with .png"),
        # Whatever is tried out before: one in thirty images comes out with another shape.
        (("--policy", "albumentations.Sequential([albumentations.Transpose(p=0.03)])"), "shape"),
    ],
)
def test_what_cannot_be_streamed_is_told_in_one_line(
    options: tuple[object, ...], expected: str
) -> None:
    job = ("augment", "--online", "--image-size", "24x32", "--limit", 500, *options)
    said = run(*job, code=2).stderr.splitlines()
    assert expected in said[-1]
    assert len(said) <= 2


def test_the_sheet_shows_what_the_epochs_show() -> None:
    config = AugmentConfig("digits", Path("unused"), policy="shift()|rotate()", limit=50)
    source = open_images(config, "memory", Report(quiet=True))
    sheet = contact_sheet(source, "opencv", 3)
    ids = [source.classes[source.labels[i]] for i in np.argsort(source.keys)[:8]]
    assert sheet.names == ids
    assert len(sheet.rows[0]) == 1 + 3
    first = np.argsort(source.keys)[:1]
    for copy, tile in enumerate(sheet.rows[0]):
        assert_array_equal(tile.image, source.images(first, copy)[0])
