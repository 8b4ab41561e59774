"""`pipeline crossval`: each sample of the split `train` is tested once, by a network that has seen
neither it nor a copy of it. The split `test`, where there is one, is left for the end."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import UserError
from datasets.schema import as_utf8, canonical_json
from datasets.storage import write_atomically
from pipeline.report import Report
from pipeline.stream import Images
from trainers import joint_pictures
from trainers.config import TrainConfig
from trainers.data import Data, origins_of, parted
from trainers.evaluate import RESULT, Evaluation, evaluation
from trainers.intervals import spread
from trainers.predictions import PREDICTIONS, read_predictions
from trainers.results import draw_guesses
from trainers.run_folder import begin_whole
from trainers.run_reports import crossval_report
from trainers.train import open_training, train_part, training_folder

CROSSVAL, FOLDS, PICTURE = "crossval.json", "folds.csv", "folds.png"


def folds_of(source: Images, n_folds: int, seed: int) -> np.ndarray:
    """(n,) the fold of each position, -1 of unusable ones; stratified by class.

    All copies of a sample are in one fold. It depends on ids, labels and the seed, and not on their
    order, so that the folds from shards are those of the online path.
    Raises: UserError if there are more folds than samples of every class.
    """
    import warnings

    from sklearn.model_selection import StratifiedKFold

    origins = np.array(origins_of(source))
    names, first = np.unique(origins[source.usable], return_index=True)
    labels = source.labels[source.usable][first]
    largest = int(np.bincount(labels).max())
    if n_folds > largest:
        raise UserError(f"--folds {n_folds}: no class has more than {largest} samples; give fewer")
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    fold_of = np.full(len(names), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer samples than folds is in some of them
        for fold, (_, tested) in enumerate(splitter.split(names, labels)):
            fold_of[tested] = fold
    found = np.full(len(origins), -1)
    found[source.usable] = fold_of[np.searchsorted(names, origins[source.usable])]
    return found


def fold_data(
    config: TrainConfig, data: Data, folds: np.ndarray, fold: int, n_folds: int, report: Report
) -> Data:
    """The data of one training: the fold tests, the others train and validate."""
    source, _ = data.validation
    others = np.flatnonzero((folds >= 0) & (folds != fold))
    tested = np.flatnonzero(folds == fold)
    parts = parted(config.data, source, others, (source, tested), report)
    return replace(parts, fold=(fold + 1, n_folds))


def crossval(config: TrainConfig, n_folds: int, report: Report) -> str:
    """A table for people, once every fold has been trained; one that was interrupted goes on.

    Raises: UserError of each kind, as `train` does.
    """
    out = config.out
    with training_folder(config):
        data = open_training(config, report, with_test=False)
        source, _ = data.validation
        folds = folds_of(source, n_folds, config.seed)
        listed = list_folds(source, folds)
        # All of them before the first is trained, in case one cannot be.
        parts = [fold_data(config, data, folds, i, n_folds, report) for i in range(n_folds)]
        # What lies in which fold also depends on the version of what makes them.
        known = {"folds": n_folds, "sha256": hashlib.sha256(listed).hexdigest()}
        begin_whole(config, CROSSVAL, known, "cross-validation")
        write_atomically(out / FOLDS, listed)
        results = []
        for fold, part in enumerate(parts, 1):
            report.say(f"fold {fold} of {n_folds}", event="fold", fold=fold)
            one = replace(config, out=out / f"fold-{fold}")
            with training_folder(one):
                results.append(train_part(one, part, report))
        return write_crossval(config, source, folds, results)


def list_folds(source: Images, folds: np.ndarray) -> bytes:
    """A line for each sample that is used, sorted by its id: sample_id, fold."""
    file = io.StringIO(newline="")
    lines = csv.writer(file)
    lines.writerow(["sample_id", "fold"])
    order = sorted(np.flatnonzero(folds >= 0).tolist(), key=lambda i: source.ids[i])
    lines.writerows([source.ids[i], int(folds[i]) + 1] for i in order)
    return file.getvalue().encode()


def write_crossval(
    config: TrainConfig, source: Images, folds: np.ndarray, results: list[dict[str, Any]]
) -> str:
    """Writes figures and pictures of all folds together; a table of them."""
    out, n_folds = config.out, len(results)
    positions, found = pool_predictions(out, source, folds, n_folds)
    # Samples that test to those that are trained on, which those that validate are not.
    overlap = 1 / ((n_folds - 1) * (1 - config.data.val_fraction))
    accuracy = spread([result["test_accuracy"] for result in results], overlap, is_share=True)
    loss = spread([result["test_loss"] for result in results], overlap)
    result = {
        "folds": n_folds,
        "n": len(positions),
        "accuracy": accuracy,
        "loss": loss,
        "per_class": found.per_class,
        "seconds": round(sum(result["seconds"] for result in results), 3),
    }
    draw_guesses(found, source, positions, out)
    joint_pictures.folds(accuracy, out / PICTURE)
    crossval_report(out, result, results, found, source.classes)
    write_atomically(out / RESULT, as_utf8(canonical_json(result)))
    return table(out, results, accuracy, loss)


def pool_predictions(
    out: Path, source: Images, folds: np.ndarray, n_folds: int
) -> tuple[np.ndarray, Evaluation]:
    """What was guessed for every sample, by the network of the fold that it is in."""
    index = {name: i for i, name in enumerate(source.ids)}
    where, guessed = [], []
    for fold in range(n_folds):
        path = out / f"fold-{fold + 1}" / PREDICTIONS
        predictions = read_predictions(path, len(source.classes))
        where += [index[name] for name in predictions.ids]
        guessed.append(predictions.probabilities)
    positions = np.array(where)
    return positions, evaluation(source, positions, np.concatenate(guessed))


def table(
    out: Path, results: list[dict[str, Any]], accuracy: dict[str, Any], loss: dict[str, Any]
) -> str:
    """A line a fold, and the mean."""
    lines = ["fold  accuracy  loss    images"]
    for i, result in enumerate(results, 1):
        lines.append(
            f"{i:4}  {result['test_accuracy']:.4f}    {result['test_loss']:.4f}  {result['n']:6,}"
        )
    interval = ""
    if accuracy["low"] is not None:
        interval = f", 95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}"
    lines.append(
        f"mean  {accuracy['mean']:.4f}    {loss['mean']:.4f}\n"
        f"std   {accuracy['std']:.4f}    {loss['std']:.4f}\n"
        f"{out}: mean accuracy {accuracy['mean']:.4f}{interval}"
    )
    return "\n".join(lines)
