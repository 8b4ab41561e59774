"""What a run folder holds in the end: model, figures and pictures."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from datasets.errors import UserError
from datasets.schema import as_utf8, canonical_json
from datasets.storage import write_atomically
from pipeline import preview
from pipeline.stream import Images
from trainers import pictures
from trainers.config import TrainConfig, devices
from trainers.data import Data
from trainers.evaluate import (
    CONFIG,
    ENSEMBLE,
    MODEL,
    MODEL_H5,
    RESULT,
    Evaluation,
    evaluate,
    members,
    predictor,
    read_config,
)
from trainers.fit import HISTORY, best_epoch
from trainers.predictions import PREDICTIONS, Predictions, read_predictions, save_predictions
from trainers.run_reports import ensemble_report, run_report
from trainers.state import History

TENSORBOARD = "tensorboard"
COST = ("parameters", "epochs", "seconds")


class TensorBoard:
    """Figures of each epoch as TensorBoard reads them, the ones that are done already among them:
    the folder is written again, so that a run that went on leaves no gap and no epoch twice."""

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


def write_run(
    config: TrainConfig, data: Data, model: Any, history: History, features_seconds: float
) -> dict[str, Any]:
    """Writes everything; gives what is in `result.json`.

    features_seconds: What this run spent on features before its first epoch; part of its seconds.
    """
    out, epochs = config.out, history.epochs
    source, shown = data.test or data.validation
    found = evaluate([predictor(model, data.shape)], source, shown)
    result = {
        "val_accuracy": epochs[best_epoch(epochs) - 1 if config.patience else -1]["val_accuracy"],
        **figures(found, data.evaluated),
        "epochs": len(epochs),
        **({"best_epoch": best_epoch(epochs)} if config.patience else {}),
        "seconds": round(features_seconds + sum(epoch["seconds"] for epoch in epochs), 3),
        "input_seconds": round(sum(epoch["input_seconds"] for epoch in epochs), 3),
        "parameters": int(model.count_params()),
        "environment": environment(config),
    }
    for name in [MODEL, *([MODEL_H5] if config.save_h5 else [])]:
        model.save(out / f".partial.{name}")
        (out / f".partial.{name}").rename(out / name)
    pictures.curves(epochs, out / "curves.png")
    draw_guesses(found, source, shown, out)
    run_report(out, result, found, data.classes, epochs)
    write_atomically(out / RESULT, as_utf8(canonical_json(result)))
    return result


def draw_guesses(found: Evaluation, source: Images, shown: np.ndarray, out: Path) -> None:
    """Writes predictions.parquet, confusion.png and mistakes.png of the samples at `shown`."""
    save_predictions(out / PREDICTIONS, source, shown, found)
    pictures.confusion(found, source.classes, out / "confusion.png")
    preview.draw(pictures.mistakes(found, source, shown), out / "mistakes.png")


def write_ensemble(out: Path, data: Data, models: list[Any], members: list[Path]) -> dict[str, Any]:
    """Writes figures and pictures of several models, whose probabilities are averaged; gives what
    is in `result.json`."""
    source, shown = data.test or data.validation
    found = evaluate([predictor(model, data.shape) for model in models], source, shown)
    result = figures(found, data.evaluated) | {"members": [member.name for member in members]}
    draw_guesses(found, source, shown, out)
    ensemble_report(out, result, found, data.classes, members)
    write_atomically(out / RESULT, as_utf8(canonical_json(result)))
    return result


def is_whole(out: Path) -> bool:
    """Whether a run was finished, and what others read of it is there and can be read."""
    try:
        n_classes = len(read_config(out)["run"].get("classes", ()))
        read_result(out)
        read_history(out)
        read_predictions(out / PREDICTIONS, n_classes)
    except UserError:
        return False
    return is_zipfile(out / MODEL)


@dataclass(frozen=True)
class Run:
    """What a finished run folder says; an ensemble's options are those of its first member.

    name: What to call it. config: As `read_config` gives it, and the number of networks in `run`.
    cost: Parameters, epochs and seconds, of all members together; None where one does not say.
    histories: The epochs of the run, or of each member.
    """

    name: str
    path: Path
    config: dict[str, Any]
    result: dict[str, Any]
    cost: dict[str, Any]
    histories: list[list[dict[str, float]]]
    guessed: Predictions

    @property
    def classes(self) -> list[str]:
        return list(self.config["run"]["classes"])

    @property
    def right(self) -> np.ndarray:
        return self.guessed.labels == self.guessed.guesses


def read_run(path: Path, name: str) -> Run:
    """Raises: UserError if there is no run, or it is not finished, or damaged."""
    if not (path / CONFIG).is_file() and not (path / ENSEMBLE).is_file():
        found = "is not a run of `pipeline train`" if path.exists() else "no such folder"
        raise UserError(f"{path}: {found}; name the folder of a finished run")
    for file in (RESULT, PREDICTIONS):
        if not (path / file).is_file():
            raise UserError(
                f"{path}: has no {file}: the run is not finished; the same `pipeline train` with "
                "--resume finishes it"
            )
    parts = members(path)
    config, result = read_config(parts[0]), read_result(path)
    config["run"]["ensemble"] = len(parts)
    if not isinstance(config["run"].get("classes"), list):
        raise UserError(f"{parts[0] / CONFIG}: does not say the classes; train that run again")
    costs = {key: [read_result(part).get(key) for part in parts] for key in COST}
    run = Run(
        name=name,
        path=path,
        config=config,
        result=result,
        cost={k: None if None in values else sum(values) for k, values in costs.items()},
        histories=[read_history(part) for part in parts],
        guessed=read_predictions(path / PREDICTIONS, len(config["run"]["classes"])),
    )
    if len(run.right) != result["n"] or run.right.mean() != result["accuracy"]:
        raise UserError(
            f"{path}: {PREDICTIONS} and {RESULT} are not of one evaluation; the same `pipeline "
            "train` with --resume writes both again"
        )
    return run


def read_result(path: Path) -> dict[str, Any]:
    """What `result.json` says, with its accuracy and loss under these names too.

    Raises: UserError if it is missing or damaged.
    """
    try:
        result: dict[str, Any] = json.loads((path / RESULT).read_text())
        named = {name: float(result[f"{result['split']}_{name}"]) for name in ("accuracy", "loss")}
        return {**result, **named, "n": result["n"]}
    except (OSError, ValueError, LookupError, TypeError) as err:
        raise UserError(
            f"{path / RESULT}: is missing or damaged; the same command with --resume "
            "writes it again"
        ) from err


def read_history(path: Path) -> list[dict[str, float]]:
    """Number, losses and accuracies of each epoch.

    Raises: UserError if they are missing or damaged.
    """
    try:
        rows = csv.DictReader((path / HISTORY).read_text().splitlines())
        names = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")
        return [{name: float(row[name]) for name in names} for row in rows]
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as err:
        raise UserError(f"{path / HISTORY}: is missing or damaged; leave that run out") from err
