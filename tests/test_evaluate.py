"""What trained models are worth: on originals, alone and together, whoever made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax

from datasets.storage import place
from pipeline.online import open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from tests.running import run, write_photos
from trainers.config import TrainConfig, origin
from trainers.data import DataConfig, open_data
from trainers.evaluate import (
    EvaluateConfig,
    batch_of,
    data_of,
    evaluate,
    load_model,
    predictor,
)
from trainers.models import ModelConfig
from trainers.predictions import read_predictions

JOB = ("train", "--limit", 200, "--threads", 2, "--model", "textbook", "--epochs", 1, "--quiet")
ALL_OPS = "shift()|rotate()|flip()|brightness()"


def write_foreign(path: Path, side: int | None) -> None:
    """A model that ends with probabilities; of images of any size where none is given."""
    import keras

    inputs = keras.Input((side, side, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Flatten()(x) if side else keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x)).save(path)


class Recorder:
    """A model that keeps what it is shown, and believes in one class by how bright that is."""

    def __init__(self, favourite: int = 0) -> None:
        self.favourite = favourite
        self.seen: list[np.ndarray] = []

    def __call__(self, images: Any) -> Any:
        import tensorflow as tf

        tf.py_function(lambda batch: self.seen.append(batch.numpy()), [images], [])
        brightness = tf.reduce_mean(tf.cast(images, tf.float32), (1, 2, 3)) / 100
        return brightness[:, None] * tf.one_hot(self.favourite, 10)

    def believed(self, images: np.ndarray) -> np.ndarray:
        """(B, H, W, C) -> (B, 10): the softmax of what it answers."""
        of_class = np.ones((len(images), 10))
        of_class[:, self.favourite] = np.exp(images.mean((1, 2, 3)) / 100)
        return of_class / of_class.sum(1, keepdims=True)


def worth(probabilities: np.ndarray, labels: np.ndarray) -> str:
    """What a line of the command says of them."""
    accuracy = (probabilities.argmax(1) == labels).mean()
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    return f"accuracy {accuracy:.4f}, loss {loss:.4f}"


@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_is_evaluated_are_the_originals(part: str) -> None:
    augment = AugmentConfig("digits", Path("unused"), limit=300, policy="brightness(factor=1)")
    source, shown = getattr(open_data(DataConfig(augment), Report(quiet=True)), part)
    recorder = Recorder()
    found = evaluate([predictor(recorder, source.shape)], source, shown)
    assert_array_equal(np.concatenate(recorder.seen), source.pixels[shown])
    assert_array_equal(found.labels, source.labels[shown])


def test_test_time_augmentation_adds_copies_and_several_models_are_averaged() -> None:
    augment = AugmentConfig("digits", Path("unused"), limit=50, policy=ALL_OPS)
    source = open_images(augment, "memory", Report(quiet=True))
    first, second = Recorder(favourite=3), Recorder(favourite=7)
    predictors = [predictor(recorder, source.shape) for recorder in (first, second)]
    found = evaluate(predictors, source, source.usable, n_copies=2)
    copies = np.stack([source.images(source.usable, copy) for copy in range(3)])
    for recorder in (first, second):
        assert_array_equal(np.stack(recorder.seen), copies)
    believed = [recorder.believed(copy) for recorder in (first, second) for copy in copies]
    assert_allclose(found.probabilities, np.mean(believed, axis=0), rtol=1e-5)  # of float32


def test_evaluate_tells_what_runs_are_worth_alone_and_together(runs: Path) -> None:
    two = runs / "two"
    first, second = (two / f"member-{i}" for i in range(2))
    one, other, both, single, all_three = run("evaluate", two, first).stdout.splitlines()
    accuracy = json.loads((first / "result.json").read_text())["test_accuracy"]
    assert one.startswith(f"{first}: accuracy {accuracy:.4f}, ")
    assert other.startswith(f"{second}: accuracy ")
    believed = [read_predictions(r / "predictions.parquet", 10) for r in (first, second)]
    together = np.mean([b.probabilities for b in believed], axis=0), believed[0].labels
    assert both.startswith(
        f"{two}: its 2 members averaged: {worth(*together)} on 200 images of test; "
    )
    assert single == one
    assert all_three.startswith("all 3 models averaged: accuracy ")
    assert "on 200 images of test; worst class" in one
    assert (
        "on 100 images of train"
        in run(*("evaluate", first, "--limit", 100, "--split", "train")).stdout
    )
    assert "on 335 images" in run("evaluate", first, "--dataset", "digits").stdout
    for option, value in (("--policy", "flip()"), ("--seed", 0)):
        message = run("evaluate", first, option, value, code=2).stderr
        assert f"{option}: originals are not augmented; give --tta too" in message

    with_copies, *others = run(
        "evaluate", first, first / "model.h5", "--tta", 2
    ).stdout.splitlines()
    model = load_model(first / "model.h5")
    augment = AugmentConfig("digits", Path("unused"), split="test", limit=200)
    source = open_images(augment, "none", Report(quiet=True))
    logits = [model.predict(source.images(source.usable, c), verbose=0) for c in range(3)]
    averaged = np.mean([softmax(each, 1) for each in logits], axis=0), source.labels
    assert with_copies.startswith(f"{first}: {worth(*averaged)} on 200 images of test; ")
    assert [o.split(": ")[1] for o in others] == [with_copies.split(": ")[1]] * 2


@pytest.mark.parametrize("place_of_data", ["dataset", "offline"])
def test_a_run_remembers_where_its_data_was_and_how_bad(tmp_path: Path, place_of_data: str) -> None:
    url = "s3://bucket/photos"
    augment = AugmentConfig(
        url if place_of_data == "dataset" else "digits", tmp_path, max_bad=0.5, limit=9
    )
    data = DataConfig(augment, place(url) if place_of_data == "offline" else None)
    told = {"run": {}, "origin": origin(TrainConfig(data, ModelConfig("textbook"), tmp_path))}
    found = data_of(EvaluateConfig((tmp_path,), tmp_path), told)
    assert (found.dataset, found.max_bad) == (url, 0.5)
    assert data_of(EvaluateConfig((tmp_path,), tmp_path, max_bad=0.25), told).max_bad == 0.25


def test_a_run_whose_version_was_removed_says_so_and_takes_the_latest(tmp_path: Path) -> None:
    out, path = tmp_path / "out", tmp_path / "run"
    publish = ("augment", "--limit", 200, "--out", out, "--publish", "--keep", 1, "--quiet")
    run(*publish, "--copies", 1)
    version = (out / "latest").resolve().name
    options = ("--threads", 2, "--model", "textbook", "--epochs", 1, "--quiet")
    run("train", "--offline", out / "latest", *options, "--out", path)
    known = run("evaluate", path).stdout
    run(*publish, "--copies", 2)
    assert not (out / version).exists()
    told = (
        f"pipeline: {path}: was trained on the version {version} of {out}, which was removed "
        f"(--keep); give `evaluate` or `visualize` --dataset {out} for the latest\n"
    )
    for command in ("evaluate", "visualize"):
        assert run(command, path, code=2).stderr == told
    assert run("evaluate", path, "--dataset", out).stdout == known  # the same originals
    out.rename(tmp_path / "moved")
    told = f"pipeline: {path}: was trained on {out / version}, where nothing is now; give "
    assert run("evaluate", path, code=2).stderr.startswith(told)


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (None, (), "no such model; expected a finished run"),
        (b"PK no model", (), "is not a .keras archive"),
        (b"PK\5\6" + bytes(18), (), "cannot be loaded as a Keras model"),
        (
            "run",
            ("--dataset", "photos", "--image-size", 8),
            "takes 1-channel images, the data set has 3",
        ),
        (
            "run",
            ("--image-size", 20),
            "(8, 8, 1), the data set has (20, 20, 1); give --image-size 8x8",
        ),
    ],
)
def test_models_that_cannot_be_used_are_told_in_one_line(
    tmp_path: Path, runs: Path, content: object, options: tuple[object, ...], expected: str
) -> None:
    write_photos(tmp_path / "photos", 40)
    path = runs / "one" if content == "run" else tmp_path / "model.keras"
    if isinstance(content, bytes):
        path.write_bytes(content)
    arguments = [tmp_path / o if o == "photos" else o for o in options]
    result = run("evaluate", path, *arguments, code=2)
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_data_set_with_other_classes_is_refused(tmp_path: Path) -> None:
    ours = write_photos(tmp_path / "ours", 40)
    theirs = write_photos(tmp_path / "theirs", 40, ("cat", "cow"))
    run(*JOB, "--dataset", ours, "--image-size", 16, "--out", tmp_path / "run")
    assert " images of test; worst class " in run("evaluate", tmp_path / "run").stdout
    message = run("evaluate", tmp_path / "run", "--dataset", theirs, code=2).stderr
    assert "knows other classes than the data set ('dog' where that has 'cow')" in message
    model = tmp_path / "run" / "model.keras"
    assert (
        run("evaluate", model).stdout.partition(": ")[2]
        == (run("evaluate", tmp_path / "run").stdout.partition(": ")[2])
    )
    assert run("evaluate", model, "--dataset", theirs, code=2).stderr.partition(": ")[2] == (
        message.partition(": ")[2]
    ).replace(f"{tmp_path / 'run'}", str(model))


def test_batches_are_small_where_images_are_large() -> None:
    for side, expected in ((32, 256), (64, 256), (224, 27), (5000, 1)):
        assert batch_of((side, side, 3)) == expected


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
@pytest.mark.parametrize("side", [pytest.param(8, marks=pytest.mark.slow), None])
def test_models_made_elsewhere_are_evaluated_by_their_own_probabilities(
    side: int | None, tmp_path: Path
) -> None:
    import keras

    path = tmp_path / "foreign.keras"
    write_foreign(path, side)
    assert "give --dataset" in run("evaluate", path, code=2).stderr
    found = run("evaluate", path, "--dataset", "digits").stdout
    augment = AugmentConfig("digits", Path("unused"), split="test")
    source = open_images(augment, "none", Report(quiet=True))
    guesses = keras.models.load_model(path).predict(source.images(source.usable, 0), verbose=0)
    of_truth = guesses[np.arange(len(guesses)), source.labels]
    assert f"loss {-np.log(of_truth).mean():.4f} on 335 images of test;" in found


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_models_of_different_sizes_are_told_before_the_data_are_read(tmp_path: Path) -> None:
    for side in (8, 9):
        write_foreign(tmp_path / f"{side}.keras", side)
    paths = (tmp_path / "8.keras", tmp_path / "9.keras")
    said = run("evaluate", *paths, "--dataset", "/nowhere", code=2).stderr
    assert said.startswith(
        f"pipeline: {paths[1]}: takes images of 9x9 pixels, {paths[0]} of 8x8; evaluate them one"
    )


def test_what_is_no_model_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss")
    expected = (
        f"{path}: is not a model; expected a finished run of `pipeline train`, a .keras or an .h5"
    )
    assert expected in run("evaluate", path, code=2).stderr
