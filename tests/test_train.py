"""A training repeats bit for bit: online and from shards, and however often it is killed."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from datasets.errors import UserError
from datasets.source import is_held_out
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.stream import import_tensorflow
from tests.running import run, run_killed, run_script, tree_hash, write_photos
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig, open_data
from trainers.models import ModelConfig, build
from trainers.state import layers_digest
from trainers.train import training_folder

SLOW = pytest.mark.slow
SMALL = ("--limit", 200, "--threads", 2)
QUICK = (*SMALL, "--model", "textbook")  # its graph is made in half the time
JOB = ("train", *QUICK, "--batch-norm", "--epochs", 3, "--dropout", 0.2, "--quiet")
POLICY = "shift()|rotate()|brightness()|albumentations.GaussNoise(p=0.5)"
FINISHED = ("train", *QUICK, "--epochs", 1, "--save-h5", "--quiet")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that command, which says nothing."""
    out = tmp_path_factory.mktemp("finished") / "run"
    said = run(*FINISHED, "--out", out)
    assert (said.stdout, said.stderr) == ("", "")
    return out


def state_of(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the last epoch left: figures without times, the loss of every step, every variable."""
    with np.load(folder / "state.npz") as saved:
        arrays = {name: saved[name] for name in saved.files if name != "epochs"}
        epochs = json.loads(str(saved["epochs"]))
    timeless = [{k: v for k, v in e.items() if "seconds" not in k} for e in epochs]
    return {"epochs": timeless}, arrays


def assert_same_training(a: Path, b: Path) -> None:
    (progress, arrays), (other, others) = state_of(a), state_of(b)
    assert progress == other
    assert arrays.keys() == others.keys()
    assert len(arrays["losses"]) == len(progress["epochs"]) * 2 > 0  # 180 samples, batches of 128
    for name, values in arrays.items():
        assert_array_equal(values, others[name])


def test_a_class_of_which_all_images_are_held_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos" / "train", 30)
    names = [f"train/fox/{i}.png" for i in range(60)]
    name = names[int(np.flatnonzero(is_held_out(names, 0.1, "validation"))[0])]
    write_photos(tmp_path / "fox", 1, ("fox",)).joinpath("fox").rename(photos / "fox")
    (photos / "fox" / "000.png").rename(photos.parent / name)
    config = DataConfig(AugmentConfig(str(photos.parent), tmp_path, image_size=(8, 8)))
    found = open_data(config, Report())
    assert found.classes == ("cat", "dog", "fox")
    assert "no image to train on is of the class 'fox': all that it has are held out" in (
        capsys.readouterr().err
    )
    shutil.rmtree(photos / "dog")
    with pytest.raises(UserError, match="all images to train on are of one class"):
        open_data(config, Report())


def test_too_little_memory_is_told_with_what_to_choose(tmp_path: Path) -> None:
    data = DataConfig(AugmentConfig("digits", tmp_path))
    config = resolved(TrainConfig(data, ModelConfig("textbook"), tmp_path / "out"))
    with (
        pytest.raises(UserError, match=r"not enough memory .* smaller --batch-size than \d+, "),
        training_folder(config),
    ):
        import_tensorflow().zeros(2**50)


@pytest.mark.parametrize("form", ["parquet", pytest.param("tfrecord", marks=pytest.mark.slow)])
def test_shards_and_the_online_path_give_the_same_losses_and_weights(
    tmp_path: Path, form: str
) -> None:
    augment = ("augment", "--limit", 200, "--copies", 2, "--seed", 4, "--policy", POLICY)
    run(*augment, "--format", form, "--workers", 0, "--out", tmp_path / "shards")
    job = ("train", *QUICK, "--batch-norm", "--epochs", 2, "--seed", 3, "--dropout", 0.2, "--quiet")
    run(*job, "--augment-seed", 4, "--policy", POLICY, "--out", tmp_path / "online")
    shards = [o for o in job if o not in ("--limit", 200)]
    run(*shards, "--offline", tmp_path / "shards", "--out", tmp_path / "offline")
    assert_same_training(tmp_path / "online", tmp_path / "offline")


def timeless_report(out: Path) -> str:
    """The report's source, without what it took and without the folder's name."""
    source = (out / "report.html").read_text(encoding="utf-8")
    times = r"(<dt>(?:training time|waiting for images)</dt>)<dd>[^<]+</dd>"
    found, n = re.subn(times, r"\1", source.replace(out.name, "RUN"))
    assert n == 2
    return found


def epochs_told(stderr: str) -> list[int]:
    """The numbers of the epochs that a command with `--log-format json` has trained."""
    told = map(json.loads, stderr.splitlines())
    return [event["epoch"] for event in told if event["event"] == "epoch"]


def test_a_training_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Of the default network, whose optimizer has momenta and averages of the weights."""
    job = ("train", *SMALL, "--epochs", 3, "--dropout", 0.2, "--log-format", "json")
    run(*job, "--out", tmp_path / "whole")
    out, again = tmp_path / "again", (*job, "--resume", "--out", tmp_path / "again")
    for step, number, code, given, trained in (
        ("rename state again", signal.SIGKILL, -9, (), [1]),
        ("rename result", signal.SIGINT, 130, ("--cache", "none"), [2, 3]),  # Ctrl-C
    ):
        killed = run_killed(
            *again, *given, step=step, victim="group", folder=tmp_path, number=number
        )
        assert killed.returncode == code
        assert epochs_told(killed.stderr) == trained
        assert not (out / "result.json").exists()
    assert (out / "report.html").exists()  # whole, and not what says that the run is
    assert epochs_told(run(*again).stderr) == []
    assert_same_training(tmp_path / "whole", out)
    assert timeless_report(out) == timeless_report(tmp_path / "whole")
    found, want = (json.loads((f / "result.json").read_text()) for f in (out, tmp_path / "whole"))
    assert {**found, "seconds": 0, "input_seconds": 0} == {**want, "seconds": 0, "input_seconds": 0}
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".lock")] == []


PREDICT = """
import sys
import keras, numpy as np
images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
for path in sys.argv[1:]:
    model = keras.models.load_model(path, compile=False)
    np.save(f"{path}.npy", model.predict(images, verbose=0))
    assert not any("andom" in type(layer).__name__ for layer in model.layers)  # no augmentation
assert "trainers" not in sys.modules
"""


def test_saved_models_reload_elsewhere_and_predict_the_same(tmp_path: Path, finished: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    files = [out / "model.keras", out / "model.h5"]
    run_script(PREDICT, *files)
    found = [np.load(f"{file}.npy") for file in files]
    assert found[0].shape == (32, 10)
    assert_array_equal(found[0], found[1])


def test_a_run_folder_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run("train", *QUICK, "--epochs", 2, "--patience", 1, "--out", out)
    assert "few steps (4 in all)" in result.stderr
    assert "epoch 1 of 2: loss " in result.stderr
    names = "best.npz config.json confusion.png curves.png history.csv mistakes.png "
    names += "model.keras predictions.parquet report.html result.json state.npz tensorboard"
    found_names = [re.sub(r"^best-000[12]", "best", path.name) for path in out.iterdir()]
    assert sorted(found_names) == names.split()
    found = json.loads((out / "result.json").read_text())
    assert found["split"] == "test"
    assert 0 <= found["test_accuracy"] <= 1
    assert found["input_seconds"] < found["seconds"]
    assert len((out / "history.csv").read_text().splitlines()) == found["epochs"] + 1
    rows = pq.read_table(out / "predictions.parquet").to_pydict()
    right = np.array(rows["label"]) == np.array(rows["guess"])
    assert len(set(rows["sample_id"])) == found["n"]
    assert right.mean() == found["test_accuracy"]
    assert_array_equal(np.array(rows["probabilities"]).argmax(1), rows["guess"])


@pytest.mark.slow
def test_tensorboard_has_each_epoch_once_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for step in ("rename state again", "rename result"):
        run_killed(*JOB, "--resume", "--out", out, step=step, victim="group", folder=tmp_path)
    (file,) = (out / "tensorboard").iterdir()
    steps, losses = events(file, "loss")
    assert steps == [1, 2, 3]
    want = [epoch["loss"] for epoch in state_of(out)[0]["epochs"]]
    assert losses == [np.float32(loss) for loss in want]


def events(file: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure in a file of TensorBoard's."""
    import tensorflow as tf

    steps, values = [], []
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            if value.tag == name:
                steps.append(event.step)
                values.append(float(tf.make_ndarray(value.tensor)))
    return steps, values


@pytest.mark.slow
def test_the_members_of_an_ensemble_are_runs_of_their_own(tmp_path: Path) -> None:
    small = ("train", *SMALL, "--epochs", 1, "--quiet", "--seed", 3)
    run_killed(
        *small, "--ensemble", 2, "--out", tmp_path / "two",
        step="rename result", victim="group", folder=tmp_path,
    )  # fmt: skip
    run(*small, "--ensemble", 2, "--resume", "--out", tmp_path / "two")
    alone = [o if o != 3 else 4 for o in small]
    run(*alone, "--augment-seed", 3, "--out", tmp_path / "one")
    assert_same_training(tmp_path / "two" / "member-1", tmp_path / "one")
    *each, both = run("evaluate", tmp_path / "two", "--limit", 200).stdout.splitlines()
    assert len(each) == 2
    found = json.loads((tmp_path / "two" / "result.json").read_text())
    assert f"all 2 models averaged: accuracy {found['test_accuracy']:.4f}, loss " in both
    assert (tmp_path / "two" / "confusion.png").is_file()
    message = run(*small, "--ensemble", 3, "--resume", "--out", tmp_path / "two", code=2).stderr
    assert "is another ensemble" in message
    message = run(*small, "--resume", "--out", tmp_path / "two", code=2).stderr
    assert "is not a run of `pipeline train`" in message


@pytest.mark.slow
def test_bfloat16_keeps_float32_weights_and_repeats(tmp_path: Path) -> None:
    import keras

    job = (*JOB, "--mixed-precision", "--activity-l1", 1e-6)
    run(*job, "--out", tmp_path / "whole")
    out, step = tmp_path / "killed", "rename state again"
    run_killed(*job, "--out", out, step=step, victim="group", folder=tmp_path)
    run(*job, "--resume", "--out", out)
    assert_same_training(tmp_path / "whole", out)
    model = keras.models.load_model(out / "model.keras", compile=False)
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")


REPLICAS = """
import sys
import numpy as np, tensorflow as tf, keras
from pathlib import Path
from pipeline.plan import AugmentConfig
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig
from trainers.fit import begin, make_step
from trainers.models import ModelConfig, build
from trainers.transfer import Phase

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
model = ModelConfig(sys.argv[1], dropout=0, bias_decay=0.1)
data = DataConfig(AugmentConfig("digits", Path()))
config = resolved(TrainConfig(data, model, Path(), lr=1e-3))
losses, guesses = [], []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    with strategy.scope():
        model = build(config.model, (8, 8, 1), 10, 0)
        optimizer = begin(config, model, Phase(0, config.epochs), 5)
        step = make_step(config, model, optimizer, 10)
        for _ in range(5):
            batch = rng.integers(0, 256, (30, 8, 8, 1), np.uint8), rng.integers(0, 10, 30)
            loss, right = step(*map(tf.constant, batch))
            losses.append(float(loss))
        optimizer.finalize(model.trainable_variables)
        guesses.append(model(tf.constant(batch[0])).numpy())  # by moving statistics
assert len(set(losses[:5])) == 5
np.testing.assert_allclose(losses[:5], losses[5:], rtol=1e-3)
np.testing.assert_allclose(*guesses, rtol=1e-2, atol=1e-2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "textbook"])
def test_two_replicas_learn_what_one_learns(model: str) -> None:
    run_script(REPLICAS, model)


REPEATED = """
from pathlib import Path
from pipeline.stream import import_tensorflow
tf = import_tensorflow(2)
tf.config.experimental.enable_op_determinism()
import keras, numpy as np
from pipeline.plan import AugmentConfig
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig
from trainers.fit import begin, make_step
from trainers.models import ModelConfig, build
from trainers.transfer import Phase

data = DataConfig(AugmentConfig("unused", Path()))
config = resolved(TrainConfig(data, ModelConfig("cnn"), Path()))
rng = np.random.default_rng(0)
batches = [(rng.integers(0, 256, (128, 32, 32, 3), np.uint8), rng.integers(0, 10, 128))] * 2
found = []
for _ in range(2):
    keras.utils.set_random_seed(0)
    model = build(config.model, (32, 32, 3), 10, 0)
    step = make_step(config, model, begin(config, model, Phase(0, 1), 3), 10)
    losses = [step(*map(tf.constant, batch))[0].numpy() for batch in batches]
    found.append([*losses, *(variable.numpy() for variable in model.variables)])
for array, again in zip(*found, strict=True):
    np.testing.assert_array_equal(array, again)
"""


@pytest.mark.slow
def test_what_is_learned_does_not_depend_on_which_thread_is_first() -> None:
    """Of images of 32 pixels, which showed it where digits did not."""
    run_script(REPEATED)


def test_validation_is_held_out_by_hash() -> None:
    augment = AugmentConfig("digits", Path("unused"), limit=300, policy="brightness(factor=1)")
    data = open_data(DataConfig(augment, val_fraction=0.2), Report(quiet=True))
    source, held = data.validation
    shown, kept = ({source.ids[i] for i in part} for part in (data.train.order(0), held))
    assert shown.isdisjoint(kept)
    assert shown | kept == set(data.train.source.ids)
    ids = sorted(shown | kept)
    held_out = is_held_out(ids, 0.2, "validation")
    assert kept == {name for name, held in zip(ids, held_out, strict=True) if held}


def test_no_copy_of_a_validation_sample_is_trained_on(tmp_path: Path) -> None:
    run("augment", "--limit", 300, "--copies", 2, "--workers", 0, "--out", tmp_path / "shards")
    config = DataConfig(
        AugmentConfig("unused", tmp_path), tmp_path / "shards", per_epoch="all-copies"
    )
    data = open_data(config, Report(quiet=True))
    source, held = data.validation
    shown = [data.train.source.ids[row] for row in data.train.order(0)]
    held_ids = {source.ids[i] for i in held}
    assert held_ids
    assert held_ids.isdisjoint(shown)
    assert set(shown) | held_ids == set(source.ids)
    assert len(shown) == 3 * len(set(shown))


def test_copies_without_an_original_lie_on_one_side(tmp_path: Path) -> None:
    job = ("augment", "--limit", 300, "--copies", 3, "--no-original", "--workers", 0, "--quiet")
    run(*job, "--out", tmp_path / "shards")
    augment = AugmentConfig(str(tmp_path / "shards"), tmp_path, policy="none")
    data = open_data(DataConfig(augment), Report(quiet=True))
    source, held = data.validation
    sides = [{source.ids[i].split("@")[0] for i in part} for part in (held, data.train.shown)]
    assert all(sides)
    assert sides[0].isdisjoint(sides[1])
    assert len(held) == 3 * len(sides[0])


def test_no_mistakes_and_nothing_to_test_are_no_mistakes_of_ours(tmp_path: Path) -> None:
    for i in range(24):  # two colours, told apart by anything; no path of them is held out
        path = tmp_path / "photos" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((16, 16, 3), 255 * (i % 2), np.uint8))
    (tmp_path / "photos" / "test" / "a").mkdir(parents=True)
    where = ("--dataset", tmp_path / "photos", "--val-fraction", 0.4, "--policy", "none", "--quiet")
    job = ("train", *where, "--model", "textbook", "--epochs", 30, "--dropout", 0, "--patience", 9)
    run(*job, "--cache", "none", "--out", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (found["split"], found["val_accuracy"]) == ("val", 1.0)
    assert (tmp_path / "run" / "mistakes.png").is_file()


def test_training_ends_when_no_epoch_is_better_and_keeps_the_best_ones_weights(
    tmp_path: Path,
) -> None:
    """Two colours, the other way round among what is held out: to learn them is to get worse."""
    for i in range(40):
        name = f"train/{'ab'[i % 2]}/{i}.png"
        (is_held,) = is_held_out([name], 0.4, "validation")
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((16, 16, 3), 255 * ((i % 2) ^ is_held), np.uint8))
    (tmp_path / "photos" / "test" / "a").mkdir(parents=True)
    job = ("train", "--dataset", tmp_path / "photos", "--val-fraction", 0.4, "--policy", "none")
    job += ("--model", "textbook", "--dropout", 0, "--batch-size", 8, "--threads", 2, "--quiet")
    run(*job, "--epochs", 9, "--patience", 2, "--out", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    _, first, *later = (tmp_path / "run" / "history.csv").read_text().splitlines()
    losses = [float(line.split(",")[3]) for line in (first, *later)]
    assert losses == sorted(losses)
    assert (found["best_epoch"], found["epochs"], len(losses)) == (1, 3, 3)
    assert (found["split"], found["val_loss"]) == ("val", pytest.approx(losses[0]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--model", "lenet"), "--model lenet: expected one of cnn, textbook, VGG16"),
        (("--dataset", "photos"), "its images have different sizes, and a batch has one"),
        (("--dataset", "photos", "--image-size", 6), "needs images of at least 8 pixels a side"),
        (("--offline", "shards", "--policy", "flip()"), "was written with shift"),
        (("--offline", "bare"), "has no augmented copies"),
        (("--offline", "shards", "--dataset", "digits"), "as they were written; leave out --da"),
        (("--offline", "shards", "--limit", 4, "--cache", "none"), "out --limit and --cache"),
        (("--out", "run\udcff"), "run\\udcff: is not UTF-8, and TensorFlow cannot write there"),
        (("--out", "s3://data/run"), "is object storage; expected a path on a disk"),
        (("--dataset", "untrained", "--image-size", 16), "has no split train to learn from, but t"),
        (("--offline", "shards", "--engine", "tensorflow"), "leave out --engine"),
        (("--dataset", "alone", "--image-size", 16), "are of one class, and there is nothing to"),
        (("--lr", 1e30, "--model", "textbook"), "training has diverged; give a lower --lr"),
        (("--offline", "nowhere"), "no such folder; expected the output of"),
        (("--online", "--offline", "shards"), "give one of them"),
        (("--val-fraction", 0.001), "samples to train on and 0 to validate with"),
        (("--engine", "tensorflow", "--policy", POLICY), "is not a graph op"),
        (("--per-epoch", "all-copies"), "online copies never end; give --offline"),
        (("--verify",), "checks shards; give --offline"),
        (("--gpus", 9), "TensorFlow finds "),
        (("--gpus", 2, "--activity-l1", 0.1), "--activity-l1: with one GPU only"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, options: tuple[object, ...], expected: str
) -> None:
    write_photos(tmp_path / "photos")
    write_photos(tmp_path / "alone", 40, ("cat",))
    write_photos(tmp_path / "untrained" / "test")
    augment = ("augment", "--limit", 40, "--workers", 0, "--quiet")
    if "shards" in options:
        run(*augment, "--out", tmp_path / "shards")
    if "bare" in options:
        run(*augment, "--copies", 0, "--out", tmp_path / "bare")
    places = {"photos", "alone", "untrained", "shards", "bare", "nowhere"}
    arguments = [tmp_path / o if o in places else o for o in options]
    if "--offline" not in options:
        arguments += ["--limit", 40]
    result = run("train", "--out", tmp_path / "run", *arguments, code=2)
    assert expected in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "run" / "model.keras").exists()


AT_ONCE = """
import sys
from cli import main
sys.argv[0] = "pipeline"
try:
    main()
except SystemExit as err:
    assert err.code == 2, err.code
assert "tensorflow" not in sys.modules
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--limit", 40, "--val-fraction", 0.001, "--out", "run"),
        ("train", "--limit", 40, "--out", "thesis"),
        ("crossval", "--offline", "nowhere", "--out", "run"),
        ("evaluate", "nowhere"),
        ("visualize", "nowhere"),
    ],
)
def test_mistakes_do_not_wait_for_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    run_script(AT_ONCE, *arguments)


def test_images_that_changed_are_another_run(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 60), tmp_path / "run"
    job = ("train", "--dataset", photos, "--image-size", 16, "--epochs", 1, "--quiet")
    stopped = run_killed(
        *(*job, "--out", out), step="rename result", victim="group", folder=tmp_path,
        number=signal.SIGTERM,
    )  # fmt: skip
    assert stopped.returncode == 143
    told = "pipeline: stopped; the same command goes on from there with --resume"
    assert stopped.stderr.splitlines()[-1] == told
    assert sorted(out.parent.glob("*.lock")) == []
    first, second = sorted((photos / "cat").iterdir())[:2]
    first.write_bytes(second.read_bytes())
    message = run(*job, "--out", out, "--resume", code=2).stderr
    assert f"is another run (the images or labels of {photos} have changed); " in message


def test_a_run_does_not_lie_in_its_data_set(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    job = ("train", "--dataset", photos, "--image-size", 16, "--epochs", 1)
    assert "lies inside the data set" in run(*job, "--out", photos / "run", code=2).stderr


def test_test_images_of_another_size_are_told_before_training(tmp_path: Path) -> None:
    for split, side in (("train", 16), ("test", 20)):
        for i in range(20):
            path = tmp_path / "photos" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((side, side, 3), i, np.uint8))
    job = ("train", "--dataset", tmp_path / "photos", "--val-fraction", 0.3)
    message = run(*job, "--out", tmp_path / "run", code=2).stderr
    assert "the test images are 20x20 pixels, those to train on 16x16" in message


def change_state(path: Path, layers: str | None) -> None:
    """As a version with other layers, or one that did not write them (None), left the state."""
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in saved.files if name != "layers"}
    np.savez(path, **arrays, **({} if layers is None else {"layers": np.array(layers)}))


@pytest.mark.parametrize("layers", [None, "0" * 16])
def test_an_unfinished_run_with_other_layers_does_not_go_on(
    tmp_path: Path, finished: Path, layers: str | None
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    change_state(out / "state.npz", layers)
    assert run(*FINISHED, "--out", out, "--resume").stderr == ""  # finished, it stays as it is
    (out / "model.h5").unlink()
    run(*FINISHED, "--out", out, "--resume", code=0 if layers is None else 3)
    (out / "result.json").unlink()
    message = run(*FINISHED, "--out", out, "--resume", code=3).stderr
    had = "may have had" if layers is None else "had"
    assert message == (
        f"pipeline: {out}/state.npz: cannot be resumed from: in the version that began it the "
        f"network {had} other layers; remove the folder and train again\n"
    )


def test_layers_are_told_apart_by_their_settings_and_not_by_the_seed() -> None:
    import keras

    def digest(pooling: str = "max", seed: int = 0, **options: Any) -> str:
        keras.backend.clear_session()
        model = build(ModelConfig("textbook", 0.5, batch_norm=True, **options), (8, 8, 1), 3, seed)
        for layer in model.layers:
            layer.trainable = not seed
            if isinstance(layer, keras.layers.MaxPooling2D):
                layer.strides = (2, 2) if pooling == "max" else (1, 1)
        return layers_digest(model)

    assert digest() == digest(seed=1)
    assert len({digest(), digest(pooling="other"), digest(weight_decay=0.1)}) == 3


@pytest.mark.slow
def test_other_threads_are_refused_unless_that_is_wanted(tmp_path: Path) -> None:
    job = ("train", "--limit", 200, "--model", "textbook", "--epochs", 2, "--quiet")
    job += ("--out", tmp_path / "run")
    step = "rename state again"
    run_killed(*job, "--threads", 2, step=step, victim="group", folder=tmp_path)
    message = run(*job, "--threads", 1, "--resume", code=2).stderr
    assert "would not end with the same weights (--threads was 2, now 1); " in message
    run(*job, "--threads", 1, "--resume", "--inexact")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["run"]["threads"] == 1
    assert [run["threads"] for run in config["earlier"]] == [2]


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path, finished: Path) -> None:
    job = (*FINISHED, "--out", shutil.copytree(finished, tmp_path / "run"))
    assert "holds this run; go on with --resume" in run(*job, code=2).stderr
    assert "(--seed was 0, now 1); " in run(*job, "--seed", 1, "--resume", code=2).stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    result = run(*job[:-1], tmp_path / "other", code=2)
    assert "is not a run of `pipeline train`" in result.stderr
    (tmp_path / "run" / "history.csv").unlink()
    run(*job, "--resume")
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "state.npz").write_bytes(b"PK damaged")
    assert "cannot be resumed from" in run(*job, "--resume", code=3).stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model", "cnn"), "--model was textbook, now cnn"),
        (
            ("--model", "MobileNetV2", "--alpha", 0.35, "--weights", "none", "--epochs", 2),
            "--epochs was 1, now 2; --model was textbook, now MobileNetV2",
        ),
        (
            ("--limit", 300, "--dropout", 0.2),
            "--limit was 200, now 300; --dropout was 0.5, now 0.2",
        ),
        (
            ("--batch-norm", "--patience", 3),
            "--patience was none, now 3; --batch-norm was no, now yes",
        ),
        (("--image-size", "16x20"), "--image-size was 8x8, now 16x20"),
        (("--block-samples", 30), "--block-samples is another"),
    ],
)
def test_of_another_run_is_told_what_to_change_back(
    finished: Path, options: tuple[object, ...], told: str
) -> None:
    message = run(*FINISHED, "--out", finished, "--resume", *options, code=2).stderr
    assert message.startswith(
        f"pipeline: {finished}: is another run ({told}); choose another --out"
    )


@pytest.mark.parametrize("damage", ['{"run": {"model": 1}}', "{"])
def test_a_folder_that_says_nothing_of_its_run_is_left_alone(tmp_path: Path, damage: str) -> None:
    (tmp_path / "config.json").write_text(damage)
    message = run("train", *QUICK, "--out", tmp_path, "--resume", code=2).stderr
    assert message.endswith("config.json: is of something else; choose another --out\n")


def test_a_run_of_a_version_that_wrote_down_less_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"run": {}, "origin": {}, "earlier": []}')
    message = run("train", *QUICK, "--out", tmp_path, "--resume", code=2).stderr
    assert message.startswith(f"pipeline: {tmp_path}: is another run (the data was none, now ")


@pytest.mark.parametrize("n_threads", [1, 2])
def test_what_is_finished_is_done_whatever_threads_there_are_now(
    tmp_path: Path, finished: Path, n_threads: int
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = tree_hash(tmp_path / "run")
    job = [word for word in FINISHED if word != "--quiet"]
    job += ["--threads", n_threads]
    said = run(*job, "--resume", "--overwrite", "--out", out).stderr
    assert said.endswith("trained before; nothing to do\n")
    changed = {name for name, found in tree_hash(tmp_path / "run").items() if found != before[name]}
    assert changed <= {"config.json"}  # where the data was found
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["threads"] == 2


@pytest.mark.parametrize("command", [("train", "--ensemble", 2), ("crossval",), ("ablate",)])
def test_a_mistake_about_the_data_claims_no_folder(
    tmp_path: Path, command: tuple[object, ...]
) -> None:
    out = tmp_path / "out"
    message = run(*command, "--dataset", tmp_path / "nowhere", "--out", out, code=2).stderr
    assert "neither a known name" in message
    assert list(out.glob("*")) == []


def test_only_a_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("four years")
    job = ("train", *QUICK, "--epochs", 1, "--quiet", "--out", tmp_path / "out", "--overwrite")
    assert "is not a run of `pipeline train`" in run(*job, code=2).stderr
    assert (tmp_path / "out" / "thesis.txt").read_text() == "four years"


@pytest.mark.parametrize("step", ["replace run", pytest.param("rename result", marks=SLOW)])
def test_a_run_that_is_to_be_replaced_is_whole_until_the_new_one_is(
    tmp_path: Path, finished: Path, step: str
) -> None:
    job = (*FINISHED, "--out", shutil.copytree(finished, tmp_path / "out"))
    before = tree_hash(finished)
    again = (*job, "--seed", 1, "--resume", "--overwrite")
    run_killed(*again, step=step, victim="group", folder=tmp_path)
    waiting = next(tmp_path.glob(".out.replaced-*"), tmp_path / "out")
    assert tree_hash(waiting) == before
    run(*again)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["run"]["seed"] == 1
    assert (tmp_path / "out" / "result.json").exists()
    assert list(tmp_path.glob(".out*")) == []
