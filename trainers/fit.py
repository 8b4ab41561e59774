"""The epochs of a training, each of which ends with all that it is on disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import UserError
from datasets.storage import write_atomically
from pipeline.report import Progress, Report
from pipeline.stream import Stream, own_failures
from trainers.config import TrainConfig
from trainers.data import Data
from trainers.evaluate import evaluate, predictor
from trainers.models import MODELS
from trainers.state import History, restore_state, save_state
from trainers.transfer import Phase, phases, unfreeze

STATE, BEST = "state.npz", "best-{:04d}.npz"  # the latter of one epoch
HISTORY = "history.csv"
WARM_UP = 0.2  # of all steps; then the rate falls as a cosine


class Diverged(UserError):
    """A training whose loss is no number any more."""


class Optimizer:
    """One of Keras' for each share of the learning rate, and together as one of them.

    shares: A share for each of the variables.
    """

    def __init__(
        self, make: Callable[[float], Any], variables: list[Any], shares: list[float]
    ) -> None:
        groups = {share: [i for i, s in enumerate(shares) if s == share] for share in shares}
        self.parts = [(make(share), chosen) for share, chosen in groups.items()]
        for part, chosen in self.parts:
            part.build([variables[i] for i in chosen])

    @property
    def variables(self) -> list[Any]:
        return [variable for part, _ in self.parts for variable in part.variables]

    def apply(self, gradients: list[Any], variables: list[Any]) -> None:
        for part, chosen in self.parts:
            part.apply_gradients([(gradients[i], variables[i]) for i in chosen])

    def finalize(self, variables: list[Any]) -> None:
        """Gives variables their averages, where those are kept."""
        for part, chosen in self.parts:
            part.finalize_variable_values([variables[i] for i in chosen])


def begin(config: TrainConfig, model: Any, phase: Phase, steps_per_epoch: int) -> Optimizer:
    """The optimizer of a phase, whose layers alone learn from now on.

    It averages weights where the network's recipe says so. Its rate rises for a fifth of the steps,
    then falls as a cosine.
    """
    import keras

    recipe, transfer = MODELS[config.model.name], config.model.transfer
    total = (phase.stop - phase.start) * steps_per_epoch
    warm_up = max(1, round(WARM_UP * total))
    averaging: dict[str, Any] = {}
    if recipe.averaged:  # over about as many of the last steps
        n_steps = max(2.0, recipe.averaged * total)
        averaging = {"use_ema": True, "ema_momentum": 1 - 1 / n_steps}

    def make(share: float) -> Any:
        peak = share * (config.lr or 0.0)
        rate = keras.optimizers.schedules.CosineDecay(
            peak / warm_up, max(1, total - warm_up), warmup_target=peak, warmup_steps=warm_up
        )
        if recipe.optimizer == "sgd":
            return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **averaging)
        return keras.optimizers.Adam(rate, **averaging)

    shares = unfreeze(model, config.model.name, transfer, phase) if transfer else {}
    variables = model.trainable_variables
    return Optimizer(make, variables, [shares.get(v.path, 1.0) for v in variables])


def restored(
    config: TrainConfig, model: Any, data: Data, path: Path, is_finished: bool
) -> tuple[History, Any]:
    """The history of a state, and the optimizer that has trained its last epoch; the model has its
    weights.

    is_finished: As for `restore_state`.
    Raises: Damaged if the file is no state of this training.
    """

    def optimizer_after(n_done: int) -> Any:
        parts = phases(config.model.transfer, config.epochs or 0)
        phase = next((part for part in parts if n_done <= part.stop), parts[-1])
        return begin(config, model, phase, data.train.steps_per_epoch)

    return restore_state(path, model, optimizer_after, is_finished)


@contextmanager
def averaged(model: Any, optimizer: Any) -> Iterator[None]:
    """Within it the model has the averages of its weights, if the optimizer keeps them."""
    kept = [variable.numpy() for variable in model.trainable_variables]
    optimizer.finalize(model.trainable_variables)
    yield
    for variable, value in zip(model.trainable_variables, kept, strict=True):
        variable.assign(value)


def make_step(config: TrainConfig, model: Any, optimizer: Any, n_classes: int) -> Any:
    """A graph from (B, ...) images as the model takes them and (B,) int64 labels, of any B, to the
    mean loss with penalties, float32, and how many were right, int64.

    In the scope of a `tf.distribute` strategy each replica takes its part of the batch.
    """
    import keras
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    n_replicas = strategy.num_replicas_in_sync
    losses_of = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=config.label_smoothing or 0.0, reduction="none"
    )

    def part(images: Any, labels: Any) -> tuple[Any, Any]:
        n_all = tf.cast(tf.shape(labels)[0], tf.float32)
        mine = tf.distribute.get_replica_context().replica_id_in_sync_group
        images, labels = images[mine::n_replicas], labels[mine::n_replicas]
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_sum(losses_of(tf.one_hot(labels, n_classes), logits)) / n_all
            for penalty in model.losses:  # of activations in the type that they are computed in
                loss += tf.cast(penalty, tf.float32) / n_replicas
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, -1) == labels, tf.int64))
        return loss, right

    def step(images: Any, labels: Any) -> tuple[Any, Any]:
        loss, right = strategy.run(part, (images, labels))
        return strategy.reduce("SUM", loss, None), strategy.reduce("SUM", right, None)

    # With B fixed, the smaller last batch would need a graph of its own, and on two threads
    # gradients did not repeat.
    (shown,) = model.inputs
    signature = (tf.TensorSpec(shown.shape, shown.dtype), tf.TensorSpec((None,), tf.int64))
    return tf.function(step, input_signature=signature)


def run_epochs(
    config: TrainConfig, data: Data, model: Any, history: History, optimizer: Any, report: Report
) -> Iterator[dict[str, Any]]:
    """Trains what is left, and yields each epoch's figures once its state is on disk. In the end
    the model has the weights that are to be kept.

    optimizer: That of the last epoch of the history, which may be None if there is none.
    """
    steps, epochs, n_epochs = data.train.steps_per_epoch, history.epochs, config.epochs or 0
    if epochs:
        save_figures(config.out, epochs)
    predict = predictor(model, data.shape, data.train.source.dtype)
    batches = iter(data.batches(len(epochs) * steps, n_epochs * steps))
    for phase in phases(config.model.transfer, n_epochs):
        if len(epochs) >= phase.stop:
            continue
        if len(epochs) == phase.start:
            optimizer = begin(config, model, phase, steps)
        step = make_step(config, model, optimizer, len(data.classes))
        is_last = phase.stop == n_epochs
        while len(epochs) < phase.stop and not (is_last and is_stale(config, phase, epochs)):
            number = len(epochs) + 1
            doing = f"epoch {number} of {n_epochs}"
            with report.progress(data.train.n_samples, doing) as bar, own_failures(data.train):
                figures, losses = run_epoch(data.train, batches, step, bar)
            with averaged(model, optimizer):
                checked = evaluate([predict], *data.validation)
            if not np.isfinite([*losses, checked.loss]).all():
                raise Diverged(
                    f"the loss is {losses[-1]} in step {len(losses)} of epoch {number}, and "
                    f"{checked.loss} in validation: training has diverged; give a lower --lr than "
                    f"{config.lr:g}, and another --out or --overwrite"
                )
            epochs.append(
                {
                    "epoch": number,
                    "loss": figures["loss"],
                    "accuracy": figures["accuracy"],
                    "val_loss": checked.loss,
                    "val_accuracy": checked.accuracy,
                    "seconds": round(figures["seconds"], 3),
                    "input_seconds": round(figures["input_seconds"], 3),
                }
            )
            history.losses = np.append(history.losses, losses)
            save_epoch(config, model, optimizer, history)
            yield epochs[-1]
    if config.patience is not None:
        best = config.out / BEST.format(best_epoch(epochs))
        optimizer = restored(config, model, data, best, is_finished=True)[1]
    optimizer.finalize(model.trainable_variables)


def run_epoch(
    stream: Stream, batches: Iterator[Any], step: Any, progress: Progress
) -> tuple[dict[str, float], np.ndarray]:
    """Mean loss, accuracy and seconds of one epoch, and the float32 losses of its steps; it ends
    early where one is no number."""
    started, waited, losses, sizes, n_right = time.perf_counter(), 0.0, [], [], 0
    for _ in range(stream.steps_per_epoch):
        asked = time.perf_counter()
        images, labels = next(batches)
        waited += time.perf_counter() - asked
        loss, right = step(images, labels)
        losses.append(float(loss))
        sizes.append(len(labels))
        if not math.isfinite(losses[-1]):
            break
        n_right += int(right)
        progress.advance(len(labels))
    figures = {
        "loss": float(np.average(losses, weights=sizes)),
        "accuracy": n_right / stream.n_samples,
        "seconds": time.perf_counter() - started,
        "input_seconds": waited,
    }
    return figures, np.array(losses, np.float32)


def save_epoch(config: TrainConfig, model: Any, optimizer: Any, history: History) -> None:
    """Writes all of the training, and the figures of its epochs; where early stopping may want it,
    the best epoch's too."""
    out, epochs = config.out, history.epochs
    best = out / BEST.format(best_epoch(epochs))
    if config.patience is not None and best_epoch(epochs) == len(epochs):
        save_state(best, model, optimizer, history)
    save_state(out / STATE, model, optimizer, history)
    save_figures(out, epochs)


def save_figures(out: Path, epochs: list[dict[str, Any]]) -> None:
    """Writes what follows from a state that is on disk; a run that died before does it later."""
    for older in {*out.glob("best-*.npz")} - {out / BEST.format(best_epoch(epochs))}:
        older.unlink()
    rows = [",".join(epochs[0]), *(",".join(map(str, epoch.values())) for epoch in epochs)]
    write_atomically(out / HISTORY, "".join(f"{row}\n" for row in rows).encode())


def best_epoch(epochs: list[dict[str, Any]]) -> int:
    """The number, from 1, of the epoch with the least validation loss."""
    return 1 + int(np.argmin([epoch["val_loss"] for epoch in epochs]))


def is_stale(config: TrainConfig, phase: Phase, epochs: list[dict[str, Any]]) -> bool:
    """Whether no epoch of the phase has been better for as many as --patience says."""
    if config.patience is None or len(epochs) == phase.start:
        return False
    return len(epochs) - max(phase.start, best_epoch(epochs)) >= config.patience
