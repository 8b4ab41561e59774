"""Networks that have learned from ImageNet, for transfer: built flat, with their preprocessing."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

from datasets.errors import EnvironmentFailed, UserError, first_line

Tensor = Any
IMAGENET, NONE = "imagenet", "none"
SUFFIXES = (".h5", ".keras")
FEATURES = "features"  # the layer that ends a backbone
VGG_STAGES = ("block1_pool", "block2_pool", "block3_pool", "block4_pool")
RESNET_STAGES = ("pool1_pool", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out")


def as_it_is(x: Tensor) -> Tensor:
    """0 to 255: these networks scale pixels themselves."""
    return x


def to_unit(x: Tensor) -> Tensor:
    """-1 to 1."""
    from keras import layers

    return layers.Rescaling(1 / 127.5, offset=-1, dtype="float32")(x)


def to_blue_first(x: Tensor) -> Tensor:
    """Blue, green, red, each less its mean over ImageNet."""
    from keras import layers

    means = [-103.939, -116.779, -123.68]
    return layers.Rescaling(1.0, offset=means, dtype="float32")(x[..., ::-1])


def to_standard(x: Tensor) -> Tensor:
    """Each channel with mean 0 and deviation 1 over ImageNet."""
    from keras import layers

    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    scale = [1 / (255 * d) for d in deviations]
    offset = [-m / d for m, d in zip(means, deviations, strict=True)]
    return layers.Rescaling(scale, offset=offset, dtype="float32")(x)


@dataclass(frozen=True)
class Backbone:
    """One of `keras.applications`.

    preprocess: What `preprocess_input` of its module does, as layers that are saved with it.
    stages: The last layer of each stage but the last; a stage ends where the maps become smaller.
    smallest, default: Pixels of a side.
    alphas: The widths that there are, where one can be chosen.
    fits_h5: Whether Keras can read it again from its older format.
    """

    preprocess: Callable[[Tensor], Tensor]
    stages: tuple[str, ...]
    smallest: int = 32
    default: int = 224
    alphas: tuple[float, ...] = ()
    fits_h5: bool = True


BACKBONES = {
    "VGG16": Backbone(to_blue_first, VGG_STAGES, fits_h5=False),
    "VGG19": Backbone(to_blue_first, VGG_STAGES, fits_h5=False),
    "InceptionV3": Backbone(to_unit, ("mixed2", "mixed7"), 75, 299),
    "ResNet50": Backbone(to_blue_first, RESNET_STAGES, fits_h5=False),
    "ResNet50V2": Backbone(to_unit, RESNET_STAGES),
    "DenseNet121": Backbone(to_standard, ("pool1", "pool2_pool", "pool3_pool", "pool4_pool")),
    "MobileNet": Backbone(
        to_unit,
        tuple(f"conv_pw_{i}_relu" for i in (1, 3, 5, 11)),
        alphas=(0.25, 0.5, 0.75, 1.0),
    ),
    "MobileNetV2": Backbone(
        to_unit,
        ("expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add"),
        alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
    ),
    "EfficientNetV2B0": Backbone(
        as_it_is,
        ("block1a_project_activation", "block2b_add", "block3b_add", "block5e_add"),
    ),
    "ConvNeXtTiny": Backbone(
        as_it_is,
        tuple(f"convnext_tiny_stage_{i}_block_{last}_identity" for i, last in enumerate((2, 2, 8))),
        fits_h5=False,
    ),
}


def weights_digest(weights: str) -> str:
    """What tells one set of weights from another: `imagenet` and `none` are their own names.

    Raises: UserError if the file cannot be read, or has no name of a file of weights.
    """
    if weights in (IMAGENET, NONE):
        return weights
    path = Path(weights).expanduser()
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"--weights {weights}: expected imagenet, none, or a file that ends with .h5 or .keras"
        )
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise UserError(
            f"--weights {weights}: {err.strerror}; expected imagenet, none, or a file"
        ) from err


def backbone(name: str, weights: str, alpha: float, x: Tensor) -> Tensor:
    """(B, H, W, 1 or 3) pixels from 0 to 255 -> (B, d) features: maps of the last stage, averaged.

    Args:
      weights: `imagenet`, `none`, or a file of weights without the top; with any, no layer of it
        leaves anything out at random, so that what is frozen always gives the same.
      alpha: Width, where there are several.
    Raises: UserError if the weights do not fit; EnvironmentFailed if they cannot be downloaded.
    """
    import keras
    from keras import layers

    known = BACKBONES[name]
    if x.shape[-1] == 1:
        x = layers.Concatenate()([x, x, x])
    options: dict[str, Any] = {"alpha": alpha} if known.alphas else {}
    source = IMAGENET if weights == IMAGENET else None
    # MobileNet has weights for four sizes of images, and warns where it takes those for 224 pixels.
    warnings.filterwarnings("ignore", message="`input_shape` is undefined")
    try:
        body = getattr(keras.applications, name)(
            include_top=False, weights=source, input_tensor=known.preprocess(x), **options
        )
    except Exception as err:  # Keras raises a bare Exception where the download fails
        if source is None or type(err) not in (Exception, URLError):
            raise
        raise EnvironmentFailed(not_downloaded(name, first_line(err))) from err
    if weights not in (IMAGENET, NONE):
        load_weights(body, name, weights, alpha)
    if weights != NONE:
        for layer in body.layers:
            if isinstance(layer, layers.Dropout):
                layer.rate = 0.0
    return layers.GlobalAveragePooling2D(name=FEATURES)(body.output)


def not_downloaded(name: str, told: str) -> str:
    """What Keras has told of a download that failed, with what to do about it."""
    url = re.search(r"https?://[^\s:]+", told)
    if url is None:
        return f"--weights imagenet: {name}'s cannot be downloaded ({told}); give --weights FILE"
    file = url[0].rpartition("/")[2]
    reason = told[url.end() :].lstrip(": ").removeprefix("None -- ")  # for the HTTP code
    return (
        f"--weights imagenet: {name}'s cannot be downloaded from {url[0]} ({reason}); put {file} "
        "into ~/.keras/models (with KERAS_HOME into models/ there), or give it as --weights FILE"
    )


def load_weights(body: Any, name: str, weights: str, alpha: float) -> None:
    """Reads arrays from the file and nothing else, so that nothing in it is executed.

    Raises: UserError if they are not those of this backbone.
    """
    path = Path(weights).expanduser()
    try:
        body.load_weights(path)
    except Exception as err:  # Keras, h5py and zipfile raise nearly every type there is
        width = f" with --alpha {alpha:g}" if BACKBONES[name].alphas else ""
        raise UserError(
            f"--weights {path}: does not hold the weights of {name}{width} without its top "
            f"({first_line(err)[:200]}); name the --model that it belongs to, or another file"
        ) from err


def stages_of(model: Any, name: str) -> list[list[Any]]:
    """The backbone's layers, stage by stage from the bottom; none of a head by itself."""
    ends, stages = {*BACKBONES[name].stages}, [[]]  # type: ignore[var-annotated]
    for layer in model.layers:
        if layer.name == FEATURES:
            return stages
        stages[-1].append(layer)
        if layer.name in ends:
            stages.append([])
    return []


def split_at_features(model: Any) -> tuple[Any, Any]:
    """Two models of the same layers: images to features, and features to logits."""
    import keras

    names = [layer.name for layer in model.layers]
    first, layer = names.index(FEATURES) + 1, model.get_layer(FEATURES)
    body = keras.Model(model.input, layer.output)
    head = keras.Sequential([keras.Input(layer.output.shape[1:]), *model.layers[first:]])
    return body, head
