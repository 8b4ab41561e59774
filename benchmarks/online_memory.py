"""Memory of the online path over 50 epochs: after the last within 5 % of after the fifth.

    python benchmarks/online_memory.py [--data-dir DIR]

CIFAR-10, batches of 128 through `tf.data` with the policy `standard`, nothing kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import psutil
from offline import CACHE

from pipeline.online import augmented, open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.stream import Stream

N_EPOCHS, FIRST, TOLERANCE = 50, 5, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=CACHE)
    config = AugmentConfig("cifar10", parser.parse_args().data_dir, policy="standard")
    images = open_images(config, "memory", Report(quiet=True))
    stream = Stream(images, images.usable, 128, order_seed=0)
    steps, found = stream.steps_per_epoch, []
    for step, _ in enumerate(augmented(stream, 0, N_EPOCHS * steps, "opencv"), 1):
        if step % steps == 0:
            found.append(psutil.Process().memory_info().rss / 1e6)
    after, last = found[FIRST - 1], found[-1]
    holds = abs(last / after - 1) <= TOLERANCE
    print(f"{after:.0f} MB after epoch {FIRST}, {last:.0f} MB after epoch {N_EPOCHS}")
    print(f"within {TOLERANCE:.0%}: {'holds' if holds else 'MISSED'}")
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
