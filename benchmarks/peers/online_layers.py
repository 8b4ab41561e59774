"""How many images a second others augment in memory: `keras`, `generator`, on images of a side.

Prints the rate of the third pass over the images; two cores, batches of 256.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from keras_policy import generator, layers_dataset, tf

BATCH = 256


def by_layers(images: np.ndarray) -> float:
    dataset = layers_dataset(images, BATCH).prefetch(tf.data.AUTOTUNE)
    return rate(lambda: iter(dataset), len(images))


def by_generator(images: np.ndarray) -> float:
    flow = generator().flow(images, batch_size=BATCH)
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
