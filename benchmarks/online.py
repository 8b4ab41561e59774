"""The online path against others that augment the same images, in images a second.

    python benchmarks/online.py [--data-dir DIR] [--photos FOLDER]

Two cores; each ratio is our rate over a peer's, from the same run: the best of some passes by one
iterator, which for `tf.data` is asked by a graph, as `Model.fit` asks. The bare kernel is the same
calls from the same number of threads, without `tf.data`. Shards are read from memory, raw, where
DIR holds CIFAR-10. Photos are read from their files, decoded, resized and augmented in every epoch.
"""

from __future__ import annotations

import argparse
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from measure import PEERS_PYTHON, PIPELINE, ROOT, scratch_folder, seconds
from peers.rates import PASSES, best_rate, in_graph

from datasets.fingerprint import Scan
from datasets.source import Samples
from pipeline.online import OnlineImages, augmented, open_images
from pipeline.pixels import Pixels
from pipeline.plan import AugmentConfig
from pipeline.policy import parse_policy
from pipeline.report import Report
from pipeline.shard_images import ShardImages
from pipeline.stream import Stream, calls_in_flight

BATCH = 256
PEERS = ROOT / "benchmarks" / "peers"
SIZES = {32: 20_000, 224: 2_560}  # pixels a side: images
CLAIMS = {
    32: {"keras": 5, "generator": 25, "dali": 4},
    224: {"keras": 10, "generator": 20, "dali": 5},
}
BARE, SHARDS, DISK = 0.85, 1.5, 2.5


def random_stream(side: int, n: int) -> Stream:
    cv2.setNumThreads(1)  # as `open_images` does
    shape = (side, side, 3)
    stored = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    samples = Samples([str(i) for i in range(n)], np.zeros(n, np.int64), [None] * n)
    scan = Scan([b""] * n, np.zeros((n, 3), np.int32))
    pixels = Pixels(None, samples, scan, None, shape, stored, True)  # type: ignore[arg-type]
    images = OnlineImages(parse_policy("standard"), 0, pixels, ("a",), 8, np.arange(n), "")
    return Stream(images, images.usable, BATCH, order_seed=0)


def by_tf_data(stream: Stream, engine: str) -> float:
    """Of one iterator over all passes, as a training run has it."""
    steps = stream.steps_per_epoch
    dataset = augmented(stream, 0, (1 + PASSES) * steps, engine)
    return best_rate(in_graph(dataset, steps), stream.n_samples)


def by_bare_kernel(stream: Stream) -> float:
    with ThreadPoolExecutor(calls_in_flight(stream)) as pool:
        groups = range(stream.groups_per_epoch)
        return best_rate(lambda: deque(pool.map(stream.group, groups), 0), stream.n_samples)


def from_shards(folder: Path, data_dir: Path) -> float:
    out = folder / "out"
    command = [PIPELINE, "augment", "--dataset", "cifar10", "--data-dir", str(data_dir), "--quiet"]
    seconds([*command, "--copies", "4", "--no-eval-splits", "--limit", "20000", "--out", str(out)])
    images = ShardImages(out, "train")
    return by_tf_data(Stream(images, images.usable, BATCH, order_seed=0), "opencv")


def from_disk(photos: Path) -> float:
    report = Report(quiet=True)
    config = AugmentConfig(
        str(photos), Path(), policy="standard", split="train", image_size=(224, 224)
    )
    images = open_images(config, "none", report)
    return by_tf_data(Stream(images, images.usable, 32, order_seed=0), "opencv")


def tell(name: str, rate: float, ratio: float, claim: float) -> None:
    holds = "holds" if ratio >= claim else "MISSED"
    print(f"  {name:28} {rate:10,.0f}  {ratio:6.2f}x   at least {claim:g}x: {holds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    rates = {}
    for side, n in SIZES.items():
        stream = random_stream(side, n)
        bare, ours = by_bare_kernel(stream), by_tf_data(stream, "opencv")
        rates[side] = ours
        graph = by_tf_data(stream, "tensorflow")
        print(f"{side} px: online {ours:,.0f} images/s; graph ops {graph:,.0f}")
        tell("of the bare kernel", bare, ours / bare, BARE)
        for name, claim in CLAIMS[side].items():
            script = "dali_policy.py memory" if name == "dali" else f"online_layers.py {name}"
            command = [PEERS_PYTHON, *f"{PEERS / script} {side} {n}".split()]
            rate = float(seconds(command)[1])
            tell(name, rate, ours / rate, claim)
    if arguments.data_dir:
        with scratch_folder() as folder:
            rate = from_shards(folder, arguments.data_dir)
        print(f"32 px from raw shards: {rate:,.0f} images/s")
        tell("online", rates[32], rate / rates[32], SHARDS)
    if arguments.photos:
        ours = from_disk(arguments.photos)
        print(f"photos from their files to 224 px: {ours:,.0f} images/s")
        script = str(PEERS / "dali_policy.py")
        rate = float(
            seconds([PEERS_PYTHON, script, "disk", str(arguments.photos), "224", "320"])[1]
        )
        tell("dali", rate, ours / rate, DISK)


if __name__ == "__main__":
    main()
