"""What a run folder holds in the end: model, figures and pictures."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from datasets.commit import write_atomically
from datasets.schema import canonical_json
from trainers import pictures
from trainers.config import TrainConfig, devices
from trainers.data import Data
from trainers.evaluate import (
    MODEL,
    PREDICTIONS,
    RESULT,
    Evaluation,
    evaluate,
    predictor,
    save_predictions,
)
from trainers.fit import best_epoch
from trainers.html_report import ensemble_report, run_report
from trainers.state import History

TENSORBOARD = "tensorboard"


class TensorBoard:
    """Figures of each epoch as TensorBoard reads them, the ones that are done already among them:
    the folder is written anew, so that a run that went on leaves no gap and no epoch twice."""

    def __init__(self, out: Path, epochs: list[dict[str, Any]]) -> None:
        import tensorflow as tf

        shutil.rmtree(out / TENSORBOARD, ignore_errors=True)
        self.writer = tf.summary.create_file_writer(str(out / TENSORBOARD))
        for epoch in epochs:
            self.write(epoch)

    def write(self, epoch: dict[str, Any]) -> None:
        import tensorflow as tf

        # What `tf.summary.scalar` writes; that one needs the viewer to be installed.
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = "scalars"
        with self.writer.as_default(step=epoch["epoch"]):
            for name, value in epoch.items():
                if name != "epoch":
                    tf.summary.write(name, np.float32(value), metadata=metadata)
        self.writer.flush()


def figures(found: Evaluation, split: str) -> dict[str, Any]:
    """What `result.json` says of guesses: shares of 1, and the mean negative log likelihood."""
    return {
        "split": split,
        f"{split}_accuracy": found.accuracy,
        f"{split}_loss": found.loss,
        "n": len(found.labels),
        "per_class": found.per_class,
    }


def environment(config: TrainConfig) -> dict[str, Any]:
    """What the seconds, and the last bits, depend on beside the run's own options."""
    return {
        "cores": os.cpu_count(),
        "threads": config.threads,
        "devices": devices(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def finish(config: TrainConfig, data: Data, model: Any, history: History) -> dict[str, Any]:
    """Writes everything; gives what is in `result.json`."""
    out, epochs = config.out, history.epochs
    source, shown = data.test or data.validation
    found = evaluate([predictor(model, data.shape)], source, shown)
    result = {
        **figures(found, data.evaluated),
        "val_accuracy": epochs[best_epoch(epochs) - 1 if config.patience else -1]["val_accuracy"],
        "epochs": len(epochs),
        **({"best_epoch": best_epoch(epochs)} if config.patience else {}),
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 3),
        "input_seconds": round(sum(epoch["input_seconds"] for epoch in epochs), 3),
        "parameters": int(model.count_params()),
        "environment": environment(config),
    }
    for name in [MODEL, *(["model.h5"] if config.save_h5 else [])]:
        model.save(out / f".partial.{name}")
        (out / f".partial.{name}").rename(out / name)
    pictures.curves(epochs, out / "curves.png")
    draw(found, data, out)
    run_report(out, result, found, data.classes, epochs)
    write_atomically(out / RESULT, canonical_json(result).encode())
    return result


def draw(found: Evaluation, data: Data, out: Path) -> None:
    """What was guessed, and the pictures of it."""
    source, shown = data.test or data.validation
    save_predictions(out / PREDICTIONS, source, shown, found)
    pictures.confusion(found, data.classes, out / "confusion.png")
    pictures.mistakes(found, source, shown, out / "mistakes.png")


def finish_ensemble(
    out: Path, data: Data, models: list[Any], members: list[Path]
) -> dict[str, Any]:
    """The same of several models, whose probabilities are averaged."""
    source, shown = data.test or data.validation
    found = evaluate([predictor(model, data.shape) for model in models], source, shown)
    result = figures(found, data.evaluated) | {"members": [member.name for member in members]}
    draw(found, data, out)
    ensemble_report(out, result, found, data.classes, members)
    write_atomically(out / RESULT, canonical_json(result).encode())
    return result
