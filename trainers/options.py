"""Options of the commands that train, and of those that read what was trained."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datasets.data_dir import DATA_DIR
from datasets.errors import UserError
from datasets.storage import local_path, place
from pipeline.options import (
    Cache,
    DataDir,
    Engine,
    ImageSize,
    Limit,
    Policy,
)

if TYPE_CHECKING:
    from trainers.config import TrainConfig


class Model(StrEnum):
    cnn = "cnn"
    textbook = "textbook"
    vgg16 = "VGG16"
    vgg19 = "VGG19"
    inception_v3 = "InceptionV3"
    resnet50 = "ResNet50"
    resnet50_v2 = "ResNet50V2"
    densenet121 = "DenseNet121"
    mobilenet = "MobileNet"
    mobilenet_v2 = "MobileNetV2"
    efficientnet_v2_b0 = "EfficientNetV2B0"
    convnext_tiny = "ConvNeXtTiny"


class Mode(StrEnum):
    freeze = "freeze"
    fine_tune = "fine-tune"
    two_phase = "two-phase"


class PerEpoch(StrEnum):
    one_copy = "one-copy"
    all_copies = "all-copies"


OWN = "the network's own"

RunDataset = Annotated[
    str | None,
    typer.Option(help="Data set: its name, path or URL.", show_default="the run's"),
]
RunDataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data sets known by name.",
        envvar="PIPELINE_DATA",
        show_default="the run's, or ~/.cache/augmentation-pipeline",
    ),
]


def training(
    online: Annotated[
        bool, typer.Option("--online", help="Augment while training; this is the default.")
    ] = False,
    offline: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="PATH|URL",
            help="Train on the shards of this output of `pipeline augment` instead.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name (see `pipeline datasets`), path or URL of the data set to train on.",
            show_default="digits",
        ),
    ] = None,
    data_dir: DataDir = DATA_DIR,
    model: Annotated[
        Model,
        typer.Option(
            case_sensitive=False,
            help="Network: cnn is a small residual one, textbook the classic four convolutions; "
            "the others are backbones that can start from ImageNet weights.",
        ),
    ] = Model.cnn,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Backbone weights: imagenet, none, or a file without the top layer.",
            show_default="imagenet",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0.05, help="Width multiplier of MobileNet and MobileNetV2.", show_default="1"
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Transfer learning: train the head only, everything, or the head and then the "
            "top stages.",
            show_default="two-phase",
        ),
    ] = None,
    head_epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs in which only the head learns (two-phase).",
            show_default="a quarter of --epochs",
        ),
    ] = None,
    unfreeze: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Backbone stages, from the top, that learn in the second phase (two-phase).",
            show_default="2",
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Factor on the learning rate for each stage further down (not with freeze).",
            show_default="1",
        ),
    ] = None,
    copies: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Augmented copies of each sample to compute features of (freeze).",
            show_default="4",
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="PATH",
            help="Folder to keep computed features in (freeze); safe to delete.",
            show_default="features",
        ),
    ] = None,
    policy: Policy = None,
    engine: Annotated[
        Engine, typer.Option(help="Online: augment with OpenCV or with TensorFlow graph ops.")
    ] = Engine.opencv,
    per_epoch: Annotated[
        PerEpoch,
        typer.Option(
            help="With --offline: show a different copy of each sample in each epoch, or every "
            "copy in every epoch."
        ),
    ] = PerEpoch.one_copy,
    image_size: ImageSize = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training data.", show_default=OWN)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step.", show_default=OWN)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(min=1e-12, help="Peak learning rate.", show_default=OWN)
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.95,
            help="Share of activations dropped before the last layer.",
            show_default=OWN,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="L2 penalty on kernels.", show_default=OWN)
    ] = None,
    bias_decay: Annotated[float, typer.Option(min=0, help="L2 penalty on biases.")] = 0.0,
    activity_l1: Annotated[float, typer.Option(min=0, help="L1 penalty on activations.")] = 0.0,
    batch_norm: Annotated[
        bool | None,
        typer.Option(
            "--batch-norm/--no-batch-norm", help="Use batch normalization.", show_default=OWN
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9, help="Share of each label spread over all classes.", show_default=OWN
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after this many epochs without a lower validation loss, and keep the best.",
            show_default="never",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**32 - 1, help="Seed of initial weights, dropout and sample order."
        ),
    ] = 0,
    augment_seed: Annotated[
        int | None, typer.Option(min=0, help="Augmentation seed.", show_default="--seed")
    ] = None,
    block_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples per block, by which epochs are ordered; as given to `augment`.",
            show_default="16 MB decoded, at most 4096",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="TensorFlow threads; results depend on the number.",
            show_default="one per core",
        ),
    ] = None,
    limit: Limit = None,
    val_fraction: Annotated[
        float,
        typer.Option(min=0.001, max=0.9, help="Share of training samples held out to validate."),
    ] = 0.1,
    max_bad: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of inputs allowed to be unusable.", show_default="0.01"
        ),
    ] = None,
    cache: Annotated[
        Cache | None, typer.Option(help="Where to keep decoded images.", show_default="memory")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the hash of every shard first.")
    ] = False,
    mixed_precision: Annotated[
        bool,
        typer.Option(
            "--mixed-precision",
            help="Multiply in bfloat16: faster on recent GPUs and on CPUs with AMX.",
        ),
    ] = False,
    gpus: Annotated[
        int,
        typer.Option(min=1, help="GPUs to split each batch over; without one, the CPU trains."),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="PATH",
            help="Run folder to write.",
            show_default="runs/NAME, or runs/NAME-COMMAND",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    inexact: Annotated[
        bool,
        typer.Option(
            "--inexact",
            help="With --resume: accept other threads or library versions, and so other weights.",
        ),
    ] = False,
    save_h5: Annotated[bool, typer.Option("--save-h5", help="Also write model.h5.")] = False,
) -> TrainConfig:
    """What all commands that train have in common."""
    if online and offline:
        raise UserError("--online --offline: give one of them")
    of_source = {
        "--dataset": dataset,
        "--image-size": image_size,
        "--augment-seed": augment_seed,
        "--block-samples": block_samples,
        "--limit": limit,
        "--max-bad": max_bad,
        "--cache": cache,
    }
    given = [option for option, value in of_source.items() if value is not None]
    if offline and given:
        raise UserError(
            f"--offline {offline}: shards are read as they were written; leave out "
            f"{' and '.join(given)}"
        )
    if offline and engine != Engine.opencv:
        raise UserError(f"--offline {offline}: shards are read as they are; leave out --engine")
    if per_epoch != PerEpoch.one_copy and not offline:
        raise UserError(f"--per-epoch {per_epoch}: online copies never end; give --offline")
    if verify and not offline:
        raise UserError("--verify: checks shards; give --offline, or leave it out")
    from pipeline.plan import MAX_BAD, AugmentConfig
    from trainers.config import TrainConfig, resolved, run_folder
    from trainers.data import DataConfig
    from trainers.models import ModelConfig
    from trainers.transfer import TransferConfig

    augment = AugmentConfig(
        dataset="digits" if dataset is None else dataset,
        data_dir=data_dir,
        policy=policy,
        image_size=image_size,
        seed=seed if augment_seed is None else augment_seed,
        block_samples=block_samples,
        limit=limit,
        max_bad=MAX_BAD if max_bad is None else max_bad,
    )
    data = DataConfig(
        augment=augment,
        offline=offline,
        per_epoch=per_epoch.value,
        engine=engine.value,
        cache=(cache or Cache.memory).value,
        verify=verify,
        val_fraction=val_fraction,
        order_seed=seed,
    )
    of_transfer: dict[str, Any] = {
        "weights": weights,
        "alpha": alpha,
        "mode": mode and mode.value,
        "head_epochs": head_epochs,
        "unfreeze": unfreeze,
        "layer_decay": layer_decay,
        "copies": copies,
        "features": features,
    }
    asked = {name: value for name, value in of_transfer.items() if value is not None}
    transfer = TransferConfig(**asked) if asked else None
    network = ModelConfig(
        model.value, dropout, weight_decay, bias_decay, activity_l1, batch_norm, transfer
    )
    config = TrainConfig(
        data=data,
        model=network,
        out=run_folder(out, offline, dataset),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        label_smoothing=label_smoothing,
        patience=patience,
        seed=seed,
        threads=threads or len(os.sched_getaffinity(0)),
        mixed_precision=mixed_precision,
        gpus=gpus,
        resume=resume,
        inexact=inexact,
        save_h5=save_h5,
        command=("pipeline", *sys.argv[1:]),
    )
    return resolved(config)
