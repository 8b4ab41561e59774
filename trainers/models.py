"""Networks by name, with their regularizers; pixels are scaled inside, augmentation never is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets.errors import UserError

Tensor = Any
WIDTHS = (64, 256, 256)  # of the stages of `residual`


@dataclass(frozen=True)
class ModelConfig:
    """A network's options.

    dropout: Share of activations that is left out before the last layer, and in `textbook` half of
      it after each pair of convolutions. None: the network's own, as with the other options.
    weight_decay, bias_decay: L2 of kernels and biases. activity_l1: L1 of activations.
    """

    name: str = "cnn"
    dropout: float | None = None
    weight_decay: float | None = None
    bias_decay: float = 0.0
    activity_l1: float = 0.0
    batch_norm: bool | None = None


@dataclass(frozen=True)
class Recipe:
    """How a network is built and what it is trained with where nothing else is asked for."""

    build: Callable[[Any, ModelConfig], Any]
    smallest: int  # pixels of a side
    optimizer: str
    lr: float
    epochs: int
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


def normalized(x: Tensor, config: ModelConfig) -> Tensor:
    """Batch normalization where wanted, then the activation."""
    import tensorflow as tf
    from keras import layers

    if config.batch_norm:
        # Of several replicas Keras would keep the statistics of the first alone.
        together = tf.distribute.get_strategy().num_replicas_in_sync > 1
        # The default, 0.99, would still remember the first epochs of a small data set at the end.
        x = layers.BatchNormalization(momentum=0.9, synchronized=together)(x)
    return activation(x, config)


def textbook(x: Tensor, config: ModelConfig) -> Tensor:
    """Conv32-Conv32-Pool-Drop, Conv64-Conv64-Pool-Drop, Dense512-Drop: the classic small network.

    Source: F. Chollet, cifar10_cnn.py of the Keras examples, 2015.
    """
    from keras import layers

    rate = config.dropout or 0.0
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
    Source: He et al., "Deep residual learning for image recognition", CVPR 2016; depth, widths and
    order of K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024.
    """
    from keras import layers

    x = activation(convolution(x, 24, config, size=2), config)
    for filters in WIDTHS:
        x = normalized(layers.MaxPooling2D()(convolution(x, filters, config)), config)
        x = layers.Add()([x, normalized(convolution(x, filters, config), config)])
    x = layers.GlobalMaxPooling2D()(x)
    return layers.Dropout(config.dropout or 0.0)(x)


MODELS = {
    "cnn": Recipe(
        build=residual,
        smallest=8,
        optimizer="sgd",
        lr=0.2,
        epochs=15,
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
        dropout=0.5,
        weight_decay=0.0,
        batch_norm=False,
        label_smoothing=0.0,
        averaged=0.0,
    ),
}


def build(
    config: ModelConfig, shape: tuple[int, int, int], n_classes: int, precision: str = "float32"
) -> Any:
    """A Keras model from (B, H, W, C) uint8 images to (B, n_classes) float32 logits.

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
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = recipe.build(x, config)
    outputs = keras.layers.Dense(n_classes, dtype="float32", **penalties(config))(x)
    return keras.Model(inputs, outputs, name=config.name)
