"""What a training is: its options, and all that its weights depend on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets.catalog import data_name, whereabouts
from datasets.errors import UserError
from datasets.schema import as_utf8
from datasets.storage import is_object
from pipeline.default_out import default_out
from pipeline.job import probe, versions
from pipeline.output_place import refuse_nesting
from trainers.backbones import BACKBONES, weights_digest
from trainers.data import Data, DataConfig
from trainers.models import MODELS, ModelConfig
from trainers.transfer import FREEZE_EPOCHS, TransferConfig, resolved_transfer

PACKAGES = ("augmentation-pipeline", "keras", "tensorflow")
# Of `identity`: what rounds elsewhere.
ARITHMETIC = ("threads", "gpus", "devices", "probe", "network_probe", "versions")


@dataclass(frozen=True)
class TrainConfig:
    """The options of `pipeline train`. What is None is the network's own (see `trainers.models`).

    seed: Of the initial weights, dropout and the order; the augmentation has its own, in `data`.
    patience: Epochs without a better validation loss after which training ends, with the best
      weights.
    gpus: So many train together, each on its part of every batch; with 1 and none, the processor.
    overwrite: Another run may lie in `out`, which this one replaces once it is finished.
    inexact: A run may go on where the arithmetic is another: threads, libraries, the processor.
    command: The words that these options came from, `pipeline` the first; empty where none did.
    """

    data: DataConfig
    model: ModelConfig
    out: Path
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    label_smoothing: float | None = None
    patience: int | None = None
    seed: int = 0
    threads: int = 1
    mixed_precision: bool = False
    gpus: int = 1
    resume: bool = False
    overwrite: bool = False
    inexact: bool = False
    save_h5: bool = False
    command: tuple[str, ...] = ()


def run_folder(
    out: Path | None, offline: Path | None, dataset: str | None, command: str = "train"
) -> Path:
    """The absolute path of --out, or of where the command writes without it.

    Raises: UserError if it lies in the folder of its own data, or around it.
    """
    data = str(offline or dataset or "digits")
    folder = (out or default_out(command, data_name(data))).expanduser().resolve()
    if folder in (Path.cwd(), Path(folder.anchor)):
        raise UserError(f"--out {out}: expected a folder to make, such as runs/digits")
    if as_utf8(str(folder)) != os.fsencode(folder):
        raise UserError(f"--out {out}: is not UTF-8, and TensorFlow cannot write there; rename it")
    refuse_nesting(folder, data)
    return folder


def resolved(config: TrainConfig) -> TrainConfig:
    """The same, with every None replaced by what the network's recipe says.

    Raises: UserError for options that the network does not have.
    """
    recipe, model, data = MODELS[config.model.name], config.model, config.data

    def chosen(asked: Any, own: Any) -> Any:
        return own if asked is None else asked

    transfer, augment = model.transfer or TransferConfig(), data.augment
    is_frozen = transfer.mode == "freeze"
    epochs = chosen(config.epochs, FREEZE_EPOCHS if is_frozen else recipe.epochs)
    if model.name not in BACKBONES and model.transfer is not None:
        raise UserError(
            f"--model {model.name}: learns from nothing; leave out --weights, --alpha, --mode and "
            f"what goes with them, or choose one of {', '.join(BACKBONES)}"
        )
    if model.name in BACKBONES:
        transfer = resolved_transfer(transfer, model.name, epochs, data.offline is not None)
        if is_frozen:
            refuse_with_features(config, transfer)
        if config.save_h5 and not BACKBONES[model.name].fits_h5:
            raise UserError(
                f"--save-h5: that format cannot hold {model.name}; leave it out, model.keras holds "
                "all of it"
            )
        if not data.offline and augment.image_size is None:
            augment = replace(augment, image_size=(BACKBONES[model.name].default,) * 2)
    return replace(
        config,
        data=replace(
            data, augment=augment, batch_size=chosen(config.batch_size, recipe.batch_size)
        ),
        epochs=epochs,
        lr=chosen(config.lr, recipe.lr),
        label_smoothing=chosen(config.label_smoothing, recipe.label_smoothing),
        model=replace(
            model,
            dropout=chosen(model.dropout, recipe.dropout),
            weight_decay=chosen(model.weight_decay, recipe.weight_decay),
            batch_norm=chosen(model.batch_norm, recipe.batch_norm),
            transfer=transfer if model.name in BACKBONES else None,
        ),
    )


def refuse_with_features(config: TrainConfig, transfer: TransferConfig) -> None:
    """Raises: UserError for what cannot be where features stand for images."""
    data = str(config.data.offline or config.data.augment.dataset)
    refuse_nesting((transfer.features or Path()).expanduser().resolve(), data)
    for given, option in (
        (config.data.engine != "opencv", f"--engine {config.data.engine}"),
        (config.model.activity_l1, "--activity-l1"),
    ):
        if given:
            raise UserError(f"{option}: means nothing to --mode freeze; leave it out")


def identity(config: TrainConfig, data: Data) -> dict[str, Any]:
    """All that the weights depend on, as JSON. Not in it: paths, the cache, logging."""
    recipe = MODELS[config.model.name]
    model = asdict(config.model)
    if config.model.transfer:
        # Where features lie is no part of a run, what they are made from is.
        known = {k: v for k, v in model["transfer"].items() if k != "features"}
        model["transfer"] = known | {"weights": weights_digest(known["weights"])}
    names = ("epochs", "lr", "label_smoothing", "patience", "seed", "threads", "gpus")
    return {
        "source": data.content(),
        "classes": list(data.classes),
        "shape": list(data.shape),
        "val_fraction": config.data.val_fraction,
        **({"fold": "{} of {}".format(*data.fold)} if data.fold else {}),
        "policy": data.policy,
        "augment_seed": data.augment_seed,
        "per_epoch": config.data.per_epoch,
        "engine": config.data.engine,
        "blocks": data.train.source.n_blocks,
        "batch_size": config.data.batch_size,
        "model": model,
        "mixed_precision": config.mixed_precision,
        **{name: getattr(config, name) for name in names},
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "build"},
        "probe": probe(),
        "network_probe": network_probe(),
        "devices": devices(),
        "versions": versions() | {name: version(name) for name in PACKAGES},
    }


def devices() -> list[str]:
    """What trains: `CPU`, or the names of the GPUs."""
    import tensorflow as tf

    found = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in found]
    return [str(detail.get("device_name", "GPU")) for detail in details] or ["CPU"]


@lru_cache(maxsize=1)
def network_probe() -> str:
    """16 hex digits that are equal where this machine multiplies equally: a convolution forth and
    back, and a matrix product. Processors with other instructions round elsewhere."""
    import numpy as np
    import tensorflow as tf

    values = np.sin(np.arange(8 * 16 * 16 * 16, dtype=np.float32) * np.float32(0.7))
    images = tf.constant(values.reshape(8, 16, 16, 16))
    kernel = tf.constant(values[: 9 * 16 * 32].reshape(3, 3, 16, 32))
    digest = hashlib.sha256()
    for kind in (tf.float32, tf.bfloat16):
        with tf.GradientTape() as tape:
            inputs = [tf.cast(images, kind), tf.cast(kernel, kind)]
            tape.watch(inputs)
            out = tf.nn.conv2d(*inputs, 1, "SAME")
            product = tf.matmul(tf.reshape(out, (64, -1)), tf.reshape(out, (-1, 64)))
            total = tf.reduce_sum(product)
        for tensor in (out, product, *tape.gradient(total, inputs)):
            digest.update(tf.cast(tensor, tf.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def origin(config: TrainConfig) -> dict[str, Any]:
    """Where the data was found, for `pipeline evaluate`; another place may hold the same data. And
    the command that repeats the run from its start."""
    augment, offline = config.data.augment, config.data.offline
    at = whereabouts(augment.dataset)
    if offline:
        at = str(offline if is_object(offline) else offline.expanduser().resolve())
    return {
        "dataset": at,
        "data_dir": str(augment.data_dir.expanduser().resolve()),
        "image_size": None if offline else augment.image_size,
        "limit": None if offline else augment.limit,
        "max_bad": augment.max_bad,
        "command": [word for word in config.command if word != "--resume"],
    }
