"""Networks by name, with their regularizers; pixels are scaled inside, augmentation never is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datasets.errors import UserError
from trainers.backbones import BACKBONES, FEATURES, NONE, backbone
from trainers.transfer import TransferConfig

Tensor = Any
WIDTHS = (64, 256, 256)  # of the stages of `residual`
HEAD_SCALE = 1 / 8  # of its features


@dataclass(frozen=True)
class ModelConfig:
    """A network's options.

    dropout: Share of activations that is left out before the last layer, and in `textbook` half of
      it after each pair of convolutions. None: the network's own, as with the other options.
    weight_decay, bias_decay: L2 of kernels and biases. activity_l1: L1 of activations; of a
      backbone, of its features.
    transfer: Of a backbone alone.
    """

    name: str = "cnn"
    dropout: float | None = None
    weight_decay: float | None = None
    bias_decay: float = 0.0
    activity_l1: float = 0.0
    batch_norm: bool | None = None
    transfer: TransferConfig | None = None


@dataclass(frozen=True)
class Recipe:
    """How a network is built and what it is trained with where nothing else is asked for."""

    build: Callable[[Any, ModelConfig], Any]
    smallest: int  # pixels of a side
    optimizer: str
    lr: float
    epochs: int
    batch_size: int
    dropout: float
    weight_decay: float
    batch_norm: bool
    label_smoothing: float
    averaged: float  # share of all steps over which weights are averaged


def activation(x: Tensor, config: ModelConfig) -> Tensor:
    """ReLU, with a penalty on what it lets through where one is wanted."""
    from keras import layers, regularizers

    penalty = regularizers.L1(config.activity_l1) if config.activity_l1 else None
    return layers.Activation("relu", activity_regularizer=penalty)(x)


def penalties(config: ModelConfig) -> dict[str, Any]:
    """The L2 options of a layer with a kernel."""
    from keras import regularizers

    return {
        "kernel_regularizer": regularizers.L2(config.weight_decay) if config.weight_decay else None,
        "bias_regularizer": regularizers.L2(config.bias_decay) if config.bias_decay else None,
    }


def convolution(x: Tensor, filters: int, config: ModelConfig, size: int = 3) -> Tensor:
    """(B, H, W, C) -> (B, H, W, filters), without an activation; no bias before normalization."""
    from keras import layers

    options = {"use_bias": not config.batch_norm, "kernel_initializer": "he_normal"}
    return layers.Conv2D(filters, size, padding="same", **options, **penalties(config))(x)


def batch_normalization(x: Tensor) -> Tensor:
    """Over all replicas, of which Keras would keep the statistics of the first alone."""
    import tensorflow as tf
    from keras import layers

    together = tf.distribute.get_strategy().num_replicas_in_sync > 1
    # The default, 0.99, would still remember the first epochs of a small data set at the end.
    return layers.BatchNormalization(momentum=0.9, synchronized=together)(x)


def normalized(x: Tensor, config: ModelConfig) -> Tensor:
    """Batch normalization where wanted, then the activation."""
    return activation(batch_normalization(x) if config.batch_norm else x, config)


def scaled(x: Tensor) -> Tensor:
    """Pixels from 0 to 255 -> -1 to 1."""
    from keras import layers

    return layers.Rescaling(1 / 127.5, offset=-1)(x)


def textbook(x: Tensor, config: ModelConfig) -> Tensor:
    """Conv32-Conv32-Pool-Drop, Conv64-Conv64-Pool-Drop, Dense512-Drop: the classic small network.

    Source: F. Chollet, cifar10_cnn.py of the Keras examples, 2015.
    """
    from keras import layers

    rate, x = config.dropout or 0.0, scaled(x)
    for filters in (32, 64):
        for _ in range(2):
            x = normalized(convolution(x, filters, config), config)
        x = layers.Dropout(rate / 2)(layers.MaxPooling2D()(x))
    x = layers.Dense(512, **penalties(config))(layers.Flatten()(x))
    return layers.Dropout(rate)(activation(x, config))


def residual(x: Tensor, config: ModelConfig) -> Tensor:
    """A stem and three stages, each a convolution, a pooling and a residual convolution.

    Pooling comes before normalization and activation: on a CPU these take as long as convolutions,
    and so they see a quarter of the pixels.
    Source: He et al., "Deep residual learning for image recognition", CVPR 2016; depth, widths,
    order and smaller logits of K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024.
    """
    from keras import layers

    x = activation(convolution(scaled(x), 24, config, size=2), config)
    for filters in WIDTHS:
        x = normalized(layers.MaxPooling2D()(convolution(x, filters, config)), config)
        x = layers.Add()([x, normalized(convolution(x, filters, config), config)])
    # The largest of each map, and of a sum: without this the first logits lie so far apart that the
    # first hundred steps do no more than bring them together (docs/decisions.md).
    x = layers.Rescaling(HEAD_SCALE)(layers.GlobalMaxPooling2D()(x))
    return layers.Dropout(config.dropout or 0.0)(x)


def transferred(x: Tensor, config: ModelConfig) -> Tensor:
    """The features of a backbone, normalized if wanted."""
    from keras import layers

    transfer = config.transfer or TransferConfig()
    x = backbone(config.name, transfer.weights, transfer.alpha, x)
    if config.activity_l1:
        x = layers.ActivityRegularization(l1=config.activity_l1)(x)
    if config.batch_norm:
        x = batch_normalization(x)
    return layers.Dropout(config.dropout or 0.0)(x)


MODELS = {
    "cnn": Recipe(
        build=residual,
        smallest=8,
        optimizer="sgd",
        lr=0.2,
        epochs=15,
        batch_size=128,
        dropout=0.0,
        weight_decay=5e-4,
        batch_norm=True,
        label_smoothing=0.1,
        averaged=0.01,
    ),
    "textbook": Recipe(
        build=textbook,
        smallest=4,
        optimizer="adam",
        lr=1e-3,
        epochs=40,
        batch_size=128,
        dropout=0.5,
        weight_decay=0.0,
        batch_norm=False,
        label_smoothing=0.0,
        averaged=0.0,
    ),
} | {
    name: Recipe(
        build=transferred,
        smallest=known.smallest,
        optimizer="adam",
        lr=3e-3,
        epochs=20,
        batch_size=32,
        dropout=0.2,
        weight_decay=0.0,
        batch_norm=False,
        label_smoothing=0.1,
        averaged=0.0,
    )
    for name, known in BACKBONES.items()
}


def build(
    config: ModelConfig,
    shape: tuple[int, ...],
    n_classes: int,
    seed: int,
    precision: str = "float32",
) -> Any:
    """A Keras model from (B, H, W, C) uint8 images to (B, n_classes) float32 logits.

    Args:
      seed: Of the initial weights and of dropout, which depend on nothing else.
      precision: Keras' name of the types of weights and arithmetic, such as "mixed_bfloat16".
    Raises: UserError if the images are too small for it.
    """
    import keras

    recipe = MODELS[config.name]
    if min(shape[:2]) < recipe.smallest:
        raise UserError(
            f"--model {config.name}: needs images of at least {recipe.smallest} pixels a side, got "
            f"{shape[1]}x{shape[0]}; give a larger --image-size"
        )
    keras.config.set_dtype_policy(precision)
    inputs = keras.Input(shape, dtype="uint8")
    x = recipe.build(inputs, config)
    outputs = keras.layers.Dense(n_classes, dtype="float32", **penalties(config))(x)
    model = keras.Model(inputs, outputs, name=config.name)
    is_backbone = config.name in BACKBONES
    if is_backbone:
        penalize(model, config)
    is_pretrained = is_backbone and (config.transfer or TransferConfig()).weights != NONE
    draw_weights(model, seed, after=FEATURES if is_pretrained else None)
    return model


def draw_weights(model: Any, seed: int, after: str | None) -> None:
    """Draws the random weights of a model, or of its layers after the one of that name, and the
    states of dropout, each from the seed and its number alone.

    Keras takes a seed for each from Python's generator as layers are made, where other threads may
    draw too (Dask's do), and layers without weights: a network without dropout would begin with
    other weights.
    """
    from keras import layers

    weights, states = random.Random(f"weights {seed}"), random.Random(f"dropout {seed}")
    is_reached = after is None
    for layer in layers_of(model):
        is_reached = is_reached or layer.name == after
        if isinstance(layer, layers.Dropout):
            state = [states.randrange(2**31), 0]
            if hasattr(layer, "seed_generator"):
                layer.seed_generator.state.assign(state)
        depthwise = getattr(layer, "depthwise_initializer", None)
        initializer = depthwise or getattr(layer, "kernel_initializer", None)
        if initializer is None or not is_reached:
            continue
        options = initializer.get_config() | {"seed": weights.randrange(2**31)}
        kernel = layer.kernel
        kernel.assign(type(initializer).from_config(options)(kernel.shape, dtype=kernel.dtype))


def layers_of(model: Any) -> Iterator[Any]:
    """All layers, those of models inside too."""
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from layers_of(layer)


def penalize(model: Any, config: ModelConfig) -> None:
    """L2 of a backbone's kernels and biases; Keras heeds it of those that learn."""
    from keras import regularizers

    for kind, rate in (("kernel", config.weight_decay), ("bias", config.bias_decay)):
        for layer in layers_of(model):  # ConvNeXt has models inside
            if layer.name == FEATURES:
                break
            variable = getattr(layer, kind, None)
            if rate and variable is not None:
                variable.regularizer = regularizers.L2(rate)
