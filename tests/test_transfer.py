"""Backbones learn on: what is frozen stays as it is, phase after phase."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pipeline.online import open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from tests.running import run, run_killed
from tests.small_backbones import NETWORK, SIDE, THREADS, arrays, load, made
from trainers.backbones import stages_of
from trainers.changes import changed_options
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig
from trainers.models import MODELS, ModelConfig
from trainers.transfer import Phase, TransferConfig, phases, resolved_transfer, unfreeze

# Keras' own, with NumPy 2, where it saves in this process.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    ("mode", "n_learning"),
    [
        pytest.param("freeze", 0, marks=pytest.mark.slow),
        ("two-phase", 2),
        pytest.param("fine-tune", 5, marks=pytest.mark.slow),
    ],
)
def test_what_is_frozen_stays_as_it_is(
    mode: str, n_learning: int, photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = ("train", "--dataset", photos, *NETWORK, "--weights", weights, "--mode", mode)
    kept = ("--features", tmp_path / "features") if mode == "freeze" else ()
    run(*job, "--epochs", 4, *kept, "--out", tmp_path / "run")
    model = load(tmp_path / "run" / "model.keras")
    begun = made("MobileNet", (SIDE, SIDE, 3), weights=str(weights), alpha=0.25)
    before, after = arrays(begun), arrays(model)
    stages = stages_of(model, "MobileNet")
    learning = {layer.name for stage in stages[len(stages) - n_learning :] for layer in stage}
    for name, array in after.items():
        layer = model.get_layer(name.rpartition("/")[0])
        is_norm = type(layer).__name__ == "BatchNormalization"
        may_learn = layer.name in learning and not is_norm
        if layer.name.startswith("dense"):
            continue
        assert np.array_equal(array, before[name]) != may_learn, name
    with np.load(tmp_path / "run" / "state.npz") as state:
        losses = [epoch["loss"] for epoch in json.loads(str(state["epochs"]))]
    assert losses[-1] < losses[0]


def test_without_weights_batch_statistics_are_learned() -> None:
    model = made("MobileNet", (SIDE, SIDE, 3), alpha=0.25)
    config = TransferConfig(weights="none", mode="fine-tune", layer_decay=1.0)
    unfreeze(model, "MobileNet", config, Phase(0, 1))
    assert all(layer.trainable for layer in model.layers if layer.weights)


def test_a_stage_learns_more_slowly_than_the_one_above_it() -> None:
    model = made("MobileNet", (SIDE, SIDE, 3), alpha=0.25)
    config = TransferConfig(weights="none", mode="fine-tune", layer_decay=0.5)
    shares = unfreeze(model, "MobileNet", config, Phase(0, 1))
    found = [shares[f"{layer}/kernel"] for layer in ("conv_pw_13", "conv_pw_11", "conv1")]
    assert found == [0.1, 0.05, 0.1 / 16]
    assert "dense/kernel" not in shares
    assert unfreeze(model, "MobileNet", config, Phase(0, 1, 0)) == {}


def test_another_mode_is_told_without_the_options_that_come_with_it() -> None:
    def trained(**chosen: Any) -> dict[str, Any]:
        asked = TransferConfig(weights="none", **chosen)
        model, data = ModelConfig("MobileNet", transfer=asked), DataConfig(AugmentConfig("digits"))
        config = resolved(TrainConfig(data, model, Path("unused")))
        run = {name: getattr(config, name) for name in ("epochs", "lr", "label_smoothing", "seed")}
        recipe = asdict(MODELS["MobileNet"])
        return {"run": {**run, "source": [], "recipe": recipe, "model": asdict(config.model)}}

    before = trained()
    assert changed_options(before, trained(mode="freeze")) == "--mode was two-phase, now freeze"
    assert changed_options(before, trained(mode="fine-tune", layer_decay=0.5)) == (
        "--mode was two-phase, now fine-tune; --layer-decay was 1, now 0.5"
    )


def test_a_learning_rate_of_its_own_is_what_a_variable_gets() -> None:
    """Adam's first step is the learning rate itself, whatever the gradient."""
    import keras
    import tensorflow as tf

    from trainers.fit import Optimizer

    variables = [keras.Variable(np.ones(3, np.float32)) for _ in range(3)]
    optimizer = Optimizer(
        lambda share: keras.optimizers.Adam(share * 1e-2), variables, [1.0, 0.1, 1.0]
    )
    optimizer.apply([tf.constant([1.0, 2.0, 4.0])] * 3, variables)
    for variable, rate in zip(variables, (1e-2, 1e-3, 1e-2), strict=True):
        assert_allclose(variable.numpy(), 1 - rate, atol=1e-6)


def test_the_phases_follow_one_another() -> None:
    two = resolved_transfer(TransferConfig(weights="none"), "VGG16", 20, is_offline=False)
    assert phases(two, 20) == [Phase(0, 5, 0), Phase(5, 20, 2)]
    assert phases(TransferConfig(mode="freeze"), 20) == [Phase(0, 20, 0)]
    assert phases(TransferConfig(mode="fine-tune"), 20) == [Phase(0, 20)]
    assert phases(None, 20) == [Phase(0, 20)]


@pytest.mark.slow
def test_a_killed_transfer_goes_on_across_its_phases(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = ("train", "--dataset", photos, *NETWORK, "--weights", weights, "--epochs", 3)
    job += ("--head-epochs", 1, "--layer-decay", 0.7, "--patience", 1)
    run(*job, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    step = "rename state again"  # in the second phase
    run_killed(*job, "--resume", "--out", out, step=step, victim="group", folder=tmp_path)
    run(*job, "--resume", "--out", out)
    found, want = (load(f / "model.keras") for f in (out, tmp_path / "whole"))
    for name, array in arrays(found).items():
        assert_array_equal(array, arrays(want)[name])
    assert len((out / "history.csv").read_text().splitlines()) >= 3


def miniature_cub(folder: Path) -> Path:
    """CUB-200-2011's official files, of three species with twelve photos each."""
    rng = np.random.default_rng(4)
    species = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
    images, labels, sides, boxes = [], [], [], []
    for i in range(36):
        number, name = i + 1, species[i // 12]
        path = f"{name}/{name[4:]}_{i:04d}_{796000 + i}.jpg"
        photo = rng.integers(0, 60, (40, 48, 3), np.uint8)
        photo[8:33, 12:37, i // 12] += 160  # the bird
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / path), photo)
        images.append(f"{number} {path}")
        labels.append(f"{number} {i // 12 + 1}")
        sides.append(f"{number} {int(i % 3 > 0)}")
        boxes.append(f"{number} 12.0 8.0 25.0 25.0")
    files = {
        "images.txt": images,
        "image_class_labels.txt": labels,
        "train_test_split.txt": sides,
        "bounding_boxes.txt": boxes,
        "classes.txt": [f"{i} {name}" for i, name in enumerate(species, 1)],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize("name", [pytest.param("cub200", marks=pytest.mark.slow), "cub200_cropped"])
def test_a_miniature_of_cub200_is_split_cropped_and_learned(name: str, tmp_path: Path) -> None:
    miniature_cub(tmp_path / "cub200" / "CUB_200_2011")
    where = ("--dataset", name, "--data-dir", tmp_path, "--policy", "none", "--val-fraction", 0.3)
    job = ("train", *where, "--model", "textbook", "--image-size", SIDE, *THREADS, "--epochs", 8)
    run(*job, "--out", tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pydict()
    assert len(rows["sample_id"]) == 12
    assert all(int(path.split("_")[-2]) % 3 == 0 for path in rows["sample_id"])
    assert np.bincount(rows["label"]).tolist() == [4, 4, 4]
    augment = AugmentConfig(name, tmp_path, image_size=(SIDE, SIDE), policy="none")
    source = open_images(augment, "memory", Report(quiet=True))
    brightness = source.images(source.usable, 0).mean()
    assert (brightness > 65) == (name == "cub200_cropped")  # the birds are bright
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(found["per_class"])[1] == "Laysan_Albatross"
    assert found["test_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--model", "cnn", "--mode", "freeze"), "--model cnn: learns from nothing; leave out"),
        (("--weights", "imagenet"), "learns from nothing; leave out --weights, --alpha"),
        (("--model", "VGG16", "--alpha", 0.5), "--alpha 0.5: VGG16 has one width"),
        (("--model", "MobileNet", "--alpha", 0.3), "are for 0.25, 0.5, 0.75, 1; choose one"),
        (
            ("--model", "VGG16", "--mode", "freeze", "--unfreeze", 1),
            "--unfreeze: --mode freeze has",
        ),
        (("--model", "VGG16", "--copies", 1), "--copies: --mode two-phase has no such"),
        (("--model", "VGG16", "--features", "f"), "--features: --mode two-phase has no such"),
        (
            ("--model", "VGG16", "--mode", "freeze", "--engine", "tensorflow"),
            "--engine tensorflow: means nothing to --mode freeze",
        ),
        (("--model", "VGG16", "--unfreeze", 6), "--unfreeze 6: VGG16 has 5 stages"),
        (("--model", "VGG16", "--epochs", 3, "--head-epochs", 3), "some must be left"),
        (
            ("--model", "VGG16", "--epochs", 1),
            "--epochs 1: each phase of --mode two-phase needs one",
        ),
        (("--model", "VGG16", "--weights", "none", "--save-h5"), "that format cannot hold VGG16"),
        (("--model", "InceptionV3", "--weights", "none", "--image-size", 32), "at least 75 pixels"),
    ],
)
def test_options_that_do_not_fit_are_told_in_one_line(
    options: tuple[object, ...], expected: str, photos: Path, tmp_path: Path
) -> None:
    message = run("train", "--dataset", photos, *options, "--out", tmp_path / "run", code=2).stderr
    assert expected in message
    assert len(message.splitlines()) == 1
