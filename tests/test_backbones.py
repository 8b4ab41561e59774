"""Networks of `keras.applications`, as they are built, saved and given weights."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from datasets.errors import UserError
from pipeline.plan import AugmentConfig
from tests.running import run
from tests.small_backbones import NETWORK, SIDE, arrays, load, made
from trainers.backbones import BACKBONES, load_weights, stages_of
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig
from trainers.fit import begin, make_step
from trainers.models import ModelConfig, build
from trainers.transfer import Phase, TransferConfig

# Keras' own, with NumPy 2, where it saves in this process.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


MODULES = {
    "VGG16": "vgg16",
    "VGG19": "vgg19",
    "InceptionV3": "inception_v3",
    "ResNet50": "resnet50",
    "ResNet50V2": "resnet_v2",
    "DenseNet121": "densenet",
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "EfficientNetV2B0": "efficientnet_v2",
    "ConvNeXtTiny": "convnext",
}


@pytest.mark.parametrize("name", BACKBONES)
def test_pixels_are_prepared_as_keras_prepares_them(name: str) -> None:
    import keras

    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    inputs = keras.Input((5, 4, 3), dtype="uint8")
    outputs = BACKBONES[name].preprocess(inputs)
    module = getattr(keras.applications, MODULES[name])
    want = module.preprocess_input(pixels.astype(np.float32))
    found = keras.Model(inputs, outputs)(pixels) if outputs is not inputs else pixels
    assert_allclose(np.asarray(found), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_learns_is_saved_and_predicts_the_same(name: str, tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    side = BACKBONES[name].smallest
    keras.utils.set_random_seed(0)
    model = made(name, (side, side, 3))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, side, side, 3), np.uint8)
    labels = rng.integers(0, 3, 6)
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    assert all(kernel.regularizer.l2 == np.float32(1e-4) for kernel in kernels)
    stages = stages_of(model, name)
    assert len(stages) == len(BACKBONES[name].stages) + 1
    sizes = [stage[-1].output.shape[1] for stage in stages]
    assert sizes == sorted(sizes, reverse=True)
    assert all(any(layer.weights for layer in stage) for stage in stages)

    before = arrays(model)
    transfer = TransferConfig(weights="none", mode="fine-tune")
    data = DataConfig(AugmentConfig("digits", tmp_path))
    config = resolved(TrainConfig(data, ModelConfig(name, transfer=transfer), tmp_path / "run"))
    step = make_step(config, model, begin(config, model, Phase(0, 1), 1), 3)
    step(tf.constant(images), tf.constant(labels))
    changed = [
        name for name, array in arrays(model).items() if not np.array_equal(array, before[name])
    ]
    assert len(changed) > 0.5 * len(before)
    want = model(images).numpy()
    formats = ["model.keras", *(["model.h5"] if BACKBONES[name].fits_h5 else [])]
    for file in formats:
        model.save(tmp_path / file)
        assert_array_equal(load(tmp_path / file)(images).numpy(), want)


def test_grey_images_are_shown_to_all_three_channels() -> None:
    import keras

    keras.utils.set_random_seed(0)
    grey = made("MobileNet", (SIDE, SIDE, 1), alpha=0.25)
    coloured = made("MobileNet", (SIDE, SIDE, 3), alpha=0.25)
    for mine, theirs in zip(grey.variables, coloured.variables, strict=True):
        theirs.assign(mine)
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 1), np.uint8)
    assert_array_equal(grey(images), coloured(np.repeat(images, 3, axis=3)))


class Payload:
    """What a hostile file would run: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def wrong_weights(kind: str, folder: Path, weights: Path) -> Path:
    """A file of that name and content."""
    import pickle

    import keras

    path = folder / f"{kind}.h5"
    if kind == "another backbone":
        path = folder / "other.weights.h5"
        keras.applications.MobileNetV2(
            include_top=False, weights=None, alpha=0.35, input_shape=(SIDE, SIDE, 3)
        ).save_weights(path)
    elif kind == "another width":
        path = folder / "wide.weights.h5"
        keras.applications.MobileNet(
            include_top=False, weights=None, alpha=0.5, input_shape=(SIDE, SIDE, 3)
        ).save_weights(path)
    elif kind == "truncated":
        data = weights.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.touch()
    elif kind == "no HDF5":
        path.write_bytes(b"weights, honestly" * 100)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(folder / "executed")))
    elif kind == "lambda":
        path = folder / "lambda.keras"
        code = f"__import__('pathlib').Path({str(folder / 'executed')!r}).touch()"
        layer = keras.layers.Lambda(eval(f"lambda x: [{code}, x][1]"))
        keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)]).save(path)
        (folder / "executed").unlink(missing_ok=True)
        assert "Lambda" in zipfile.ZipFile(path).read("config.json").decode()
    elif kind == "a name":
        path = folder / "weights.pt"
        path.touch()
    elif kind == "missing":
        path = folder / "none.h5"
    return path


KINDS = "another backbone,another width,truncated,empty,no HDF5,pickle,lambda,a name,missing"


@pytest.mark.parametrize("kind", KINDS.split(","))
def test_a_wrong_weights_file_is_refused_and_nothing_in_it_is_executed(
    kind: str, weights: Path, tmp_path: Path
) -> None:
    path = wrong_weights(kind, tmp_path, weights)
    data = DataConfig(AugmentConfig("digits", tmp_path))
    model = ModelConfig("MobileNet", transfer=TransferConfig(weights=str(path), alpha=0.25))

    def begin() -> None:
        build(resolved(TrainConfig(data, model, tmp_path / "run")).model, (SIDE, SIDE, 3), 3, 0)

    with pytest.raises(UserError) as caught:
        begin()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    assert "expected" in message or "--model that it belongs to" in message
    assert not (tmp_path / "executed").exists()


def test_a_wrong_weights_file_is_told_by_the_command(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.h5").write_bytes(b"no weights")
    job = ("train", "--dataset", photos, *NETWORK, "--weights", tmp_path / "wrong.h5")
    message = run(*job, "--out", tmp_path / "run", code=2).stderr
    assert "does not hold the weights of MobileNet with --alpha 0.25 without its top" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
def test_weights_are_read_from_each_of_keras_own_formats(
    suffix: str, weights: Path, tmp_path: Path
) -> None:
    import keras

    def body() -> Any:
        return keras.applications.MobileNet(
            include_top=False, weights=None, alpha=0.25, input_shape=(SIDE, SIDE, 3)
        )

    first = body()
    first.load_weights(weights)
    path = tmp_path / f"mobilenet{suffix}"
    first.save_weights(path) if suffix == ".weights.h5" else first.save(path)
    second = body()
    load_weights(second, "MobileNet", str(path), 0.25)
    for mine, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        assert_array_equal(mine, theirs)
    built = made("MobileNet", (SIDE, SIDE, 3), weights=str(path), alpha=0.25)
    assert_array_equal(
        built.get_layer("conv1").get_weights(), first.get_layer("conv1").get_weights()
    )


@pytest.mark.slow
def test_keras_own_cache_is_used_and_no_network_is_told(photos: Path, tmp_path: Path) -> None:
    import keras

    job = ("train", "--dataset", photos, *NETWORK, "--epochs", 1, "--mode", "fine-tune")
    nowhere = {"KERAS_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    message = run(*job, "--out", tmp_path / "run", code=5, env=nowhere).stderr
    assert "MobileNet's cannot be downloaded from https://storage.googleapis.com/" in message
    assert "/mobilenet_2_5_224_tf_no_top.h5 (" in message
    assert "refused); put mobilenet_2_5_224_tf_no_top.h5 into ~/.keras/models" in message
    body = keras.applications.MobileNet(
        include_top=False, weights=None, alpha=0.25, input_shape=(224, 224, 3)
    )
    name = "mobilenet_2_5_224_tf_no_top.h5"
    (tmp_path / "models").mkdir(exist_ok=True)
    body.save(tmp_path / "full.h5")
    import h5py

    # Keras' own files hold the weights alone, at the top.
    with (
        h5py.File(tmp_path / "full.h5") as whole,
        h5py.File(tmp_path / "models" / name, "w") as own,
    ):
        for key in whole["model_weights"]:
            whole.copy(f"model_weights/{key}", own)
        for key, value in whole["model_weights"].attrs.items():
            own.attrs[key] = value
    told = run(*job, "--out", tmp_path / "run", env=nowhere).stderr
    assert "Warning" not in told
    assert (tmp_path / "run" / "result.json").is_file()
