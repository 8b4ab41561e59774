"""The epochs of a training, each of which ends with all that it is on disk."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from datasets.commit import write_atomically
from datasets.errors import UserError
from pipeline.report import Progress, Report
from pipeline.stream import Stream
from trainers.config import TrainConfig
from trainers.data import Data
from trainers.evaluate import evaluate, predictor
from trainers.models import MODELS
from trainers.state import History, restore_state, save_state

STATE, BEST = "state.npz", "best-{:04d}.npz"  # the latter of one epoch
HISTORY = "history.csv"
WARM_UP = 0.2  # of all steps; then the rate falls as a cosine


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> Any:
    """The network's optimizer, averaging weights where its recipe says so; its rate rises for a
    fifth of the steps, then falls as a cosine."""
    import keras

    recipe = MODELS[config.model.name]
    total, peak = (config.epochs or 0) * steps_per_epoch, config.lr or 0.0
    warm_up = max(1, round(WARM_UP * total))
    rate = keras.optimizers.schedules.CosineDecay(
        peak / warm_up, max(1, total - warm_up), warmup_target=peak, warmup_steps=warm_up
    )
    averaging: dict[str, Any] = {}
    if recipe.averaged:  # over about as many of the last steps
        n_steps = max(2.0, recipe.averaged * total)
        averaging = {"use_ema": True, "ema_momentum": 1 - 1 / n_steps}
    if recipe.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **averaging)
    return keras.optimizers.Adam(rate, **averaging)


@contextmanager
def averaged(model: Any, optimizer: Any) -> Iterator[None]:
    """Within it the model has the averages of its weights, if the optimizer keeps them."""
    kept = [variable.numpy() for variable in model.trainable_variables]
    optimizer.finalize_variable_values(model.trainable_variables)
    yield
    for variable, value in zip(model.trainable_variables, kept, strict=True):
        variable.assign(value)


def make_step(config: TrainConfig, model: Any, optimizer: Any, n_classes: int) -> Any:
    """A graph from (images, labels) to (mean loss with penalties, how many were right).

    In the scope of a `tf.distribute` strategy each replica takes its part of the batch.
    """
    import keras
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    n_replicas = strategy.num_replicas_in_sync
    losses_of = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=config.label_smoothing or 0.0, reduction="none"
    )
    optimizer.build(model.trainable_variables)

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
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, -1) == labels, tf.int64))
        return loss, right

    def step(images: Any, labels: Any) -> tuple[Any, Any]:
        loss, right = strategy.run(part, (images, labels))
        return strategy.reduce("SUM", loss, None), strategy.reduce("SUM", right, None)

    return tf.function(step, reduce_retracing=True)  # the last batch of an epoch is smaller


def run_epochs(
    config: TrainConfig, data: Data, model: Any, optimizer: Any, history: History, report: Report
) -> Iterator[dict[str, Any]]:
    """Trains what is left, and yields each epoch's figures once its state is on disk. In the end
    the model has the weights that are to be kept."""
    steps, epochs, n_epochs = data.train.steps_per_epoch, history.epochs, config.epochs or 0
    step = make_step(config, model, optimizer, len(data.classes))
    predict = predictor(model, data.shape)
    batches = iter(data.batches(len(epochs) * steps, n_epochs * steps))
    while len(epochs) < n_epochs and not is_stale(epochs, config.patience):
        number = len(epochs) + 1
        with report.progress(data.train.n_samples, f"epoch {number} of {n_epochs}") as progress:
            figures, losses = run_epoch(data.train, batches, step, progress)
        if not np.isfinite(losses).all():
            raise UserError(
                f"the loss is {losses[-1]} in step {len(losses)} of epoch {number}: training has "
                f"diverged; give a lower --lr than {config.lr:g}"
            )
        with averaged(model, optimizer):
            checked = evaluate([predict], *data.validation)
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
        restore_state(config.out / BEST.format(best_epoch(epochs)), model, optimizer)
    optimizer.finalize_variable_values(model.trainable_variables)


def run_epoch(
    stream: Stream, batches: Iterator[Any], step: Any, progress: Progress
) -> tuple[dict[str, float], np.ndarray]:
    """Mean loss, accuracy and seconds of one epoch, and the float32 losses of its steps; it ends
    early where one is no number."""
    started, waited, losses, sizes, n_right = time.perf_counter(), 0.0, [], [], 0
    for _ in range(stream.steps_per_epoch):
        asked = time.perf_counter()
        images, labels = next_batch(stream, batches)
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
    for older in {*out.glob("best-*.npz")} - {best}:
        older.unlink()  # not before: a run that dies here goes on from the epoch before
    rows = [",".join(epochs[0]), *(",".join(map(str, epoch.values())) for epoch in epochs)]
    write_atomically(out / HISTORY, "".join(f"{row}\n" for row in rows).encode())


def next_batch(stream: Stream, batches: Iterator[Any]) -> Any:
    """The next batch.

    Raises: UserError for what went wrong while it was made, and not TensorFlow's account of it.
    """
    try:
        return next(batches)
    except Exception:
        if stream.failure is not None:
            raise stream.failure from None
        raise


def best_epoch(epochs: list[dict[str, Any]]) -> int:
    """The number, from 1, of the epoch with the least validation loss."""
    return 1 + int(np.argmin([epoch["val_loss"] for epoch in epochs]))


def is_stale(epochs: list[dict[str, Any]], patience: int | None) -> bool:
    return bool(epochs) and patience is not None and len(epochs) - best_epoch(epochs) >= patience
