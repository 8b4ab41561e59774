"""The policy as Keras offers it: preprocessing layers, and `ImageDataGenerator`."""

from __future__ import annotations

import os
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import keras
import numpy as np
import tensorflow as tf


def layers_dataset(images: np.ndarray, batch: int) -> tf.data.Dataset:
    """Batches of (B, H, W, 3) float32, augmented in parallel."""
    layers = keras.Sequential(
        [
            keras.layers.RandomTranslation(0.1, 0.1, fill_mode="reflect"),
            keras.layers.RandomRotation(15 / 360, fill_mode="reflect"),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomBrightness(0.2, value_range=(0, 255)),
        ]
    )
    return (
        tf.data.Dataset.from_tensor_slices(images)
        .batch(batch)
        .map(lambda x: layers(tf.cast(x, tf.float32), training=True), tf.data.AUTOTUNE)
    )


def generator() -> Any:
    return tf.keras.preprocessing.image.ImageDataGenerator(
        rotation_range=15,
        width_shift_range=0.1,
        height_shift_range=0.1,
        horizontal_flip=True,
        brightness_range=(0.8, 1.2),
        fill_mode="reflect",
    )
