"""Backbones learn on: what is frozen stays as it is, and features stand for their images."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from datasets.commit import partial_folders
from datasets.errors import UserError
from pipeline.online import open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from tests.running import PIPELINE, run, run_killed
from trainers.backbones import BACKBONES, FEATURES, load_weights, stages_of
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig, open_data
from trainers.fit import begin, make_step
from trainers.models import ModelConfig, build
from trainers.transfer import Phase, TransferConfig, phases, resolved_transfer, unfreeze

# Keras' own, with NumPy 2, where it saves in this process.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIDE = 32
THREADS = ("--threads", 2)
NETWORK = ("--model", "MobileNet", "--alpha", 0.25, "--image-size", SIDE, *THREADS)
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


def colours(folder: Path, n: int = 60) -> Path:
    """Noisy photos of three colours, a folder each: anything learns to tell them apart."""
    rng = np.random.default_rng(2)
    for i in range(n):
        path = folder / ("red", "green", "blue")[i % 3] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 120, (SIDE + 4, SIDE + 4, 3), np.uint8)
        image[..., 2 - i % 3] += 110
        cv2.imwrite(str(path), image)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("colours") / "photos")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for ImageNet's: random kernels, and batch statistics that fit them."""
    import keras

    keras.utils.set_random_seed(5)
    body = keras.applications.MobileNet(
        include_top=False, weights=None, alpha=0.25, input_shape=(SIDE, SIDE, 3)
    )
    images = np.random.default_rng(0).uniform(-1, 1, (32, SIDE, SIDE, 3)).astype(np.float32)
    images += np.linspace(-1, 1, 32)[:, None, None, None]
    for layer in body.layers:
        layer.momentum = 0.5
    for _ in range(20):
        body(images, training=True)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    body.save_weights(path)
    return path


def arrays(model: Any) -> dict[str, np.ndarray]:
    """Every array of a model's layers, by `layer/number`."""
    return {
        f"{layer.name}/{i}": array
        for layer in model.layers
        for i, array in enumerate(layer.get_weights())
    }


def load(path: Path) -> Any:
    import keras

    return keras.models.load_model(path, compile=False)


def made(name: str, shape: tuple[int, int, int], **transfer: Any) -> Any:
    """An untrained network."""
    transfer = {"weights": "none"} | transfer
    return build(ModelConfig(name, transfer=TransferConfig(**transfer)), shape, 3, 0)


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


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [name if name == "MobileNet" else pytest.param(name, marks=SLOW) for name in BACKBONES]
)
def test_every_backbone_learns_is_saved_and_predicts_the_same(name: str, tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    side = BACKBONES[name].smallest
    keras.utils.set_random_seed(0)
    model = made(name, (side, side, 3))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, side, side, 3), np.uint8)
    labels = rng.integers(0, 3, 6)
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


@pytest.mark.parametrize(
    ("mode", "n_learning"), [("freeze", 0), ("two-phase", 2), ("fine-tune", 5)]
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


def test_a_learning_rate_of_its_own_is_what_a_variable_gets(photos: Path) -> None:
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


THROUGH = """
import sys
from pathlib import Path
import keras, numpy as np
from pipeline.online import open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.stream import import_tensorflow
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig, open_data
from trainers.fit import begin, make_step
from trainers.fit import run_epochs
from trainers.models import ModelConfig, build
from trainers.state import History
from trainers.transfer import TransferConfig

shards, weights, out = map(Path, sys.argv[1:4])
import_tensorflow(2).config.experimental.enable_op_determinism()
data = DataConfig(AugmentConfig("unused", Path()), shards, per_epoch=sys.argv[4])
transfer = TransferConfig(str(weights), 0.25, "freeze")
model = ModelConfig("MobileNet", weight_decay=1e-3, batch_norm=True, transfer=transfer)
config = resolved(TrainConfig(data, model, out, epochs=6))
out.mkdir()
opened = open_data(config.data, Report(quiet=True))
network = build(config.model, opened.shape, 3, 0)
for _ in run_epochs(config, opened, network, History(), None, Report(quiet=True)):
    pass
network.save(out / "model.keras")
"""


@pytest.mark.parametrize("per_epoch", ["one-copy", pytest.param("all-copies", marks=SLOW)])
def test_training_on_features_is_training_through_the_frozen_backbone(
    per_epoch: str, photos: Path, weights: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    augment = ("augment", "--dataset", photos, "--image-size", SIDE, "--encoding", "raw")
    run(*augment, "--copies", 2, "--workers", 0, "--out", shards)
    job = ("train", "--offline", shards, "--per-epoch", per_epoch, "--model", "mobilenet", *THREADS)
    job += ("--weights", weights, "--alpha", 0.25, "--mode", "freeze", "--epochs", 6)
    regularized = ("--weight-decay", 1e-3, "--batch-norm")
    run(*job, *regularized, "--features", tmp_path / "features", "--out", tmp_path / "run")
    script = [sys.executable, "-c", THROUGH, shards, weights, tmp_path / "through", per_epoch]
    subprocess.run(list(map(str, script)), check=True, timeout=300)
    images = np.random.default_rng(3).integers(0, 256, (64, SIDE, SIDE, 3), np.uint8)
    found, want = (load(tmp_path / f / "model.keras")(images).numpy() for f in ("run", "through"))
    assert np.abs(found - want).max() / np.abs(want).max() < 1e-4
    untrained = made("MobileNet", (SIDE, SIDE, 3), weights=str(weights), alpha=0.25)(images).numpy()
    assert np.abs(found - untrained).max() / np.abs(want).max() > 0.1


def test_features_are_ordinary_shards_made_once(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = ("train", "--dataset", photos, *NETWORK, "--weights", weights, "--mode", "freeze")
    job += ("--copies", 2, "--epochs", 3)
    run(*job, "--features", tmp_path / "others", "--out", tmp_path / "whole")
    job += ("--features", tmp_path / "features")
    for step in ("rename record", "commit", "rename state again"):
        out = ("--resume", "--out", tmp_path / "run")
        run_killed(*job, *out, step=step, victim="group", folder=tmp_path)
    run(*job, "--resume", "--out", tmp_path / "run")
    found, want = (arrays(load(tmp_path / f / "model.keras")) for f in ("run", "whole"))
    for name, array in found.items():
        assert_array_equal(array, want[name])
    (folder,) = [path for path in (tmp_path / "features").iterdir() if path.is_dir()]
    assert partial_folders(folder) == []
    assert (
        "every hash fits; every row decodes; NOT compared" in run("verify", folder, "--deep").stdout
    )
    assert "FixedSizeList" in str(type(pq.read_table(folder)["features"].chunk(0)))
    message = run(*job, "--lr", 0.01, "--out", tmp_path / "other").stderr
    assert f"{folder}: made before" in message

    # Each row is what the backbone makes of that copy of that sample.
    import keras

    table = pq.read_table(folder).to_pydict()
    model = made("MobileNet", (SIDE, SIDE, 3), weights=str(weights), alpha=0.25)
    body = keras.Model(model.input, model.get_layer(FEATURES).output)
    augment = AugmentConfig(str(photos), tmp_path, image_size=(SIDE, SIDE))
    source, _ = open_data(DataConfig(augment), Report(quiet=True)).validation
    for copy in (0, 1, 2):
        rows = [i for i, number in enumerate(table["copy"]) if number == copy]
        where = np.array([source.ids.index(table["sample_id"][i]) for i in rows])
        want = body(source.images(where, copy)).numpy()
        assert_allclose(np.array([table["features"][i] for i in rows]), want, atol=1e-4)
        assert_array_equal(source.labels[where], [table["label"][i] for i in rows])
    assert len(table["copy"]) == 3 * len(source.usable)
    for wrong, told in (
        (("train", "--offline", folder), "holds features of MobileNet; name the shards"),
        (("preview", folder), "features"),
        (("augment", "--dataset", folder), "image"),
    ):
        assert told in run(*wrong, "--out", tmp_path / "no", code=2).stderr


def test_two_trainings_at_once_share_what_one_of_them_makes(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = [PIPELINE, "train", "--dataset", photos, *NETWORK, "--weights", weights]
    job += ["--mode", "freeze", "--epochs", 1, "--features", tmp_path / "features"]
    started = [
        subprocess.Popen(
            list(map(str, [*job, "--lr", rate, "--out", tmp_path / f"run-{rate}"])),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rate in (0.1, 0.2)
    ]
    told = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert sum("made before" in text for text in told) == 1


def test_a_killed_transfer_goes_on_across_its_phases(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = ("train", "--dataset", photos, *NETWORK, "--weights", weights, "--epochs", 3)
    job += ("--head-epochs", 1, "--layer-decay", 0.7, "--patience", 1)
    run(*job, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    for step in ("rename state again", "rename result"):  # in the second phase, and at its end
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


@pytest.mark.parametrize("name", ["cub200", "cub200_cropped"])
def test_a_miniature_of_cub200_is_split_cropped_and_learned(
    name: str, weights: Path, tmp_path: Path
) -> None:
    miniature_cub(tmp_path / "cub200" / "CUB_200_2011")
    where = ("--dataset", name, "--data-dir", tmp_path, "--policy", "none", "--val-fraction", 0.3)
    job = ("train", *where, *NETWORK, "--weights", weights, "--mode", "fine-tune", "--epochs", 6)
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


def test_keras_own_cache_is_used_and_no_network_is_told(photos: Path, tmp_path: Path) -> None:
    import keras

    job = ("train", "--dataset", photos, *NETWORK, "--epochs", 1, "--mode", "fine-tune")
    nowhere = {"KERAS_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    message = run(*job, "--out", tmp_path / "run", code=5, env=nowhere).stderr
    assert "MobileNet's cannot be downloaded" in message
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
    run(*job, "--out", tmp_path / "run", env=nowhere)
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--model", "cnn", "--mode", "freeze"), "--model cnn: learns from nothing; --weights"),
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
        (("--model", "VGG16", "--epochs", 1), "--head-epochs 1: of 1 epochs some must be left"),
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
