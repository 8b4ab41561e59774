"""How many images a second a stream gives once it runs: one measure for us and for the peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PASSES = 4  # that are timed, after one that pays for what is done once


def best_rate(one_pass: Callable[[], object], n: int) -> float:
    """n images over the seconds of the quickest pass."""
    best = 0.0
    for i in range(1 + PASSES):
        started = time.perf_counter()
        one_pass()
        best = max(best, n / (time.perf_counter() - started)) if i else 0.0
    return best


def in_graph(dataset: Any, steps: int) -> Callable[[], object]:
    """The next `steps` batches of a `tf.data.Dataset` of `1 + PASSES` times as many, taken as
    `Model.fit` takes them: by a graph, from one iterator for all passes."""
    import tensorflow as tf

    iterator = iter(dataset)

    @tf.function
    def one_pass() -> None:
        for _ in tf.range(steps):
            next(iterator)

    return one_pass
