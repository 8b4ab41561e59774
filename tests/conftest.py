"""What holds for all tests."""

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests.running import run
from tests.small_backbones import SIDE, colours

# How long an example takes says nothing about what it proves.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("colours") / "photos")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all processes of the tests share: the first that wants it makes it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder inside that of them all
        folder = folder.parent
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).exists():
            made = factory.mktemp(name)
            make(made)
            made.rename(folder / name)
    return folder / name


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small trainings, to be looked at: `one`, and `two`, an ensemble."""

    def make(folder: Path) -> None:
        small = ("train", "--limit", 200, "--epochs", 1, "--threads", 1, "--model", "textbook")
        run(*small, "--policy", "none", "--dropout", 0.1, "--quiet", "--out", folder / "one")
        run(*small, "--ensemble", 2, "--save-h5", "--quiet", "--out", folder / "two")

    return made_once(tmp_path_factory, "runs", make)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for ImageNet's: random kernels, and batch statistics that fit them."""
    name = "mobilenet.weights.h5"

    def make(folder: Path) -> None:
        import keras

        keras.utils.set_random_seed(5)
        body = keras.applications.MobileNet(
            include_top=False, weights=None, alpha=0.25, input_shape=(SIDE, SIDE, 3)
        )
        images = np.random.default_rng(0).uniform(-1, 1, (32, SIDE, SIDE, 3)).astype(np.float32)
        images += np.linspace(-1, 1, 32)[:, None, None, None]
        for layer in body.layers:
            layer.momentum = 0.0  # one pass is enough
        body(images, training=True)
        body.save_weights(folder / name)

    return made_once(tmp_path_factory, "weights", make) / name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)
