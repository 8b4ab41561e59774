"""`pipeline train`: from a data set or shards to a folder with a model and what it is worth."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.commit import (
    hold,
    partial_folder,
    partial_folders,
    replaced_folder,
)
from datasets.errors import (
    EnvironmentFailed,
    ImageError,
    SourceError,
    UserError,
    first_line,
)
from datasets.manifest import sha256_text
from datasets.schema import canonical_json
from pipeline.report import Report, counted, duration
from pipeline.stream import import_tensorflow
from trainers.backbones import NONE, split_at_features
from trainers.config import TrainConfig, identity
from trainers.data import Data, open_data
from trainers.evaluate import ENSEMBLE, load_model
from trainers.features import as_features
from trainers.fit import STATE, restored, run_epochs
from trainers.models import build
from trainers.results import TensorBoard, is_whole, read_result, write_ensemble, write_run
from trainers.run_folder import (
    begin_whole,
    is_done,
    is_in_the_way,
    prepare_run,
    put_back,
    refuse_another_whole,
    refuse_foreign,
)
from trainers.state import History

FEW_STEPS = 100  # on 320 photos the loss of 24 steps went up


def train(
    config: TrainConfig, n_members: int, report: Report, is_part: bool = False
) -> dict[str, Any]:
    """What `result.json` holds, once the run folder is complete. Of several members each is a run
    in a folder of its own, with the seeds that follow one another, and their guesses are averaged.

    is_part: Of a larger whole: if it is finished it is not made again.
    Raises: UserError of each kind. A run that was killed goes on, to the same weights.
    """
    if config.seed + n_members > 2**32:
        raise UserError(f"--seed {config.seed}: expected at most {2**32 - n_members}")
    if config.overwrite and n_members > 1:
        raise UserError("--overwrite: replaces one network; choose another --out for --ensemble")
    with training_folder(config):
        if n_members > 1:
            return train_ensemble(config, n_members, report)
        if is_part:
            return train_part(config, open_training(config, report), report)
        put_back(config.out)
        refuse_foreign(config)
        data = open_training(config, report)
        if config.overwrite and is_in_the_way(config, data):
            return train_beside(config, data, report)
        if is_done(config, data):
            return done_before(config, data, report)
        return train_one(config, data, report)


def train_beside(config: TrainConfig, data: Data, report: Report) -> dict[str, Any]:
    """A run that takes the place of the one in its folder when it is finished. Until then it lies
    beside that, hidden, and goes on from there if it was killed."""
    out, known = config.out, canonical_json(identity(config, data))
    partial = partial_folder(out, sha256_text(known))
    # Under its own name, which it tells of itself.
    hidden = replace(config, out=partial / out.name, resume=True)
    result = train_one(hidden, data, report, final=out)
    out.rename(replaced_folder(partial))
    (partial / out.name).rename(out)
    for path in partial_folders(out):  # those of other nights too, that nobody would go on with
        shutil.rmtree(path)
    report.say(f"{out}: replaced the earlier run", event="replaced")
    return result


def open_training(config: TrainConfig, report: Report, with_test: bool = True) -> Data:
    """The data, with TensorFlow there and made to repeat. It takes seconds to load, so whatever is
    wrong with the data is told before.

    Raises: UserError for data that cannot be trained on, and for options that exclude each other.
    """
    if config.gpus > 1 and config.model.activity_l1:
        # Replicas are threads that trace one Keras model, which keeps such losses in one list.
        raise UserError("--activity-l1: with one GPU only; leave it out, or give --gpus 1")
    data = open_data(config.data, report, with_test)
    tf = import_tensorflow(config.threads, config.gpus)
    tf.config.experimental.enable_op_determinism()
    if report.quiet or report.log_format == "json":
        import keras

        keras.config.disable_interactive_logging()  # its bar of a download
    return data


@contextmanager
def training_folder(config: TrainConfig) -> Iterator[None]:
    """Within it the run folder is held.

    Raises: UserError for what goes wrong with files.
    """
    try:
        with hold(config.out):
            yield
    except ImageError as err:
        raise SourceError(f"an image can no longer be used: {err}") from err
    except OSError as err:
        raise EnvironmentFailed(
            f"{err.filename or config.out}: {err.strerror or err}; fix that, then go on with "
            "--resume"
        ) from err
    except Exception as err:
        if not is_out_of_memory(err):
            raise
        raise UserError(
            f"there is not enough memory ({first_line(err)[:200]}); choose a smaller --batch-size "
            f"than {config.data.batch_size}, a smaller --image-size, or another --model"
        ) from err


def is_out_of_memory(err: Exception) -> bool:
    """Whether Python or TensorFlow, which may not be imported, asked for more than there is."""
    return isinstance(err, MemoryError) or type(err).__name__ == "ResourceExhaustedError"


def train_ensemble(config: TrainConfig, n_members: int, report: Report) -> dict[str, Any]:
    """Several networks on the same data, each a run in a folder of its own, and all together.

    Raises: OutputError if the folder holds anything else.
    """
    out, members = config.out, [config.out / f"member-{i}" for i in range(n_members)]
    listed = [member.name for member in members]
    refuse_another_whole(config, ENSEMBLE, listed, "ensemble")
    data = open_training(config, report)
    begin_whole(config, ENSEMBLE, listed, "ensemble")
    for i, member in enumerate(members):
        seed = config.seed + i
        report.say(f"member {i + 1} of {n_members}", event="member", out=str(member))
        part = replace(config, out=member, seed=seed)
        with training_folder(part):
            train_part(part, data.ordered_by(seed), report)
    result = write_ensemble(out, data, [load_model(member) for member in members], members)
    tell(out, result, f"{n_members} members", report)
    return result


def train_part(config: TrainConfig, data: Data, report: Report) -> dict[str, Any]:
    """The result of a run that is part of several; one that is finished is not made again."""
    if not is_whole(config.out):
        return train_one(config, data, report)
    prepare_run(config, data)
    return read_result(config.out)


def done_before(config: TrainConfig, data: Data, report: Report) -> dict[str, Any]:
    """The result of a finished run, which stays as it is."""
    prepare_run(config, data)
    result = read_result(config.out)
    tell(config.out, result, "trained before; nothing to do", report)
    return result


def tell(out: Path, result: dict[str, Any], how: str, report: Report) -> None:
    """Says what a finished run is worth."""
    split = result["split"]
    accuracy, loss = result[f"{split}_accuracy"], result[f"{split}_loss"]
    report.say(
        f"{out}: {split} accuracy {accuracy:.4f}, loss {loss:.4f}, {how}",
        event="done",
        out=str(out),
        loss=loss,
        **{f"{split}_accuracy": accuracy},
    )


def train_one(
    config: TrainConfig, data: Data, report: Report, final: Path | None = None
) -> dict[str, Any]:
    """One network, from its first epoch or its last state to a complete run folder.

    final: Where it will stand, if not there.
    Raises: OutputError if the folder holds another run; UserError for batches smaller than --gpus.
    """
    import keras
    import tensorflow as tf

    keras.backend.clear_session()
    keras.utils.set_random_seed(config.seed)
    strategy = tf.distribute.get_strategy()
    if config.gpus > 1:
        strategy = tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(config.gpus)])
    size = config.data.batch_size
    if min(size, data.train.n_samples % size or size) < config.gpus:
        raise UserError(
            f"--gpus {config.gpus}: a batch, or the last of an epoch, has fewer images; choose "
            "another --batch-size"
        )
    with strategy.scope():
        precision = "mixed_bfloat16" if config.mixed_precision else "float32"
        model = build(config.model, data.shape, len(data.classes), config.seed, precision)
        is_begun = prepare_run(config, data)
        learner, shown, begun = model, data, time.monotonic()
        if config.model.transfer and config.model.transfer.mode == "freeze":
            learner, shown = split_at_features(model)[1], as_features(config, data, model, report)
        features_seconds = time.monotonic() - begun
        history, optimizer = History(), None
        if is_begun:
            state, is_finished = config.out / STATE, is_whole(config.out)
            history, optimizer = restored(config, learner, shown, state, is_finished)
        say_what_to_expect(config, data, shown, report)
        started, board = time.monotonic(), TensorBoard(config.out, history.epochs)
        for epoch in run_epochs(config, shown, learner, history, optimizer, report):
            board.write(epoch)
            report.say(
                f"epoch {epoch['epoch']} of {config.epochs}: loss {epoch['loss']:.4f}, accuracy "
                f"{epoch['accuracy']:.4f}, validation loss {epoch['val_loss']:.4f}, accuracy "
                f"{epoch['val_accuracy']:.4f}, {epoch['seconds']:.1f} s",
                event="epoch",
                **epoch,
            )
    result = write_run(config, data, model, history, features_seconds)
    took = duration(time.monotonic() - started)
    tell(final or config.out, result, f"{counted(len(history.epochs), 'epoch')}, {took}", report)
    return result


def say_what_to_expect(config: TrainConfig, data: Data, shown: Data, report: Report) -> None:
    """Says, before the first epoch, what of the options will look worse or better than it is.

    shown: What the network learns from: the data, or features of them.
    """
    n_copies, n_epochs = shown.train.source.n_copies, config.epochs or 0
    n_steps, transfer = n_epochs * shown.train.steps_per_epoch, config.model.transfer
    if config.patience and data.test is None:
        report.say(
            "there is no split test: --patience chooses the epoch by the images that the "
            "accuracy is of, which looks a little better than it is",
            event="chosen_by_validation",
        )
    if (transfer is None or transfer.weights == NONE) and n_steps < FEW_STEPS:
        report.say(
            f"few steps ({n_steps} in all) for a network that learns from nothing, which may "
            "guess worse than by chance: give more --epochs or a smaller --batch-size, or for "
            "photos a --model with weights, such as MobileNetV2",
            event="few_steps",
        )
    if config.data.per_epoch == "one-copy" and n_epochs > n_copies:
        report.say(
            f"{counted(n_copies, 'copy', 'copies')} for {config.epochs} epochs: after "
            "the last the first is shown again",
            event="copies",
        )
