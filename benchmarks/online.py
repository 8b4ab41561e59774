"""The online path against others that augment the same images in memory, in images a second.

    python benchmarks/online.py [DATA_DIR]

Two cores; each ratio is our rate over a peer's, from the same run. The bare kernel is the same
calls from the same number of threads, without `tf.data`; shards are read from memory, raw, where
DATA_DIR holds CIFAR-10.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measure import PEERS_PYTHON, PIPELINE, ROOT, scratch_folder, seconds

from datasets.source import Samples
from pipeline.online import OnlineImages, augmented
from pipeline.pixels import Pixels
from pipeline.policy import parse_policy
from pipeline.shard_images import ShardImages
from pipeline.stream import Stream, as_dataset, calls_in_flight

BATCH = 256
ROUNDS = 3
PEER = str(ROOT / "benchmarks" / "peers" / "online_layers.py")
SIZES = {32: 20_000, 224: 600}  # pixels a side: images
PEERS = ("keras", "generator")


def random_stream(side: int, n: int) -> Stream:
    shape = (side, side, 3)
    stored = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    samples = Samples([str(i) for i in range(n)], np.zeros(n, np.int64), [None] * n)
    pixels = Pixels(None, samples, None, shape, stored)  # type: ignore[arg-type]  # all is stored
    images = OnlineImages(parse_policy("standard"), 0, pixels, ("a",), 8, np.arange(n), "")
    return Stream(images, images.usable, BATCH, order_seed=0)


def best_rate(batches, n: int) -> float:
    """Of three passes, after one that pays for what is done once."""
    best = 0.0
    for i in range(ROUNDS + 1):
        started = time.perf_counter()
        for _ in batches(i):
            pass
        best = max(best, n / (time.perf_counter() - started)) if i else 0.0
    return best


def by_tf_data(stream: Stream, engine: str) -> float:
    steps = stream.steps_per_epoch
    dataset = augmented(stream, 0, steps, engine)
    return best_rate(lambda i: iter(dataset), stream.n_samples)


def by_bare_kernel(stream: Stream) -> float:
    with ThreadPoolExecutor(calls_in_flight(stream)) as pool:
        steps = range(stream.steps_per_epoch)
        return best_rate(lambda i: pool.map(stream.batch, steps), stream.n_samples)


def from_shards(folder: Path, data_dir: Path) -> float:
    out = folder / "out"
    command = [PIPELINE, "augment", "--dataset", "cifar10", "--data-dir", str(data_dir), "--quiet"]
    seconds([*command, "--copies", "4", "--no-eval-splits", "--limit", "20000", "--out", str(out)])
    images = ShardImages(out, "train")
    stream = Stream(images, images.usable, BATCH, order_seed=0)
    steps = stream.steps_per_epoch
    return best_rate(
        lambda i: iter(as_dataset(stream, i * steps, (i + 1) * steps)), stream.n_samples
    )


def main() -> None:
    for side, n in SIZES.items():
        stream = random_stream(side, n)
        ours, bare = by_tf_data(stream, "opencv"), by_bare_kernel(stream)
        print(
            f"{side} px: online {ours:,.0f} images/s, bare kernel {bare:,.0f}: {ours / bare:.2f}x"
        )
        graph = by_tf_data(stream, "tensorflow")
        print(f"  --engine tensorflow {graph:,.0f} images/s")
        for name in PEERS:
            rate = float(seconds([PEERS_PYTHON, PEER, name, str(side), str(n)])[1])
            print(f"  {name} {rate:,.0f} images/s: {ours / rate:.1f}x", flush=True)
    if len(sys.argv) > 1:
        with scratch_folder() as folder:
            print(f"32 px from raw shards {from_shards(folder, Path(sys.argv[1])):,.0f} images/s")


if __name__ == "__main__":
    main()
