"""The command line: parse, build a config, call one function, print. Decides nothing."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from datasets.errors import Damaged, UserError, printable
from datasets.storage import failure, place

if TYPE_CHECKING:
    from pipeline.plan import AugmentConfig
    from trainers.config import TrainConfig

T = TypeVar("T")
GC_EVERY = 100_000  # new objects

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Image augmentation: one policy, offline into shards or online while training.",
)


class Format(StrEnum):
    parquet = "parquet"
    tfrecord = "tfrecord"


class Encoding(StrEnum):
    auto = "auto"
    raw = "raw"
    png = "png"
    jpeg = "jpeg"


class Compression(StrEnum):
    none = "none"
    snappy = "snappy"
    zstd = "zstd"


class Engine(StrEnum):
    opencv = "opencv"
    tensorflow = "tensorflow"


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


class Cache(StrEnum):
    memory = "memory"
    disk = "disk"
    none = "none"


class LogFormat(StrEnum):
    text = "text"
    json = "json"


Dataset = Annotated[
    str,
    typer.Option(
        help="Name (see `pipeline datasets`), or path or URL of a folder or list of images."
    ),
]
Output = Annotated[
    Path,
    typer.Argument(parser=place, metavar="PATH|URL", help="Output of `pipeline augment`."),
]
DataDir = Annotated[
    Path,
    typer.Option(
        help="Where known data sets lie or are downloaded to.",
        envvar="PIPELINE_DATA",
        show_default="~/.cache/augmentation-pipeline",
    ),
]


def read_policy(text: str) -> str:
    """The text, if it is a policy: a job asks for that before its first step."""
    from pipeline.policy import parse_policy

    parse_policy(text)
    return text


def read_size(text: str) -> tuple[int, int]:
    """`224` -> (224, 224), `240x320` -> (240, 320): height first."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() and 1 <= int(p) <= 16_384 for p in parts):
        raise UserError(
            f"--image-size {text}: expected pixels such as 224 or 240x320 (height x width), "
            "each 1 to 16384"
        )
    return int(parts[0]), int(parts[-1])


POLICY: Any = {"parser": read_policy, "metavar": "OPS|PRESET|FILE"}
Policy = Annotated[
    str | None,
    typer.Option(
        help="Ops joined by |, a preset (see `pipeline policies`), or a file saved by "
        "albumentations.save. Default: one that suits the data set.",
        **POLICY,
    ),
]
# (height, width); called `Any`, since Typer would take a tuple for two words.
SIZE: Any = {"parser": read_size, "metavar": "S|HxW"}
ImageSize = Annotated[
    Any, typer.Option(help="Resize and centre-crop to S x S or HxW pixels, antialiased.", **SIZE)
]
RunDataset = Annotated[str | None, typer.Option(help="Name or path.", show_default="the run's")]
RunDataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where known data sets lie.",
        envvar="PIPELINE_DATA",
        show_default="the run's, or ~/.cache/augmentation-pipeline",
    ),
]
Seed = Annotated[int, typer.Option(help="Augmentation seed.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="This many samples of each split, chosen by hash.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Errors only; no results either.")]
Log = Annotated[
    LogFormat,
    typer.Option(
        help="Progress as text on standard error and results on standard output, or all as JSON "
        "lines on standard error."
    ),
]

DATA_DIR = Path.home() / ".cache" / "augmentation-pipeline"


# Options of augment that are about files, or about other processes.
ONLY_OFFLINE = (
    *("eval_splits", "original", "format", "encoding", "quality", "compression"),
    *("workers", "scheduler", "overwrite", "publish", "keep", "dry_run"),
)


def refuse_offline_options(context: typer.Context) -> None:
    """Raises: UserError if one was given, which --online would not heed."""
    for name in ONLY_OFFLINE:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise UserError(f"--online: writes no shards; leave out {option}")


def augmenting(
    dataset: Dataset = "digits",
    data_dir: DataDir = DATA_DIR,
    split: Annotated[str, typer.Option(help="The split to augment, or all.")] = "train",
    eval_splits: Annotated[
        bool, typer.Option(help="Write the other splits too, originals only.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="PATH|URL",
            help="Output folder, or s3://, gs://, az://; of --online: a contact sheet.",
            show_default="augmented/NAME, augmented/NAME-online.png",
        ),
    ] = None,
    policy: Policy = None,
    copies: Annotated[int, typer.Option(help="Augmented copies of each sample.")] = 4,
    original: Annotated[bool, typer.Option(help="Write the original too, as copy 0.")] = True,
    format: Annotated[Format, typer.Option(help="Format of the shards.")] = Format.parquet,
    encoding: Annotated[
        Encoding, typer.Option(help="auto: raw up to 64 px where all sizes are equal, else jpeg.")
    ] = Encoding.auto,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality.", show_default="95")
    ] = None,
    compression: Annotated[
        Compression, typer.Option(help="Of Parquet columns.")
    ] = Compression.none,
    image_size: ImageSize = None,
    seed: Seed = 0,
    block_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples a shard, on average at most.",
            show_default="64 MB decoded, at most 4096",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Local processes; 0: all in this one.", show_default="the cores"),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler to use instead.")
    ] = None,
    limit: Limit = None,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share of inputs that may be unusable.")
    ] = 0.01,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite/--resume", help="Replace what is there, or go on where a run stopped."
        ),
    ] = False,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish",
            help="Write a version beside the last into --out, and let `latest` in there be it.",
        ),
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of --publish: remove all but so many versions, unless somebody reads them."
        ),
    ] = None,
) -> AugmentConfig:
    """What `augment` is to write."""
    from pipeline.plan import AugmentConfig

    options = {} if workers is None else {"workers": workers}
    return AugmentConfig(
        dataset=dataset,
        data_dir=data_dir,
        out=out,
        split=split,
        eval_splits=eval_splits,
        policy=policy,
        copies=copies,
        original=original,
        format=format.value,
        encoding=encoding.value,
        quality=quality,
        compression=compression.value,
        image_size=image_size,
        seed=seed,
        block_samples=block_samples,
        scheduler=scheduler,
        limit=limit,
        max_bad=max_bad,
        overwrite=overwrite,
        publish=publish,
        keep=keep,
        **options,
    )


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
            help="Of freeze: the folder under which features are kept.", show_default="features"
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
        int | None, typer.Option(help="Of the augmentation.", show_default="the seed")
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
        float, typer.Option(min=0, max=1, help="Share of inputs that may be unusable.")
    ] = 0.01,
    cache: Annotated[Cache, typer.Option(help="Where decoded images are kept.")] = Cache.memory,
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
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/NAME")] = None,
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
    if offline and (dataset, image_size, augment_seed, block_samples, limit) != (None,) * 5:
        raise UserError(
            f"--offline {offline}: shards bring their own data set, size, seed, blocks and limit; "
            "leave out --dataset, --image-size, --augment-seed, --block-samples and --limit"
        )
    if offline and engine != Engine.opencv:
        raise UserError(f"--offline {offline}: shards are read as they are; leave out --engine")
    if per_epoch != PerEpoch.one_copy and not offline:
        raise UserError(f"--per-epoch {per_epoch}: online copies never end; give --offline")
    if verify and not offline:
        raise UserError("--verify: checks shards; give --offline, or leave it out")
    from pipeline.plan import AugmentConfig
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
        max_bad=max_bad,
    )
    data = DataConfig(
        augment=augment,
        offline=offline,
        per_epoch=per_epoch.value,
        engine=engine.value,
        cache=cache.value,
        verify=verify,
        val_fraction=val_fraction,
        order_seed=seed,
    )
    given: dict[str, Any] = {"weights": weights, "alpha": alpha, "mode": mode and mode.value}
    transfer = TransferConfig(
        **{name: value for name, value in given.items() if value is not None},
        head_epochs=head_epochs,
        unfreeze=unfreeze,
        layer_decay=layer_decay,
        copies=copies,
        features=features,
    )
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


def options_of(function: Callable[..., Any]) -> list[Parameter]:
    """The function's parameters, their annotations evaluated, but for a leading config."""
    found = [p for p in signature(function).parameters.values() if p.name != "config"]
    kind = Parameter.KEYWORD_ONLY  # in any order, whether they have a default or not
    return [p.replace(kind=kind, annotation=eval(p.annotation, globals())) for p in found]


def with_options_of(make: Callable[..., T]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that has `make`'s options before its own, and gets what that makes of them first.

    Typer reads options from a function's signature: so each is written once for all commands. As
    `make` refuses what does not go together, a job asks it before its first step.
    """
    theirs = options_of(make)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = options_of(command)

        def run(**options: Any) -> None:
            made = make(**{option.name: options.pop(option.name) for option in theirs})
            command(made, **options)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.make = make  # type: ignore[attr-defined]
        run.__signature__ = Signature([*theirs, *own])  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in [*theirs, *own]}
        return run

    return decorate


@app.command()
@with_options_of(augmenting)
def augment(
    config: AugmentConfig,
    context: typer.Context,
    online: Annotated[
        bool, typer.Option("--online/--offline", help="Stream without writing, or write shards.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="Of --online: OpenCV's kernel, or TensorFlow's graph ops.")
    ] = Engine.opencv,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be written.")
    ] = False,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Write augmented copies of a data set to shards, or make them and keep none (--online)."""
    from pipeline.report import Report, summary_lines

    report = Report(quiet=quiet, log_format=log_format.value)
    if online:
        refuse_offline_options(context)
        from pipeline.online import stream_through

        report.result(stream_through(config, engine.value, report))
        return
    from pipeline import offline

    if dry_run:
        report.result(offline.dry_run(config, report))
    else:
        summary_lines(offline.materialize(config, report), report)


@app.command()
@with_options_of(training)
def train(
    config: TrainConfig,
    ensemble: Annotated[
        int, typer.Option(min=1, max=100, help="Train so many, with the seeds that follow.")
    ] = 1,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace another run in --out, once this one is finished."
        ),
    ] = False,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Train a network on augmented images, and say what it is worth on images it has not seen."""
    from dataclasses import replace

    from pipeline.report import Report
    from trainers.train import train as run

    config = replace(config, overwrite=overwrite)
    run(config, ensemble, Report(quiet=quiet, log_format=log_format.value))


@app.command()
@with_options_of(training)
def crossval(
    config: TrainConfig,
    folds: Annotated[
        int, typer.Option(min=2, max=1000, help="So many parts, each tested once.")
    ] = 5,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Train on all folds of a data set but one, for each of them, and say what that is worth."""
    from pipeline.report import Report
    from trainers.crossval import crossval as run

    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(run(config, folds, report))


@app.command()
@with_options_of(training)
def ablate(
    config: TrainConfig,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Trainings of each, with the seeds that follow.")
    ] = 3,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler whose workers train.")
    ] = None,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Leave out each op of the policy and each regularizer, and say what that costs."""
    from pipeline.report import Report
    from trainers.ablate import ablate as run

    at_once = len(os.sched_getaffinity(0)) // config.threads
    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(run(config, seeds, scheduler, at_once, report))


@app.command()
def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, .keras or .h5 files; several are averaged.")
    ],
    dataset: RunDataset = None,
    data_dir: RunDataDir = None,
    split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "test",
    policy: Annotated[
        str | None, typer.Option(help="Of --tta.", show_default="the run's", **POLICY)
    ] = None,
    tta: Annotated[
        int, typer.Option(min=0, max=1000, help="Average so many augmented copies of each too.")
    ] = 0,
    image_size: ImageSize = None,
    seed: Annotated[int | None, typer.Option(help="Of --tta.", show_default="the run's")] = None,
    limit: Limit = None,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Say what trained models are worth on a data set, each alone and all together."""
    from pipeline.report import Report
    from trainers.evaluate import EvaluateConfig, evaluate_runs

    config = EvaluateConfig(
        paths=tuple(runs),
        default_data_dir=DATA_DIR,
        dataset=dataset,
        data_dir=data_dir,
        split=split,
        policy=policy,
        tta=tta,
        image_size=image_size,
        seed=seed,
        limit=limit,
    )
    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(evaluate_runs(config, report))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, tested on the same images.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for figures and pictures.")] = Path("compare"),
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Say how runs differ, and whether one guesses better on the same images or may be lucky."""
    from pipeline.report import Report
    from trainers.compare import compare as run

    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(run(runs, out, report))


@app.command()
def visualize(
    model: Annotated[Path, typer.Argument(help="Run folder, or a .keras or .h5 file.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="Only list the layers and what they give.")
    ] = False,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw its kernels and feature maps; repeatable.",
            show_default="the first convolution, and the last layer with maps",
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="File to look at; repeatable.", show_default="samples of a data set"),
    ] = None,
    dataset: RunDataset = None,
    data_dir: RunDataDir = None,
    split: Annotated[str, typer.Option(help="The split to take samples of.")] = "test",
    samples: Annotated[int, typer.Option(min=1, max=40, help="Samples, chosen by hash.")] = 4,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="Of Grad-CAM.", show_default="the likeliest of each image"),
    ] = None,
    channels: Annotated[
        int, typer.Option(min=1, max=64, help="Feature maps of each layer, the strongest.")
    ] = 16,
    image_size: Annotated[
        Any, typer.Option(help="Size in pixels, for a model that takes any.", **SIZE)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the pictures.", show_default="pictures in or beside the model"
        ),
    ] = None,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Draw what a trained model has learnt: kernels, feature maps, and Grad-CAM."""
    from pipeline.report import Report
    from trainers.visualize import VisualizeConfig, list_layers
    from trainers.visualize import visualize as draw

    config = VisualizeConfig(
        path=model,
        default_data_dir=DATA_DIR,
        layers=tuple(layer or ()),
        images=tuple(image or ()),
        dataset=dataset,
        data_dir=data_dir,
        split=split,
        samples=samples,
        class_name=class_name,
        channels=channels,
        image_size=image_size,
        out=out,
    )
    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(list_layers(config) if layers else draw(config, report))


@app.command()
def verify(
    folder: Output,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also decode every row, and recompute some from the source."),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(help="For --deep: the source, which must then be there and as it was."),
    ] = None,
    data_dir: DataDir = DATA_DIR,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Check every hash, size and count of an output; exit code 3 if anything is damaged."""
    from pipeline.check import check
    from pipeline.report import Report

    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(printable(check(folder, deep=deep, dataset=dataset, data_dir=data_dir)))


@app.command()
def inspect(
    folder: Output,
) -> None:
    """Show what an output holds: job, counts per class and copy, ranges of parameters, size."""
    from pipeline.contents import describe

    describe(folder)


@app.command()
def preview(
    folder: Annotated[
        Path | None,
        typer.Argument(
            parser=place,
            metavar="[PATH|URL]",
            help="Output of `pipeline augment`, instead of a data set.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name or path, as for augment.", show_default="digits")
    ] = None,
    data_dir: DataDir = DATA_DIR,
    split: Annotated[str, typer.Option(help="The split to show.")] = "train",
    policy: Policy = None,
    copies: Annotated[int, typer.Option(min=1, max=16, help="Augmented copies to show.")] = 6,
    samples: Annotated[int, typer.Option(min=1, max=40, help="Samples to show.")] = 8,
    image_size: ImageSize = None,
    seed: Annotated[int | None, typer.Option(help="Augmentation seed.", show_default="0")] = None,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("preview.png"),
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Draw a contact sheet: a row a sample, a column a copy, with the parameters under each."""
    from pipeline import preview as sheet
    from pipeline.report import Report

    if folder is None:
        name = "digits" if dataset is None else dataset
        tiles = sheet.from_source(
            name, data_dir, split, policy, samples, copies, image_size, seed or 0
        )
    elif (dataset, policy, image_size, seed) == (None, None, None, None):
        tiles = sheet.from_output(folder, split, samples, copies)
    else:
        raise UserError(
            f"{folder}: shown as it is stored; --dataset, --policy, --image-size and --seed belong "
            "to a preview of a data set: leave them out, or leave the folder out"
        )
    Report(quiet=quiet, log_format=log_format.value).result(sheet.draw(tiles, out))


@app.command("datasets")
def list_datasets() -> None:
    """List the data sets that are known by name."""
    from datasets.catalog import CATALOG, describe

    for name in CATALOG:
        print(f"{name:16} {describe(name)}")
    print("or a path: a folder of class folders, a CSV or Parquet list, a folder of shards")


@app.command()
def policies() -> None:
    """List presets, ops and their options."""
    from pipeline.policy import catalogue

    print(catalogue())


@app.command()
def clean(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=place,
            metavar="[PATH|URL]",
            help="An output, or a folder under which outputs lie.",
        ),
    ] = Path("augmented"),
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Remove what unfinished runs have left beside outputs."""
    from datasets.clean import clean as remove
    from pipeline.report import Report

    report, n = Report(quiet=quiet, log_format=log_format.value), 0
    for line in remove(folder):
        report.result(printable(line))
        n += 1
    report.result(f"{n} unfinished under {folder}")


STEPS = (augment, train, crossval, ablate, evaluate, compare, visualize, verify, preview, clean)
# A step of a job is this installation, whatever lies in the current folder.
STEP = (sys.executable, "-P", "-c", "import cli; cli.step()")


@app.command("run")
def run_file(
    job: Annotated[Path, typer.Argument(help="Job file, such as jobs/demo.yaml.")],
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE, or STEP.OPTION=VALUE for every step of that command; repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the command line of each step.")
    ] = False,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Run the steps of a job file, one after another; the same again goes on where it stopped."""
    from pipeline.history import timestamp
    from pipeline.jobfile import read_job
    from pipeline.report import Report
    from pipeline.service import command_lines, run_job
    from pipeline.steps import command_of

    changes, commands = change or [], {step.__name__: command_of(step) for step in STEPS}
    found = read_job(job, changes, commands, os.environ, timestamp()[:10])
    report = Report(quiet=quiet, log_format=log_format.value)
    if dry_run:
        report.result(command_lines(found))
        return
    raise typer.Exit(run_job(found, changes, STEP, report))


@app.command()
def status(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=place,
            metavar="[PATH]...",
            help="Folders of histories, or of outputs on this machine.",
            show_default="history",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
) -> None:
    """Show the last run of each job; exit code 3 if one has failed, as a health check wants it."""
    from pipeline import status as runs

    where = [runs.known_folder(folder) for folder in folders or ()] or [Path("history")]
    found = runs.statuses(where)
    if as_json:
        print(runs.as_json(found))
    else:
        runs.show(found, where)
    raise typer.Exit(0 if runs.are_well(found) else Damaged.exit_code)


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    import json

    from pipeline.job_schema import json_schema
    from pipeline.steps import command_of

    print(json.dumps(json_schema({step.__name__: command_of(step) for step in STEPS}), indent=2))


def check_packages() -> None:
    """Raises UserError if another library's `datasets` is in front of ours."""
    import datasets

    found, ours = Path(datasets.__file__ or "").parent, Path(__file__).parent / "datasets"
    if found.resolve() != ours.resolve():
        raise UserError(
            f"the package `datasets` found is {found}, not this product's; install it into an "
            "environment of its own (pipx install augmentation-pipeline)"
        )


class Stopped(SystemExit):
    """A signal has asked for the end; its code is 128 and the signal."""


def stop(signum: int, frame: object) -> NoReturn:
    raise Stopped(128 + signum)


def main(log_format: str | None = None) -> NoReturn:
    """The command `pipeline`; exit codes as in `datasets.errors`, or 128 and the signal."""
    # Libraries and plans make a million objects that live to the end. To look at them for garbage
    # each time there are 700 more, and once more at the end, would take half a second.
    gc.set_threshold(GC_EVERY)
    atexit.register(gc.freeze)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    logs = log_format or asked_log_format(sys.argv)
    try:
        check_packages()
        raise SystemExit(app(standalone_mode=logs == "text"))
    except Stopped as err:  # only here, when no progress bar would wipe the line away
        message = "stopped; the same command goes on from there (trainings: with --resume)"
        tell_error(logs, message, int(err.code or 0))
        raise
    except UserError as err:
        tell_error(logs, str(err), err.exit_code, mistakes=err.mistakes)
        raise SystemExit(err.exit_code) from None
    except Exception as err:
        if (told := failure("object storage", err)) is not None:
            tell_error(logs, str(told), told.exit_code)
            raise SystemExit(told.exit_code) from None
        if logs == "text":
            raise
        # Wrong words are told by Typer itself as text.
        code, words = getattr(err, "exit_code", 1), getattr(err, "format_message", None)
        trace = {} if words else {"traceback": "\n" + traceback.format_exc()}
        tell_error(logs, words() if words else repr(err), code, **trace)
        raise SystemExit(code) from None


def tell_error(log_format: str, message: str, exit_code: int, **fields: Any) -> None:
    from pipeline.report import Report

    Report(log_format=log_format).error(message, exit_code, **fields)


def asked_log_format(words: list[str]) -> str:
    """What `--log-format` says; known before the options are, whose mistakes are told so too."""
    asked = " ".join(words).replace("--log-format=", "--log-format ")
    return "json" if "--log-format json" in asked else "text"


def step() -> NoReturn:
    """A step of a job, as `STEP` starts it: the number of the job's process, then the words."""
    from pipeline.parent import end_with_parent

    end_with_parent(int(sys.argv.pop(1)))
    sys.argv[0] = "pipeline"
    main(log_format="json")


if __name__ == "__main__":
    main()
