"""Options of the commands that train, and of those that read what was trained."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datasets.errors import UserError
from datasets.storage import local_path, place
from pipeline.options import (
    DATA_DIR,
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


RunDataset = Annotated[str | None, typer.Option(help="Name or path.", show_default="the run's")]
RunDataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where known data sets lie.",
        envvar="PIPELINE_DATA",
        show_default="the run's, or ~/.cache/augmentation-pipeline",
    ),
]


def training(
    online: Annotated[
        bool, typer.Option("--online", help="Augment while training (the default).")
    ] = False,
    offline: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="PATH|URL",
            help="Train from this output of `pipeline augment` instead.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name or path, as for augment.", show_default="digits")
    ] = None,
    data_dir: DataDir = DATA_DIR,
    model: Annotated[
        Model,
        typer.Option(
            case_sensitive=False,
            help="cnn: a small residual network; textbook: the classic one; the others have "
            "learned from ImageNet.",
        ),
    ] = Model.cnn,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Of those: imagenet, none, or a file without the top.", show_default="imagenet"
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0.05, help="Width of a MobileNet or MobileNetV2.", show_default="1"),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Of transfer: the head alone learns; all does; the head, then the top stages too.",
            show_default="two-phase",
        ),
    ] = None,
    head_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of the first of two phases.", show_default="a quarter"),
    ] = None,
    unfreeze: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stages that learn in the second, from the top.", show_default="2"
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Of the learning rate, from stage to stage.", show_default="1"
        ),
    ] = None,
    copies: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of freeze: copies of each sample to keep features of.", show_default="4"
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="PATH",
            help="Of freeze: the folder under which features are kept; it may be removed.",
            show_default="features",
        ),
    ] = None,
    policy: Policy = None,
    engine: Annotated[
        Engine, typer.Option(help="OpenCV's kernel, or TensorFlow's graph ops.")
    ] = Engine.opencv,
    per_epoch: Annotated[
        PerEpoch, typer.Option(help="From shards: another copy in each epoch, or all in each.")
    ] = PerEpoch.one_copy,
    image_size: ImageSize = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the network's own.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images a step. Default: the network's own.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(min=1e-12, help="Highest learning rate. Default: the network's.")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=0.95, help="Default: the network's own.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="L2 of kernels. Default: the network's own.")
    ] = None,
    bias_decay: Annotated[float, typer.Option(min=0, help="L2 of biases.")] = 0.0,
    activity_l1: Annotated[float, typer.Option(min=0, help="L1 of activations.")] = 0.0,
    batch_norm: Annotated[
        bool | None,
        typer.Option("--batch-norm/--no-batch-norm", help="Default: the network's own."),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="Default: the network's own.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of initial weights, dropout and order.")
    ] = 0,
    augment_seed: Annotated[
        int | None, typer.Option(min=0, help="Of the augmentation.", show_default="the seed")
    ] = None,
    block_samples: Annotated[
        int | None, typer.Option(min=1, help="As for augment; shards bring theirs.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the network. Other numbers round elsewhere.", show_default="the cores"
        ),
    ] = None,
    limit: Limit = None,
    val_fraction: Annotated[
        float, typer.Option(min=0.001, max=0.9, help="Share of samples held out by hash.")
    ] = 0.1,
    max_bad: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of inputs that may be unusable.", show_default="0.01"
        ),
    ] = None,
    cache: Annotated[
        Cache | None, typer.Option(help="Where decoded images are kept.", show_default="memory")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every hash of the shards first.")
    ] = False,
    mixed_precision: Annotated[
        bool,
        typer.Option(
            "--mixed-precision",
            help="Multiply in bfloat16: quicker on new GPUs, and on CPUs with AMX.",
        ),
    ] = False,
    gpus: Annotated[
        int, typer.Option(min=1, help="So many share each batch; without a GPU, the CPU trains.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="PATH",
            help="Run folder.",
            show_default="runs/NAME, or runs/NAME-COMMAND",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where this run stopped.")] = False,
    inexact: Annotated[
        bool,
        typer.Option(
            "--inexact", help="Resume with other threads or libraries too: to other weights."
        ),
    ] = False,
    save_h5: Annotated[bool, typer.Option("--save-h5", help="Write model.h5 too.")] = False,
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
