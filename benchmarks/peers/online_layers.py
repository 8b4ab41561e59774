"""How many images a second others augment in memory: `keras`, `generator`, on images of a side.

Prints the best rate of some passes over the images; two cores, batches of 256.
"""

from __future__ import annotations

import sys

import numpy as np
from keras_policy import generator, layers_dataset, tf
from rates import best_rate, in_graph

BATCH = 256


def by_layers(images: np.ndarray) -> float:
    dataset = layers_dataset(images, BATCH).repeat().prefetch(tf.data.AUTOTUNE)
    return best_rate(in_graph(dataset, -(-len(images) // BATCH)), len(images))


def by_generator(images: np.ndarray) -> float:
    flow = generator().flow(images, batch_size=BATCH)

    def one_pass() -> None:
        for i in range(len(flow)):
            flow[i]

    return best_rate(one_pass, len(images))


if __name__ == "__main__":
    name, side, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)
    print({"keras": by_layers, "generator": by_generator}[name](images))
