"""Photos and a small backbone that anything learns from in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trainers.models import ModelConfig, build
from trainers.transfer import TransferConfig

SIDE = 32
THREADS = ("--threads", 2)
NETWORK = ("--model", "MobileNet", "--alpha", 0.25, "--image-size", SIDE, *THREADS)


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
    config = ModelConfig(name, weight_decay=1e-4, transfer=TransferConfig(**transfer))
    return build(config, shape, 3, 0)
