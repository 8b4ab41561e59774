"""What the layers of a model hold and give: kernels, feature maps, and what speaks for a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from typing import Any

import numpy as np

from trainers.evaluate import softmax_of

Model = Any  # Keras has no types of its own that a checker could use
Layer = Any
Tensor = Any
FOLLOWING = ("BatchNormalization", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU")
FRAMING = ("ZeroPadding2D", "Cropping2D")  # places are elsewhere in what these give


def named_layers(model: Model, inside: str = "") -> dict[str, Layer]:
    """Every layer by its name, in the model's order; those of a model inside as `outer/inner`."""
    import keras

    found: dict[str, Layer] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found |= named_layers(layer, f"{inside}{layer.name}/")
        elif not isinstance(layer, keras.layers.InputLayer):
            found[inside + layer.name] = layer
    return found


@dataclass(frozen=True)
class Network:
    """A model with its layers by name and the shape of what each gives for one image.

    shape: (height, width, channels) of the images. n_classes: 0 where it is no classifier.
    """

    model: Any
    shape: tuple[int, int, int]
    layers: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    n_classes: int

    @property
    def with_maps(self) -> list[str]:
        """Names of the layers that give maps, in their order."""
        return [name for name, shape in self.shapes.items() if len(shape) == 3]

    @property
    def with_kernels(self) -> list[str]:
        """Names of the convolutions, in their order."""
        return [name for name, layer in self.layers.items() if is_convolution(layer)]

    @property
    def telling(self) -> list[str]:
        """The first and the last layer whose maps tell most.

        The first: what is left of the first convolution after normalization and activation, where
        these follow. The last: where places can be told apart still, and preferably no bare sums,
        which a convolution without an activation gives.
        """
        kinds = {name: type(self.layers[name]).__name__ for name in self.with_maps}
        names = [name for name, kind in kinds.items() if kind not in FRAMING]
        kernels = self.with_kernels
        learnt = list(dropwhile(lambda name: name not in kernels, names)) or names
        wide = [name for name in learnt if max(self.shapes[name][:2]) > 1] or learnt
        last = [name for name in wide if not is_bare(self.layers[name])] or wide
        first = learnt[:1] + list(takewhile(lambda name: kinds[name] in FOLLOWING, learnt[1:]))
        return list(dict.fromkeys(first[-1:] + last[-1:]))


@contextmanager
def attribute(layer: Layer, name: str, value: Any) -> Iterator[None]:
    """The layer with another attribute for a while. Keras' own way of setting one keeps track of
    it, and refuses once a layer is built."""
    own: dict[str, Any] = layer.__dict__
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


def heard(layer: Layer, hear: Callable[[Tensor, Tensor], object]) -> Any:
    """A context in which `hear` is told what the layer takes and gives, each time that it runs.

    A model with another output would reach neither into a model inside nor, where weights are
    frozen, be of use to a gradient tape: that keeps only what depends on something watched.
    """
    run = layer.call

    def call(*args: Any, **kwargs: Any) -> Tensor:
        out = run(*args, **kwargs)
        hear(next(iter([*args, *kwargs.values()])), out)
        return out

    return attribute(layer, "call", call)


def shapes_of(
    model: Model, layers: dict[str, Layer], shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """The shape of what each layer gives for one image: (H, W, C) for maps, (n,) for a vector.
    Layers that do not run, or give several tensors, are not in it."""
    found: dict[str, tuple[int, ...]] = {}

    def noted(name: str) -> Callable[[Tensor, Tensor], None]:
        def note(_: Tensor, out: Tensor) -> None:
            if hasattr(out, "shape"):
                found[name] = tuple(out.shape[1:])

        return note

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(heard(layer, noted(name)))
        model(np.zeros((1, *shape), np.uint8))
    return {name: found[name] for name in layers if name in found}


def is_convolution(layer: Layer) -> bool:
    """Whether it is one over images."""
    from keras import layers

    kinds = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Conv2DTranspose)
    return isinstance(layer, kinds)


def is_bare(layer: Layer) -> bool:
    """Whether it is a convolution whose sums go on as they are."""
    return is_convolution(layer) and getattr(layer.activation, "__name__", "") == "linear"


def kernels_of(layer: Layer) -> np.ndarray:
    """(n, h, w, channels) float32 kernels of a convolution. Of a depthwise or separable one each
    kernel is for one channel."""
    from keras import layers

    if isinstance(layer, layers.DepthwiseConv2D | layers.SeparableConv2D):
        is_depthwise = isinstance(layer, layers.DepthwiseConv2D)
        kernels = as_array(layer.kernel if is_depthwise else layer.depthwise_kernel)
        # (h, w, channels, kernels of each)
        return kernels.reshape(*kernels.shape[:2], -1).transpose(2, 0, 1)[..., None]
    is_transposed = isinstance(layer, layers.Conv2DTranspose)  # (h, w, out, in)
    return as_array(layer.kernel).transpose((2, 0, 1, 3) if is_transposed else (3, 0, 1, 2))


def as_array(tensor: Tensor) -> np.ndarray:
    import tensorflow as tf

    return tf.cast(tensor, tf.float32).numpy()


def colours_seen(network: Network, layer: Layer) -> list[int] | None:
    """Which of the layer's three input channels are the image's red, green and blue; None if they
    are not these. (Older networks of ImageNet turn them round: blue, green, red.)"""
    if network.shape[2] != 3:
        return None
    images = np.zeros((4, *network.shape), np.uint8)
    images[[1, 2, 3], ..., [0, 1, 2]] = 255
    taken = [given(network.model, layer, image)[0] for image in images]
    levels = [as_array(inputs).mean((0, 1, 2)) for inputs in taken]
    black, *colours = levels
    changes = np.abs(np.stack(colours) - black)
    order = changes.argmax(1)
    is_alone = changes.max(1) > 0.99 * changes.sum(1)
    return order.tolist() if sorted(order) == [0, 1, 2] and is_alone.all() else None


def given(model: Model, layer: Layer, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """What the layer takes and gives, when it runs last, for one (H, W, C) uint8 image."""
    found: list[tuple[Tensor, Tensor]] = []
    with heard(layer, lambda inputs, out: found.append((inputs, out))):
        model(image[None])
    return found[-1]


def feature_maps(model: Model, layer: Layer, images: np.ndarray) -> np.ndarray:
    """(B, h, w, channels) float32: what the layer gives for (B, H, W, C) uint8 images."""
    # One by one: the early maps of a batch take gigabytes.
    return np.concatenate([as_array(given(model, layer, image)[1]) for image in images])


@contextmanager
def giving_logits(model: Model) -> Iterator[None]:
    """The model without the softmax that it may end with."""
    import keras

    last = softmax_of(model)
    if last is None:
        yield
    elif hasattr(last, "activation"):
        with attribute(last, "activation", keras.activations.linear):
            yield
    else:
        with attribute(last, "call", lambda inputs, *args, **kwargs: inputs):
            yield


def grad_cam(
    model: Model, layer: Layer, images: np.ndarray, chosen: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(B, h, w) float32 heat of a class, 0 to 1 in each image, and (B, n_classes) float32
    probabilities: the maps of the layer, each times the mean gradient of the class's logit on it,
    summed. What is negative speaks for other classes and is 0.

    Args:
      chosen: The class; None for the likeliest of each image.
    Source: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
      localization", ICCV 2017.
    """
    with giving_logits(model):
        found = [grad_cam_of(model, layer, image, chosen) for image in images]
    heats, probabilities = zip(*found, strict=True)
    return np.stack(heats), np.stack(probabilities)


def grad_cam_of(
    model: Model, layer: Layer, image: np.ndarray, chosen: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """`grad_cam` of one (H, W, C) uint8 image, by a model that gives logits."""
    import tensorflow as tf

    outs: list[Tensor] = []
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def watch(_: Tensor, out: Tensor) -> None:
            tape.watch(out)
            outs.append(out)

        with heard(layer, watch):
            logits = tf.cast(model(image[None])[0], tf.float32)
        score = logits[int(tf.argmax(logits)) if chosen is None else chosen]
    slopes = tape.gradient(score, outs[-1], unconnected_gradients="zero")
    weights = as_array(slopes)[0].mean((0, 1))
    heat = np.maximum(as_array(outs[-1])[0] @ weights, 0)
    return heat / (heat.max() or 1), tf.nn.softmax(logits).numpy()
