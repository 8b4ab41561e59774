"""What holds for all tests."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests.small_backbones import SIDE, colours

# How long an example takes says nothing about what it proves.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("colours") / "photos")


@pytest.fixture(scope="session")
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
