"""Training on features kept as shards against training through the frozen backbone.

    python benchmarks/features.py --dataset DATA --weights FILE [--data-dir DIR] [--seeds N]

MobileNet at 224 px, ten epochs over all of four copies (originals and three augmented ones, from
shards that `pipeline augment` writes first): 40 passes of the backbone against 4. Both start from
the same built network, and the time of features is that of making them, too.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import PIPELINE, row, scratch_folder, seconds
from offline import CACHE

from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.stream import import_tensorflow
from trainers.backbones import split_at_features
from trainers.config import TrainConfig, resolved
from trainers.data import Data, DataConfig, open_data
from trainers.evaluate import evaluate, predictor
from trainers.features import as_features
from trainers.fit import run_epochs
from trainers.models import ModelConfig, build
from trainers.state import History
from trainers.transfer import TransferConfig

CLAIM, WITHIN = 8, 0.01
N_EPOCHS = 10
QUIET = Report(quiet=True)


def trained(config: TrainConfig, data: Data, on_features: bool) -> tuple[float, float]:
    """Seconds of training, and the accuracy on test images."""
    import keras

    keras.backend.clear_session()
    model: Any = build(config.model, data.shape, len(data.classes), config.seed)
    config.out.mkdir(parents=True)
    started, learner, shown = time.perf_counter(), model, data
    if on_features:
        learner, shown = split_at_features(model)[1], as_features(config, data, model, QUIET)
    for _ in run_epochs(config, shown, learner, History(), None, QUIET):
        pass
    took = time.perf_counter() - started
    assert data.test is not None
    return took, evaluate([predictor(model, data.shape)], *data.test).accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cub200")
    parser.add_argument("--data-dir", type=Path, default=CACHE)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    import_tensorflow(threads).config.experimental.enable_op_determinism()
    with scratch_folder() as folder:
        command = [PIPELINE, "augment", "--dataset", options.dataset, "--copies", "3", "--quiet"]
        where = ["--data-dir", str(options.data_dir), "--image-size", "224", "--encoding", "raw"]
        seconds([*command, *where, "--out", str(folder / "shards")])
        augment = AugmentConfig(options.dataset, options.data_dir)
        shards = DataConfig(augment, folder / "shards", per_epoch="all-copies")
        times: dict[bool, list[float]] = {False: [], True: []}
        accuracies: dict[bool, list[float]] = {False: [], True: []}
        for seed in range(options.seeds):
            for on_features in (True, False):
                out = folder / f"{on_features}-{seed}"
                # Features of each seed are made again, as if there was one alone.
                own = TransferConfig(options.weights, mode="freeze", features=out / "features")
                model = ModelConfig("MobileNet", transfer=own)
                config = TrainConfig(shards, model, out, N_EPOCHS, seed=seed, threads=threads)
                config = resolved(config)
                took, accuracy = trained(config, open_data(config.data, QUIET), on_features)
                times[on_features].append(took)
                accuracies[on_features].append(accuracy)
                print(
                    f"seed {seed}, features {on_features}: {took:.1f} s, {accuracy:.4f}", flush=True
                )
    through, features = min(times[False]), min(times[True])
    row("through the frozen backbone", through)
    holds = row("on features", features, through / features, CLAIM)
    means = [float(np.mean(accuracies[which])) for which in (False, True)]
    apart = abs(means[0] - means[1])
    print(f"test accuracy {means[0]:.4f} through, {means[1]:.4f} on features")
    print(f"within {WITHIN:.0%}: {'holds' if apart <= WITHIN else 'MISSED'}")
    raise SystemExit(0 if holds and apart <= WITHIN else 1)


if __name__ == "__main__":
    main()
