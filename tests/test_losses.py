"""What a training minimizes, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax

from pipeline.plan import AugmentConfig
from trainers.config import TrainConfig
from trainers.data import DataConfig
from trainers.fit import Optimizer, make_step
from trainers.models import ModelConfig, build

SMOOTHING, KERNELS, BIASES, ACTIVATIONS, RATE = 0.2, 0.003, 0.05, 0.02, 0.25


def test_a_step_heeds_label_smoothing_and_the_penalties_of_kernels_biases_and_activations() -> None:
    import keras
    import tensorflow as tf

    options = ModelConfig("textbook", 0.0, KERNELS, BIASES, ACTIVATIONS, batch_norm=False)
    data = DataConfig(AugmentConfig("unused", Path()))
    config = TrainConfig(data, options, Path(), label_smoothing=SMOOTHING)
    model, rng = build(options, (4, 4, 1), 3, seed=0), np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:  # biases begin as zeros
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))
    images = rng.integers(0, 256, (6, 4, 4, 1), np.uint8)
    labels = np.array([0, 1, 2, 2, 1, 0])
    *_, hidden, last = [layer for layer in model.layers if layer.weights]
    kernels, biases = ([getattr(x, name).numpy() for x in model.layers if x.weights]
                       for name in ("kernel", "bias"))  # fmt: skip
    relus = [layer.output for layer in model.layers if isinstance(layer, keras.layers.Activation)]
    assert len(relus) == 5
    *activations, logits = keras.Model(model.input, [*relus, model.output])(images)

    want = np.full((6, 3), SMOOTHING / 3)
    want[np.arange(6), labels] += 1 - SMOOTHING
    found = softmax(logits.numpy().astype(float), 1)
    terms = [
        -(want * np.log(found)).sum() / 6,
        KERNELS * sum((kernel**2).sum() for kernel in kernels),
        BIASES * sum((bias**2).sum() for bias in biases),
        ACTIVATIONS * sum(np.sum(a) for a in activations) / 6,  # Keras': the mean over a batch
    ]
    variables = model.trainable_variables
    descent = Optimizer(lambda _: keras.optimizers.SGD(RATE), variables, [1.0] * len(variables))
    loss, _ = make_step(config, model, descent, 3)(tf.constant(images), tf.constant(labels))
    assert min(terms) > 0.05
    assert_allclose(loss, sum(terms), rtol=1e-5)

    # Back through the last layer and the activation before it.
    of_logits = (found - want) / 6
    top = activations[-1].numpy()
    of_kernel = top.T @ of_logits + 2 * KERNELS * kernels[-1]
    of_hidden = (of_logits @ kernels[-1].T + ACTIVATIONS / 6) * (top > 0)
    of_bias = of_hidden.sum(0) + 2 * BIASES * biases[-2]
    assert_allclose(last.kernel, kernels[-1] - RATE * of_kernel, rtol=1e-3, atol=1e-5)
    assert_allclose(hidden.bias, biases[-2] - RATE * of_bias, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_logits_of_an_untrained_cnn_are_near_one_another(seed: int) -> None:
    import keras

    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (64, 28, 28, 1), np.uint8), rng.integers(0, 10, 64)
    model = build(ModelConfig(batch_norm=True), (28, 28, 1), 10, seed)
    logits = model(images, training=True)
    loss = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    assert np.mean(loss) < 1.2 * np.log(10)  # of equal logits it is the logarithm
