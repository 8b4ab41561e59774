"""`pipeline train`: from a data set or shards to a folder with a model and what it is worth."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.commit import hold, write_atomically
from datasets.errors import OutputError, UserError
from datasets.schema import canonical_json
from pipeline.job import differences, probe, versions
from pipeline.plan import refuse_nesting
from pipeline.report import Report, duration
from pipeline.stream import Stream, import_tensorflow
from trainers.data import Data, DataConfig, open_data
from trainers.evaluate import MODEL, evaluate, predictor
from trainers.models import MODELS, ModelConfig, build
from trainers.state import restore_state, save_state

CONFIG, STATE = "config.json", "state.npz"
HISTORY, RESULT = "history.csv", "result.json"
WARM_UP = 0.1  # of all steps; then the rate falls as a cosine


@dataclass(frozen=True)
class TrainConfig:
    """The options of `pipeline train`. What is None is the network's own (see `trainers.models`).

    seed: Of the initial weights, dropout and the order; the augmentation has its own, in `data`.
    patience: Epochs without a better validation loss after which training ends, with the best
      weights.
    """

    data: DataConfig
    model: ModelConfig
    out: Path
    epochs: int | None = None
    lr: float | None = None
    label_smoothing: float | None = None
    patience: int | None = None
    seed: int = 0
    threads: int = 1
    resume: bool = False
    save_h5: bool = False


def available_threads() -> int:
    return len(os.sched_getaffinity(0))


def run_folder(out: Path | None, offline: Path | None, dataset: str | None) -> Path:
    """The absolute path of --out, or of runs/NAME.

    Raises: UserError if it lies in the folder of its own data, or around it.
    """
    data = str(offline or dataset or "digits")
    name = Path(data).expanduser().resolve().name
    folder = (out or Path("runs") / name).expanduser().resolve()
    if folder in (Path.cwd(), Path(folder.anchor)):
        raise UserError(f"--out {out}: expected a folder to make, such as runs/digits")
    refuse_nesting(folder, data)
    return folder


def resolved(config: TrainConfig) -> TrainConfig:
    """The same, with every None replaced by what the network's recipe says."""
    recipe, model = MODELS[config.model.name], config.model

    def chosen(asked: Any, own: Any) -> Any:
        return own if asked is None else asked

    return replace(
        config,
        epochs=chosen(config.epochs, recipe.epochs),
        lr=chosen(config.lr, recipe.lr),
        label_smoothing=chosen(config.label_smoothing, recipe.label_smoothing),
        model=replace(
            model,
            dropout=chosen(model.dropout, recipe.dropout),
            weight_decay=chosen(model.weight_decay, recipe.weight_decay),
            batch_norm=chosen(model.batch_norm, recipe.batch_norm),
        ),
    )


def identity(config: TrainConfig, data: Data) -> dict[str, Any]:
    """All that the weights depend on, as JSON. Not in it: paths, the cache, logging."""
    source: Any = data.train.source
    job = getattr(source, "job", None)
    return {
        "data": data.content(),
        "val_fraction": config.data.val_fraction,
        "probe": probe(),
        "shape": list(data.shape),
        "policy": str(source.policy) if job is None else job.policy,
        "augment_seed": source.seed if job is None else job.seed,
        "engine": config.data.engine,
        "blocks": source.n_blocks,
        "batch_size": config.data.batch_size,
        "model": asdict(config.model),
        **{k: getattr(config, k) for k in ("epochs", "lr", "label_smoothing", "patience")},
        "seed": config.seed,
        "threads": config.threads,
        "versions": versions() | {name: version_of(name) for name in ("keras", "tensorflow")},
    }


def version_of(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def train(config: TrainConfig, report: Report) -> dict[str, Any]:
    """What `result.json` holds, once the run folder is complete.

    Raises: UserError of each kind. A run that was killed goes on, to the same weights.
    """
    config = resolved(config)
    tf = import_tensorflow(config.threads)
    import keras

    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    with hold(config.out):
        data = open_data(config.data, report)
        model = build(config.model, data.shape, len(data.classes))
        optimizer = make_optimizer(config, data.train.steps_per_epoch)
        history = prepare_run(config, data, model, optimizer)
        if (config.epochs or 0) > data.train.source.n_copies:
            report.say(
                f"there are {data.train.source.n_copies} copies and {config.epochs} epochs: after "
                "the last copy the first is shown again",
                event="copies",
            )
        started = time.monotonic()
        for epoch in run_epochs(config, data, model, optimizer, history):
            report.say(
                f"epoch {epoch['epoch']} of {config.epochs}: loss {epoch['loss']:.4f}, accuracy "
                f"{epoch['accuracy']:.4f}, validation loss {epoch['val_loss']:.4f}, accuracy "
                f"{epoch['val_accuracy']:.4f}, {epoch['seconds']:.1f} s",
                event="epoch",
                **epoch,
            )
        result = finish(config, data, model, history)
        took = duration(time.monotonic() - started)
        report.say(
            f"{config.out}: {result['split']} accuracy {result['accuracy']:.4f}, loss "
            f"{result['loss']:.4f}, {len(history)} epochs, {took}",
            event="done",
            out=str(config.out),
            accuracy=result["accuracy"],
            loss=result["loss"],
        )
        return result


def prepare_run(
    config: TrainConfig, data: Data, model: Any, optimizer: Any
) -> list[dict[str, Any]]:
    """The epochs that are done: none in a new folder, those of the state where a run goes on.

    Raises: OutputError if the folder holds anything else, or --resume is missing.
    """
    out, known = config.out, canonical_json(identity(config, data))
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out")
    for leftover in [*out.glob(f".{CONFIG}.*.tmp"), *out.glob(f".*{STATE}.*.tmp")]:
        leftover.unlink()  # of a run that was killed; this one holds the folder
    if not out.exists() or not any(out.iterdir()):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / CONFIG, known.encode())
        return []
    if not (out / CONFIG).is_file():
        raise OutputError(f"{out}: exists and is no run of `pipeline train`; choose another --out")
    before = (out / CONFIG).read_text()
    if before != known:
        raise OutputError(f"{out}: is another run ({changes(before, known)}); choose another --out")
    if not config.resume:
        raise OutputError(f"{out}: holds this run; go on with --resume, or choose another --out")
    if not (out / STATE).is_file():
        return []
    return list(restore_state(out / STATE, model, optimizer)["history"])


def changes(before: str, known: str) -> str:
    try:
        return differences(json.loads(before), json.loads(known))
    except (ValueError, AttributeError):
        return f"its {CONFIG} is of something else"


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> Any:
    """The network's optimizer; its rate rises for a tenth of the steps, then falls as a cosine."""
    import keras

    total, peak = (config.epochs or 0) * steps_per_epoch, config.lr or 0.0
    warm_up = max(1, round(WARM_UP * total))
    rate = keras.optimizers.schedules.CosineDecay(
        peak / warm_up, max(1, total - warm_up), warmup_target=peak, warmup_steps=warm_up
    )
    if MODELS[config.model.name].optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
    return keras.optimizers.Adam(rate)


def run_epochs(
    config: TrainConfig, data: Data, model: Any, optimizer: Any, history: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Trains what is left, and yields each epoch's figures once its state is on disk."""
    steps, out = data.train.steps_per_epoch, config.out
    n_epochs, best = config.epochs or 0, out / f"best-{STATE}"
    step = make_step(config, model, optimizer, len(data.classes))
    predict = predictor(model, data.shape)
    batches = iter(data.batches(len(history) * steps, n_epochs * steps))
    while len(history) < n_epochs and not is_stale(history, config.patience):
        started, waited, losses, n_right = time.perf_counter(), 0.0, [], 0
        for _ in range(steps):
            asked = time.perf_counter()
            images, labels = next_batch(data.train, batches)
            waited += time.perf_counter() - asked
            loss, right = step(images, labels)
            losses.append(float(loss))
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"the loss is {losses[-1]} in step {len(losses)} of epoch {len(history) + 1}: "
                    f"training has diverged; give a lower --lr than {config.lr:g}"
                )
            n_right += int(right)
        seconds = time.perf_counter() - started
        checked = evaluate([predict], *data.validation)
        history.append(
            {
                "epoch": len(history) + 1,
                "loss": float(np.mean(losses)),
                "accuracy": n_right / data.train.n_samples,
                "val_loss": checked.loss,
                "val_accuracy": checked.accuracy,
                "seconds": round(seconds, 3),
                "input_seconds": round(waited, 3),
                "losses": losses,
            }
        )
        progress = {"history": history}
        if config.patience is not None and best_epoch(history) == len(history):
            save_state(best, model, optimizer, progress)
        save_state(out / STATE, model, optimizer, progress)
        yield {k: v for k, v in history[-1].items() if k != "losses"}
    if config.patience is not None:
        restore_state(best, model, optimizer)


def next_batch(stream: Stream, batches: Iterator[Any]) -> Any:
    """The next batch.

    Raises: UserError for what went wrong while it was made, and not TensorFlow's account of it.
    """
    try:
        return next(batches)
    except Exception:
        if isinstance(stream.failure, UserError):
            raise stream.failure from None
        if stream.failure is not None:
            raise UserError(f"an image can no longer be read: {stream.failure}") from None
        raise


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The number, from 1, of the epoch with the least validation loss."""
    return 1 + int(np.argmin([epoch["val_loss"] for epoch in history]))


def is_stale(history: list[dict[str, Any]], patience: int | None) -> bool:
    return bool(history) and patience is not None and len(history) - best_epoch(history) >= patience


def make_step(config: TrainConfig, model: Any, optimizer: Any, n_classes: int) -> Any:
    """A graph from (images, labels) to (mean loss with penalties, how many were right)."""
    import keras
    import tensorflow as tf

    loss_of = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=config.label_smoothing or 0.0
    )
    optimizer.build(model.trainable_variables)

    def step(images: Any, labels: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = loss_of(tf.one_hot(labels, n_classes), logits)
            loss += tf.add_n(model.losses) if model.losses else 0.0
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, -1) == labels, tf.int64))
        return loss, right

    return tf.function(step, reduce_retracing=True)  # the last batch of an epoch is smaller


def finish(
    config: TrainConfig, data: Data, model: Any, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """Writes model, figures and pictures; gives what is in `result.json`."""
    from trainers import pictures

    split = "validation" if data.test is None else "test"
    source, shown = data.test or data.validation
    found = evaluate([predictor(model, data.shape)], source, shown)
    result = {
        "split": split,
        "accuracy": found.accuracy,
        "loss": found.loss,
        "n": len(shown),
        "per_class": found.per_class,
        "epochs": len(history),
        "best_epoch": best_epoch(history),
        "seconds": round(sum(epoch["seconds"] for epoch in history), 3),
        "input_seconds": round(sum(epoch["input_seconds"] for epoch in history), 3),
        "parameters": int(model.count_params()),
        "machine": {"cores": os.cpu_count(), "threads": config.threads},
    }
    out = config.out
    for name in [MODEL, *(["model.h5"] if config.save_h5 else [])]:
        model.save(out / f".partial.{name}")
        (out / f".partial.{name}").rename(out / name)
    names = [name for name in history[0] if name != "losses"]
    rows = [",".join(names), *(",".join(str(epoch[n]) for n in names) for epoch in history)]
    write_atomically(out / HISTORY, "".join(f"{row}\n" for row in rows).encode())
    pictures.curves(history, out / "curves.png")
    pictures.confusion(found, data.classes, out / "confusion.png")
    pictures.mistakes(found, source, shown, out / "mistakes.png")
    write_atomically(out / RESULT, canonical_json(result).encode())
    return result
