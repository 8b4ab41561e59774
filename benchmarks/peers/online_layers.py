"""How many images a second others augment in memory: `keras`, `generator`, on images of a side.

Prints the rate of the third pass over the images; two cores, batches of 256.
"""

from __future__ import annotations

import os
import sys
import time

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import keras
import numpy as np
import tensorflow as tf

BATCH = 256


def by_layers(images: np.ndarray) -> float:
    layers = keras.Sequential(
        [
            keras.layers.RandomTranslation(0.1, 0.1, fill_mode="reflect"),
            keras.layers.RandomRotation(15 / 360, fill_mode="reflect"),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomBrightness(0.2, value_range=(0, 255)),
        ]
    )
    dataset = (
        tf.data.Dataset.from_tensor_slices(images)
        .batch(BATCH)
        .map(lambda x: layers(tf.cast(x, tf.float32), training=True), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    return rate(lambda: iter(dataset), len(images))


def by_generator(images: np.ndarray) -> float:
    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        rotation_range=15,
        width_shift_range=0.1,
        height_shift_range=0.1,
        horizontal_flip=True,
        brightness_range=(0.8, 1.2),
        fill_mode="reflect",
    )
    flow = generator.flow(images, batch_size=BATCH)
    return rate(lambda: (flow[i] for i in range(len(flow))), len(images))


def rate(batches, n: int) -> float:
    for _ in range(3):
        started = time.perf_counter()
        for _ in batches():
            pass
        seconds = time.perf_counter() - started
    return n / seconds


if __name__ == "__main__":
    name, side, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)
    print({"keras": by_layers, "generator": by_generator}[name](images))
