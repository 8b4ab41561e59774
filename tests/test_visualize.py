"""`pipeline visualize`: the pictures show the very weights, maps and gradients of the model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from datasets.blocks import limited
from datasets.catalog import open_source
from datasets.errors import UserError
from datasets.images import decode, fit
from pipeline.report import Report
from tests.running import run, write_photos
from trainers import models
from trainers.activations import (
    Network,
    colours_seen,
    feature_maps,
    grad_cam,
    kernels_of,
    named_layers,
    shapes_of,
)
from trainers.network_sheets import (
    Shown,
    cam_caption,
    cam_sheet,
    diverging,
    kernel_sheet,
    map_sheet,
)
from trainers.visualize import VisualizeConfig, choose_images, list_layers, open_network, visualize

# Of Keras' own, when it saves a model.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LEFT, TOP, GAP = 16, 56, 16  # of a sheet without names of rows, in pixels
QUIET = Report(quiet=True)
RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def fresh_keras() -> Iterator[None]:
    """Layers are numbered from the start, weights are the same each time, float32 afterwards."""
    import keras

    keras.backend.clear_session(free_memory=False)  # which would take as long as the test
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def scaled(x: Any) -> Any:
    from keras import layers

    return layers.Rescaling(1 / 127.5, offset=-1)(x)


def inputs(side: int = 32, channels: int = 3) -> Any:
    import keras

    return keras.Input((side, side, channels), dtype="uint8")


def mobilenet(**options: Any) -> Any:
    import keras

    return keras.applications.MobileNet(alpha=0.25, include_top=False, weights=None, **options)


def ours(name: str, precision: str = "float32") -> Any:
    own = models.ModelConfig(name, 0.1, 0.0, batch_norm=True)
    return models.build(own, (32, 32, 3), 5, 0, precision)


def flat(precision: str = "float32") -> Any:
    """A network as transfer builds it: the backbone's own layers, then those of the head."""
    import keras
    from keras import layers

    keras.config.set_dtype_policy(precision)
    images = inputs()
    backbone = mobilenet(input_tensor=scaled(images))
    backbone.trainable = False
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(backbone.output))
    return keras.Model(images, layers.Dense(5, dtype="float32")(x))


def nested() -> Any:
    """Others' way: models inside, the last of which ends with the softmax."""
    import keras
    from keras import layers

    backbone = mobilenet(input_shape=(32, 32, 3), name="backbone")
    backbone.trainable = False
    softmax = layers.Dense(5, activation="softmax")
    head = keras.Sequential([layers.GlobalAveragePooling2D(), softmax], name="head")
    images = inputs()
    return keras.Model(images, head(backbone(scaled(images))))


def vgg16() -> Any:
    """The backbone that was trained on blue, green and red."""
    import keras
    from keras import layers

    images = inputs()
    turned = layers.Rescaling(1.0, offset=[-104.0, -117.0, -124.0])(images[..., ::-1])
    backbone = keras.applications.VGG16(include_top=False, weights=None, input_tensor=turned)
    x = layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(images, layers.Dense(5)(x))


MODELS: dict[str, Callable[[], Any]] = {
    "cnn": lambda: ours("cnn"),
    "textbook": lambda: ours("textbook"),
    "cnn in bfloat16": lambda: ours("cnn", "mixed_bfloat16"),
    "flat": flat,
    "flat in bfloat16": lambda: flat("mixed_bfloat16"),
    "nested": nested,
    "vgg16": vgg16,
}


def network_of(model: Any, n_classes: int = 5) -> Network:
    layers, shape = named_layers(model), model.input_shape[1:]
    return Network(model, shape, layers, shapes_of(model, layers, shape), n_classes)


def shown(images: np.ndarray, truths: list[str | None] | None = None) -> Shown:
    n = len(images)
    return Shown(images, [f"{i}.png" for i in range(n)], truths or [None] * n, tuple("abcde"))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


@pytest.mark.parametrize(
    ("name", "first", "maps", "last"),
    [
        ("cnn", "conv2d", "activation", "add_2"),
        ("textbook", "conv2d", "activation", "dropout_1"),
        ("flat", "conv1", "conv1_relu", "conv_pw_11_relu"),
        ("nested", "backbone/conv1", "backbone/conv1_relu", "backbone/conv_pw_11_relu"),
        ("vgg16", "block1_conv1", "block1_conv1", "block5_conv3"),
    ],
)
def test_the_first_and_the_last_layer_that_tell_most_are_found(
    name: str, first: str, maps: str, last: str
) -> None:
    network = network_of(MODELS[name]())
    assert network.with_kernels[0] == first
    assert network.telling == [maps, last]


@pytest.mark.parametrize("name", MODELS)
def test_every_picture_of_every_kind_of_model_can_be_drawn(name: str) -> None:
    network = network_of(MODELS[name]())
    kernels = kernel_sheet(network, network.with_kernels[0])
    assert ", in colour" in kernels.title
    for layer in network.telling:
        rows = map_sheet(network, layer, shown(COLOUR), 6).rows
        assert [len(row) for row in rows] == [7, 7, 7]
        assert all(tile.image.std() > 0 for row in rows for tile in row[:2])
    rows = cam_sheet(network, network.telling[-1], shown(COLOUR, ["a", "b", None]), 1).rows
    assert "  is a" in rows[0][1].caption
    assert all(tile.image.shape == (256, 256, 3) for row in rows for tile in row)


def test_layers_of_models_inside_are_found_by_their_path() -> None:
    model = nested()
    assert named_layers(model)["backbone/conv1"] is model.get_layer("backbone").get_layer("conv1")
    assert list(named_layers(model))[-2:] == ["head/global_average_pooling2d", "head/dense"]
    network = network_of(model)
    assert network.shapes["backbone/conv_dw_2"] == (8, 8, 16)
    assert network.shapes["head/dense"] == (5,)


@pytest.mark.parametrize("name", MODELS)
def test_feature_maps_are_what_a_model_of_keras_gives(name: str) -> None:
    import keras

    model = MODELS[name]()
    layers = named_layers(model)
    for chosen in network_of(model).telling:
        inner, images = model, COLOUR
        if "/" in chosen:  # only the model inside knows the output of its layer
            inner = model.get_layer("backbone")
            images = keras.Model(model.input, model.get_layer("rescaling").output)(COLOUR)
        want = keras.Model(inner.input, layers[chosen].output)(images)
        assert layers[chosen].compute_dtype == ("bfloat16" if "bfloat16" in name else "float32")
        found = feature_maps(model, layers[chosen], COLOUR)
        # bfloat16 has 8 bits, and a batch of three is summed in another order than one image.
        tolerance = 0.05 if "bfloat16" in name else 1e-5
        assert found.dtype == np.float32
        assert_allclose(found, np.asarray(want, np.float32), tolerance, tolerance)


def small_model(end: str, side: int = 8, channels: int = 1) -> Any:
    """One convolution, the mean of its maps, and a dense layer: Grad-CAM has a closed form."""
    import keras
    from keras import layers

    images = inputs(side, channels)
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(scaled(images))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(3, activation="softmax" if end == "dense" else None, name="logits")(x)
    if end == "activation":
        x = layers.Activation("softmax")(x)
    if end == "layer":
        x = layers.Softmax()(x)
    model = keras.Model(images, x)
    model.trainable = end != "frozen"
    if end == "nested":
        outer = inputs(side, channels)
        model = keras.Model(outer, model(outer))
    return model


@pytest.mark.parametrize("chosen", [None, 0, 2])
@pytest.mark.parametrize("end", ["logits", "dense", "activation", "layer", "frozen", "nested"])
def test_grad_cam_of_a_mean_and_a_dense_layer_is_the_class_activation_map(
    end: str, chosen: int | None
) -> None:
    """Zhou et al., "Learning deep features for discriminative localization", CVPR 2016: the maps
    weighted by the weights of the dense layer, whether the model ends with a softmax or not."""
    model = small_model(end)
    images = RNG.integers(0, 256, (4, 8, 8, 1), np.uint8)
    layers = {name.split("/")[-1]: layer for name, layer in named_layers(model).items()}
    kernel, bias = layers["conv"].get_weights()
    patches = np.lib.stride_tricks.sliding_window_view(images[..., 0] / 127.5 - 1, (3, 3), (1, 2))
    maps = np.maximum(np.einsum("bhwij,ijk->bhwk", patches, kernel[:, :, 0]) + bias, 0)
    weights, bias = layers["logits"].get_weights()
    logits = maps.mean((1, 2)) @ weights + bias
    classes = logits.argmax(1) if chosen is None else np.full(4, chosen)
    want = np.maximum(np.einsum("bhwk,kb->bhw", maps, weights[:, classes]), 0)
    want /= np.maximum(want.max((1, 2), keepdims=True), 1e-12)
    heats, probabilities = grad_cam(model, layers["conv"], images, chosen)
    assert_allclose(heats, want, atol=1e-5)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert_allclose(probabilities, shares, atol=1e-5)
    assert (heats.max((1, 2)) > 0.99).any()  # else nothing would have been compared


def test_a_model_is_left_as_it_was() -> None:
    model = small_model("dense")
    images = RNG.integers(0, 256, (2, 8, 8, 1), np.uint8)
    before = np.asarray(model(images))
    held = [dict(vars(layer)) for layer in model.layers]
    network = network_of(model)
    grad_cam(model, network.layers["conv"], images)
    for layer in network.layers.values():
        with pytest.raises(ZeroDivisionError):  # an end that is not foreseen changes nothing
            fail_inside(model, layer, images)
    assert [set(vars(layer)) for layer in model.layers] == [set(names) for names in held]
    assert_array_equal(model(images), before)


def fail_inside(model: Any, layer: Any, images: np.ndarray) -> None:
    from trainers.activations import giving_logits, heard

    with giving_logits(model), heard(layer, lambda taken, given: 1 // 0):
        model(images)


def transposed() -> Any:
    import keras
    from keras import layers

    images = inputs(8)
    x = layers.Conv2D(4, (3, 5), name="colour")(scaled(images))
    x = layers.Conv2DTranspose(7, 2, name="transposed")(x)
    x = layers.SeparableConv2D(3, 3, depth_multiplier=2, name="separable")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.Conv2D(20, 3, padding="same", name="mean")(x)
    x = layers.Conv2D(3, 1, name="three")(x)
    x = layers.Conv2D(5, 3, padding="same", name="no colours")(x)
    return keras.Model(images, layers.Dense(5)(layers.GlobalMaxPooling2D()(x)))


def test_kernels_are_the_weights_of_each_kind_of_convolution() -> None:
    layers = named_layers(transposed())
    weights = {name: layer.get_weights()[:1] for name, layer in layers.items()}
    for name, n, channels in (("colour", 4, 3), ("mean", 20, 6), ("three", 3, 20)):
        found, (want,) = kernels_of(layers[name]), weights[name]
        assert found.shape == (n, *want.shape[:2], channels)
        for i in range(n):
            assert_array_equal(found[i], want[:, :, :, i])
    (want,) = weights["transposed"]  # (h, w, out, in)
    assert_array_equal(kernels_of(layers["transposed"])[6, 0, 1], want[0, 1, 6])
    for name, n in (("separable", 14), ("depthwise", 6)):
        found, (want,) = kernels_of(layers[name]), weights[name]
        assert found.shape == (n, 3, 3, 1)
        for i in range(n):  # the kernels of a channel are neighbours
            assert_array_equal(found[i, :, :, 0], want[:, :, i // 2, i % 2])


@pytest.mark.parametrize(
    ("name", "seen"), [("vgg16", [2, 1, 0]), ("flat", [0, 1, 2]), ("nested", [0, 1, 2])]
)
def test_colours_are_those_of_the_image_in_whatever_order_a_network_takes_them(
    name: str, seen: list[int]
) -> None:
    network = network_of(MODELS[name]())
    first = network.layers[network.with_kernels[0]]
    assert colours_seen(network, first) == seen
    tile = kernel_sheet(network, network.with_kernels[0]).rows[0][3].image
    kernel = first.get_weights()[0][:, :, seen, 3]
    limit = np.quantile(np.abs(first.get_weights()[0]), 0.99)
    want = np.rint(127.5 + 127.5 * np.clip(kernel / limit, -1, 1))
    assert_array_equal(tile, want)


def test_three_channels_that_are_no_colours_are_not_drawn_as_such() -> None:
    network = network_of(transposed())
    assert "in colour" in kernel_sheet(network, "colour").title
    assert "mean over 3 input channels" in kernel_sheet(network, "no colours").title
    assert "mean" not in kernel_sheet(network, "depthwise").title


def test_maps_of_many_channels_wrap_and_every_row_begins_with_the_image() -> None:
    shown = Shown(COLOUR[:2, :8, :8], ["a", "b"], [None, None], ())
    sheet = map_sheet(network_of(transposed()), "mean", shown, 20)
    assert [len(row) for row in sheet.rows] == [1 + 16, 1 + 4] * 2
    assert [row[0].caption for row in sheet.rows] == ["a", "a", "b", "b"]
    channels = [tile.caption for row in sheet.rows[:2] for tile in row[1:]]
    assert sorted(channels) == sorted(f"channel {i}" for i in range(20))


def test_blue_is_below_white_is_zero_red_is_above() -> None:
    blue, pale, white, red = diverging(np.array([-1.0, -0.5, 0.0, 1.0])).tolist()
    assert (blue, white, red) == ([33, 102, 172], [255, 255, 255], [178, 24, 43])
    assert pale == [144, 178, 214]


def test_pictures_show_the_weights_and_maps_pixel_for_pixel(tmp_path: Path) -> None:
    model = transposed()
    model.save(tmp_path / "model.keras")
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), COLOUR[0, :8, :8, ::-1])
    options = VisualizeConfig(tmp_path / "model.keras", tmp_path, ("mean",), (path,), channels=4)
    visualize(options, QUIET)
    folder = tmp_path / "pictures"
    names = ["features-mean.png", "gradcam.png", "kernels-mean.png"]
    assert sorted(p.name for p in folder.iterdir()) == names

    drawn = pixels_of(folder / "kernels-mean.png")
    means = named_layers(model)["mean"].get_weights()[0].mean(2).transpose(2, 0, 1)
    limit = np.quantile(np.abs(means), 0.99)
    for i, kernel in enumerate(diverging(np.clip(means / limit, -1, 1))):
        x, y = LEFT + i % 16 * (48 + GAP), TOP + i // 16 * (48 + 14 + GAP)
        want = kernel.repeat(16, 0).repeat(16, 1)
        assert_array_equal(drawn[y : y + 48, x : x + 48], want)
        assert (drawn[y + 49 : y + 62, x : x + 48] < 128).any()  # its number

    drawn = pixels_of(folder / "features-mean.png")
    maps = feature_maps(model, named_layers(model)["mean"], COLOUR[:1, :8, :8])[0]
    side, wide, px = *maps.shape[:2], 22  # 5x3 maps: 112 / 5
    first = drawn[TOP : TOP + side * px, LEFT : LEFT + side * px]
    assert_array_equal(first, np.asarray(Image.fromarray(COLOUR[0, :8, :8]).resize((110, 110), 0)))
    for i, channel in enumerate(np.argsort(-maps.mean((0, 1)), kind="stable")[:4]):
        values = maps[..., channel] / np.abs(maps[..., channel]).max()
        want = diverging(values).repeat(px, 0).repeat(px, 1)
        x = LEFT + (i + 1) * (side * px + GAP)
        assert_array_equal(drawn[TOP : TOP + side * px, x : x + wide * px], want)


def test_channels_are_ordered_by_mean_activation_and_share_a_scale_over_images() -> None:
    network = network_of(small_model("logits"), 3)
    images = RNG.integers(0, 256, (3, 8, 8, 1), np.uint8)
    maps = feature_maps(network.model, network.layers["conv"], images)
    drawn = map_sheet(network, "conv", shown(images), 4)
    order = np.argsort(-maps.mean((0, 1, 2)))[:4]
    for row, image in zip(drawn.rows, images, strict=True):
        assert_array_equal(row[0].image, image)
        assert [tile.caption for tile in row[1:]] == [f"channel {i}" for i in order]
    brightest = maps[..., order[0]].max((1, 2)).argmax()
    peaks = [(row[1].image == [253, 231, 36]).all(-1).any() for row in drawn.rows]  # viridis' end
    assert peaks == [i == brightest for i in range(3)]


def test_captions_of_grad_cam_say_class_guess_and_truth() -> None:
    classes, sure = ("cat", "dog"), np.array([0.7, 0.3])
    assert cam_caption(sure, None, "dog", classes) == "cat (70%)  is dog"
    assert cam_caption(sure, 0, None, classes) == "cat (70%)"
    assert cam_caption(sure, 1, "dog", classes) == "dog (30%)  guess cat (70%)  is dog"


def test_grad_cam_is_red_where_the_heat_is_and_blue_elsewhere() -> None:
    model = small_model("logits", side=3)
    conv, logits = model.get_layer("conv"), model.get_layer("logits")
    conv.padding = "same"
    kernel = np.zeros((3, 3, 1, 6), np.float32)
    kernel[1, 1, 0, 0] = 1
    conv.set_weights([kernel, np.zeros(6)])
    weights = np.zeros((6, 3), np.float32)
    weights[0, 1] = 1
    logits.set_weights([weights, np.zeros(3)])
    image = np.full((1, 3, 3, 1), 100, np.uint8)
    image[0, 2, 0] = 200  # the only place above 127.5, and so the only one after the ReLU
    row = cam_sheet(network_of(model, 3), "conv", shown(image), 1).rows[0]
    over = row[1].image.astype(int)
    assert over[255, 0, 0] - over[255, 0, 2] > 80
    assert over[0, 255, 2] - over[0, 255, 0] > 50
    nothing = cam_sheet(network_of(model, 3), "conv", shown(image), 0).rows[0][1]
    assert nothing.caption.endswith("(nothing speaks for it)")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Path:
    """A run of our own, of which pictures may be drawn."""
    return shutil.copytree(runs / "one", tmp_path_factory.mktemp("digits") / "run")


def test_a_run_is_drawn_the_same_each_time(tmp_path: Path, digits: Path) -> None:
    said = run("visualize", digits)
    names = [f"{name}.png" for name in ("kernels-conv2d", "features-activation")]
    names += ["features-dropout_1.png", "gradcam.png"]
    lines = said.stdout.splitlines()
    assert said.stderr == ""
    assert [line.split(": ")[0] for line in lines] == [str(digits / "pictures" / n) for n in names]
    assert lines[0].endswith("conv2d: 32 kernels of 3x3")
    visualize(VisualizeConfig(digits, tmp_path, out=tmp_path / "again"), QUIET)
    for name in names:
        drawn = [
            (folder / name).read_bytes() for folder in (digits / "pictures", tmp_path / "again")
        ]
        assert len({hashlib.sha256(data).digest() for data in drawn}) == 1


def test_samples_are_the_first_by_hash_with_their_classes(tmp_path: Path, digits: Path) -> None:
    config = VisualizeConfig(digits, tmp_path, samples=3)
    network = open_network(config)
    known = {"run": {"classes": list("0123456789")}, "origin": {"dataset": "digits"}}
    found = choose_images(config, network, known, QUIET)
    source = open_source("digits", tmp_path)
    listing = source.listing()
    test = listing.splits["test"]
    first = limited(test.ids, 3)
    assert list(found.names) == [Path(test.ids[i]).name for i in first]
    assert list(found.truths) == [listing.classes[test.labels[i]] for i in first]
    want = np.stack(list(source.read([test.refs[i] for i in first])))
    assert_array_equal(found.images.reshape(want.shape), want)


def test_a_run_that_was_tested_on_a_part_of_train_shows_train(tmp_path: Path, digits: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "run")
    result = json.loads((folder / "result.json").read_text()) | {"split": "val"}
    (folder / "result.json").write_text(json.dumps(result))
    config = VisualizeConfig(folder, tmp_path, samples=3)
    known = {"run": {"classes": list("0123456789")}, "origin": {"dataset": "digits"}}
    found = choose_images(config, open_network(config), known, QUIET)
    train = open_source("digits", tmp_path).listing().splits["train"]
    assert list(found.names) == [Path(train.ids[i]).name for i in limited(train.ids, 3)]


def test_layers_are_listed_with_what_they_give(tmp_path: Path, digits: Path) -> None:
    lines = list_layers(VisualizeConfig(digits, tmp_path)).splitlines()
    assert lines[0].split() == ["rescaling", "Rescaling", "8", "x", "8", "x", "1"]
    assert lines[1].split() == ["conv2d", "Conv2D", "8", "x", "8", "x", "32"]
    assert lines[-1].split() == ["dense_1", "Dense", "10"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_decoded_as_those_of_a_data_set(tmp_path: Path, channels: int) -> None:
    small_model("logits", 16, channels).save(tmp_path / "model.keras")
    photos = write_photos(tmp_path / "photos", 8)
    path = sorted(photos.rglob("*.png"))[1]
    config = VisualizeConfig(tmp_path / "model.keras", tmp_path, images=(path,))
    network, unknown = open_network(config), {"run": {}, "origin": {}}
    found = choose_images(config, network, unknown, QUIET)
    assert_array_equal(found.images[0], fit(decode(path.read_bytes(), channels), 16, 16))
    assert found.classes == ("0", "1", "2")
    # A data set in colour for a model of grey images, and the other way round.
    other = "digits" if channels == 3 else str(photos)
    config = replace(config, images=(), dataset=other, samples=2, split="train")
    found = choose_images(config, network, unknown, QUIET)
    assert found.images.shape == (2, 16, 16, channels)
    assert found.images.std() > 10


def test_what_is_no_classifier_has_no_grad_cam(tmp_path: Path) -> None:
    mobilenet(input_shape=(32, 32, 3)).save(tmp_path / "backbone.h5")
    cv2.imwrite(str(tmp_path / "a.png"), COLOUR[0])
    config = VisualizeConfig(
        tmp_path / "backbone.h5", tmp_path, images=(tmp_path / "a.png",), out=tmp_path / "out"
    )
    assert visualize(config, QUIET).endswith(
        "does not choose among classes, so there is no Grad-CAM"
    )
    names = ["features-conv1_relu.png", "features-conv_pw_11_relu.png", "kernels-conv1.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names


def test_a_model_that_takes_any_size_is_given_one(tmp_path: Path) -> None:
    import keras
    from keras import layers

    images = keras.Input((None, None, 3), dtype="uint8")
    x = layers.Conv2D(4, 3, name="conv")(scaled(images))
    keras.Model(images, layers.Dense(3)(layers.GlobalMaxPooling2D()(x))).save(tmp_path / "m.keras")
    config = VisualizeConfig(tmp_path / "m.keras", tmp_path)
    with pytest.raises(UserError, match="takes images of any size; give --image-size"):
        open_network(config)
    network = open_network(replace(config, image_size=(10, 12)))
    assert network.shapes["conv"] == (8, 10, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": ("Dense",)}, "none of that name .--layers lists all.; did you mean 'dense'"),
        ({"layers": ("dense_1",)}, r"--layer dense_1: gives \(10,\); expected kernels or"),
        ({"class_name": "seven"}, "--class seven: .*run.* knows 10 classes, .*; known: 0, 1, 2"),
        ({"images": ("none.png",)}, "none.png: cannot be read: No such file or directory; give"),
        ({"images": ("bad.png",)}, "bad.png: not a JPEG, PNG, WebP, BMP, TIFF or GIF image; give"),
        ({"images": (".",)}, "cannot be read: not a regular file"),
        (
            {"images": ("a.png",), "dataset": "digits"},
            "is shown instead of --dataset digits; leave",
        ),
        ({"images": ("a.png",), "samples": 4}, "is shown instead of --samples 4; leave one out"),
        ({"images": ("a.png",), "split": "test"}, "is shown instead of --split test; leave one"),
        ({"split": "val"}, "--split val: digits has train, test; choose one"),
        ({"image_size": (9, 9)}, "takes images of 8x8; leave out --image-size"),
        ({"path": "nowhere"}, "no such model; expected a finished run"),
        ({"path": "ensemble"}, "is an ensemble; name one of its members, such as .*/member-0"),
        ({"path": "vector.keras"}, r"takes \(None, 4\); expected images in grey or colour"),
        ({"path": "flat.keras"}, "has neither convolutions nor maps; name another model"),
        ({"path": "nan.keras", "images": ("a.png",)}, "conv: has values that are not finite"),
        ({"path": "nan.keras"}, "does not say what it was trained on; give --dataset or --image"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, digits: Path, options: dict[str, Any], expected: str
) -> None:
    write_models(tmp_path, str(options.get("path", "")))
    (tmp_path / "bad.png").write_text("no image")
    cv2.imwrite(str(tmp_path / "a.png"), COLOUR[0])
    config = VisualizeConfig(digits, tmp_path, out=tmp_path / "out")
    if "path" in options:
        options = options | {"path": tmp_path / options["path"]}
    if "images" in options:
        options = options | {"images": tuple(tmp_path / name for name in options["images"])}
    with pytest.raises(UserError, match=expected) as caught:
        visualize(replace(config, **options), QUIET)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def write_models(folder: Path, name: str) -> None:
    import keras
    from keras import layers

    (folder / "ensemble").mkdir()
    (folder / "ensemble" / "ensemble.json").write_text('["member-0"]')
    if name == "vector.keras":
        keras.Sequential([keras.Input((4,)), layers.Dense(2)]).save(folder / name)
    if name == "flat.keras":
        images = inputs(4)
        keras.Model(images, layers.Dense(2)(layers.Flatten()(images))).save(folder / name)
    if name == "nan.keras":
        model = small_model("logits")
        model.get_layer("conv").set_weights([np.full((3, 3, 1, 6), np.nan), np.zeros(6)])
        model.save(folder / name)


def test_the_command_ends_with_its_exit_code(digits: Path) -> None:
    message = run("visualize", digits, "--layer", "conv2", code=2).stderr
    assert message.startswith(f"pipeline: --layer conv2: {digits} has none of that name")
    assert len(message.splitlines()) == 1
    assert "conv2d_3" in run("visualize", digits, "--layers").stdout
