"""`pipeline train`: from a data set or shards to a folder with a model and what it is worth."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.commit import (
    hold,
    is_replaced,
    partial_folder,
    partial_folders,
    replaced_folder,
)
from datasets.errors import (
    EnvironmentFailed,
    ImageError,
    OutputError,
    SourceError,
    UserError,
    first_line,
)
from datasets.manifest import sha256_text
from datasets.schema import as_utf8, canonical_json
from datasets.storage import write_atomically
from pipeline.job import differences
from pipeline.report import Report, counted, duration
from pipeline.stream import import_tensorflow
from trainers.backbones import NONE, split_at_features
from trainers.config import ARITHMETIC, TrainConfig, identity, origin
from trainers.data import Data, open_data
from trainers.evaluate import CONFIG, ENSEMBLE, load_model
from trainers.features import as_features
from trainers.fit import STATE, restored, run_epochs
from trainers.models import build
from trainers.results import TensorBoard, is_whole, read_result, write_ensemble, write_run
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
        if is_done_elsewhere(config, data):
            return done_before(config, data, report)
        return train_one(config, data, report)


def put_back(out: Path) -> None:
    """Gives a run its place again that `train_beside` was killed replacing."""
    for path in partial_folders(out):
        if is_replaced(path) and not out.exists():
            path.rename(out)


def refuse_foreign(config: TrainConfig) -> None:
    """Before data are read. Raises: OutputError if the folder holds something else than a run."""
    out = config.out
    if out.is_dir() and not all(path.name.startswith(".") for path in out.iterdir()):
        stored_run(config)


def is_in_the_way(config: TrainConfig, data: Data) -> bool:
    """Whether a run lies in the folder that this one cannot go on with.

    Raises: OutputError if it is something else, which nobody replaces.
    """
    make_folder(config.out)
    if not any(config.out.iterdir()):
        return False
    before = stored_run(config)["run"]
    try:
        refuse_another_run(config, before, identity(config, data))
    except OutputError:
        return True
    return False


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


def begin_whole(config: TrainConfig, file: str, parts: Any, what: str) -> None:
    """Makes the folder of several runs, each in a folder inside, or finds it.

    file: What tells it from others; parts: what that says of it.
    Raises: OutputError if the folder holds anything else, or --resume is missing.
    """
    refuse_another_whole(config, file, parts, what)
    write_atomically(config.out / file, as_utf8(canonical_json(parts)))


def refuse_another_whole(config: TrainConfig, file: str, parts: Any, what: str) -> None:
    """Raises: OutputError if the folder holds anything else, or --resume is missing."""
    out, listed = config.out, canonical_json(parts)
    make_folder(out)
    if any(out.iterdir()) and not (out / file).is_file():
        raise OutputError(f"{out}: exists and is no {what}; choose another --out")
    if (out / file).is_file() and (out / file).read_bytes() != as_utf8(listed):
        raise OutputError(f"{out}: is another {what}; choose another --out")
    if (out / file).is_file() and not config.resume:
        raise OutputError(f"{out}: holds this {what}; go on with --resume, or choose another --out")


def make_folder(out: Path) -> None:
    """Makes a run folder, which this process holds, or clears it of what a killed run left.

    Raises: OutputError if it is a file.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()


def train_part(config: TrainConfig, data: Data, report: Report) -> dict[str, Any]:
    """The result of a run that is part of several; one that is finished is not made again."""
    if not is_whole(config.out):
        return train_one(config, data, report)
    prepare_run(config, data)
    return read_result(config.out)


def is_done_elsewhere(config: TrainConfig, data: Data) -> bool:
    """Whether this run was finished with other arithmetic, which no epoch is left for."""
    if not config.resume or not is_whole(config.out):
        return False
    before, known = stored_run(config)["run"], identity(config, data)
    refuse_another_run(config, before, known)
    return before != as_json(known)


def done_before(config: TrainConfig, data: Data, report: Report) -> dict[str, Any]:
    """The result of a finished run, which stays as it is."""
    prepare_run(config, data)
    result = read_result(config.out)
    tell(config.out, result, "trained before, with other threads or libraries", report)
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
        if config.patience and data.test is None:
            report.say(
                "there is no split test: --patience chooses the epoch by the images that the "
                "accuracy is of, which looks a little better than it is",
                event="chosen_by_validation",
            )
        learner, shown, begun = model, data, time.monotonic()
        if config.model.transfer and config.model.transfer.mode == "freeze":
            learner, shown = split_at_features(model)[1], as_features(config, data, model, report)
        features_seconds = time.monotonic() - begun
        history, optimizer = History(), None
        if is_begun:
            history, optimizer = restored(config, learner, shown, config.out / STATE)
        n_copies = shown.train.source.n_copies
        n_steps = (config.epochs or 0) * shown.train.steps_per_epoch
        transfer = config.model.transfer
        if (transfer is None or transfer.weights == NONE) and n_steps < FEW_STEPS:
            report.say(
                f"few steps ({n_steps} in all) for a network that learns from nothing, which may "
                "guess worse than by chance: give more --epochs or a smaller --batch-size, or for "
                "photos a --model with weights, such as MobileNetV2",
                event="few_steps",
            )
        if config.data.per_epoch == "one-copy" and (config.epochs or 0) > n_copies:
            report.say(
                f"{counted(n_copies, 'copy', 'copies')} for {config.epochs} epochs: after "
                "the last the first is shown again",
                event="copies",
            )
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


def prepare_run(config: TrainConfig, data: Data) -> bool:
    """Makes the run folder, or finds it; whether epochs of this run are done there.

    Raises: OutputError if the folder holds anything else, or --resume is missing.
    """
    out, known = config.out, identity(config, data)
    make_folder(out)
    is_new = not any(out.iterdir())
    earlier, found_at = [], origin(config)
    if not is_new:
        stored = stored_run(config)
        refuse_another_run(config, stored["run"], known)
        earlier = stored["earlier"]
        if is_whole(out):
            known = stored["run"]
        elif stored["run"] != as_json(known):  # it went on with other arithmetic: said for ever
            earlier = [*earlier, stored["run"]]
        found_at["command"] = stored["command"] or found_at["command"]  # the one that began it
    stored = {"run": known, "origin": found_at, "earlier": earlier}
    write_atomically(out / CONFIG, as_utf8(canonical_json(stored)))
    return not is_new and (out / STATE).is_file()


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(canonical_json(value)))


def stored_run(config: TrainConfig) -> dict[str, Any]:
    """What the run folder says of its run.

    Raises: OutputError if it is none.
    """
    path = config.out / CONFIG
    if not path.is_file():
        raise OutputError(
            f"{config.out}: exists and is not a run of `pipeline train`; choose another --out"
        )
    try:
        found = json.loads(path.read_text())
        command = list(dict(found["origin"]).get("command", ()))
        return {"run": dict(found["run"]), "earlier": list(found["earlier"]), "command": command}
    except (ValueError, LookupError, TypeError):
        raise OutputError(f"{path}: is of something else; choose another --out") from None


def refuse_another_run(config: TrainConfig, before: dict[str, Any], known: dict[str, Any]) -> None:
    """Raises: OutputError, with what differs, if the run there cannot go on as the one wanted."""
    changed, out = differences(before, known), config.out
    exact = [{k: v for k, v in run.items() if k not in ARITHMETIC} for run in (before, known)]
    if differences(*exact):
        raise OutputError(
            f"{out}: is another run ({changed}); choose another --out, or give `pipeline train` "
            "--overwrite to replace it once this one is finished"
        )
    if not config.resume:
        raise OutputError(f"{out}: holds this run; go on with --resume, or choose another --out")
    if changed and not config.inexact and not is_whole(out):
        raise OutputError(
            f"{out}: would not end with the same weights ({changed}); make it equal, or give "
            "--inexact to go on all the same"
        )
