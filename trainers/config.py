"""What a training is: its options, and all that its weights depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets.errors import UserError
from pipeline.job import probe, versions
from pipeline.plan import refuse_nesting
from trainers.data import Data, DataConfig
from trainers.models import MODELS, ModelConfig


@dataclass(frozen=True)
class TrainConfig:
    """The options of `pipeline train`. What is None is the network's own (see `trainers.models`).

    seed: Of the initial weights, dropout and the order; the augmentation has its own, in `data`.
    patience: Epochs without a better validation loss after which training ends, with the best
      weights.
    gpus: So many train together, each on its part of every batch. 0: whatever TensorFlow finds.
    inexact: A run may go on where the arithmetic is another: threads, libraries, the processor.
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
    mixed_precision: bool = False
    gpus: int = 0
    resume: bool = False
    inexact: bool = False
    save_h5: bool = False


ARITHMETIC = ("threads", "gpus", "probe", "versions")  # of `identity`: what rounds elsewhere


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
    names = ("epochs", "lr", "label_smoothing", "patience", "seed", "threads", "gpus")
    return {
        "data": data.content(),
        "classes": list(data.classes),
        "shape": list(data.shape),
        "val_fraction": config.data.val_fraction,
        "policy": data.policy,
        "augment_seed": data.augment_seed,
        "epoch": config.data.epoch,
        "engine": config.data.engine,
        "blocks": data.train.source.n_blocks,
        "batch_size": config.data.batch_size,
        "model": asdict(config.model),
        "mixed_precision": config.mixed_precision,
        **{name: getattr(config, name) for name in names},
        "probe": probe(),
        "versions": versions() | {name: version(name) for name in ("keras", "tensorflow")},
    }


def origin(config: TrainConfig) -> dict[str, Any]:
    """Where the data was found, for `pipeline evaluate`; another place may hold the same data."""
    augment, offline = config.data.augment, config.data.offline
    known = Path(augment.dataset).exists()
    return {
        "dataset": str(offline or (Path(augment.dataset).resolve() if known else augment.dataset)),
        "data_dir": str(augment.data_dir),
        "image_size": None if offline else augment.image_size,
    }
