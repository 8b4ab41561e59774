"""The command line: parse, build a config, call one function, print. Decides nothing."""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from datasets.errors import UserError

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
    str, typer.Option(help="Name (see `pipeline datasets`), or path of a folder or list of images.")
]
DataDir = Annotated[
    Path,
    typer.Option(
        help="Where known data sets lie or are downloaded to.",
        envvar="PIPELINE_DATA",
        show_default="~/.cache/augmentation-pipeline",
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="Ops joined by |, a preset (see `pipeline policies`), or a file saved by "
        "albumentations.save. Default: one that suits the data set."
    ),
]
ImageSize = Annotated[
    str | None, typer.Option(help="Resize and centre-crop to S x S or HxW pixels, antialiased.")
]
Seed = Annotated[int, typer.Option(help="Augmentation seed.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="This many samples of each split, chosen by hash.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Errors only.")]
Log = Annotated[LogFormat, typer.Option(help="Progress as text, or as JSON lines for a collector.")]

DATA_DIR = Path.home() / ".cache" / "augmentation-pipeline"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`224` -> (224, 224), `240x320` -> (240, 320): height first."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() and 1 <= int(p) <= 16_384 for p in parts):
        raise UserError(
            f"--image-size {text}: expected pixels such as 224 or 240x320 (height x width), "
            "each 1 to 16384"
        )
    return int(parts[0]), int(parts[-1])


# Options of augment that are about files, or about other processes.
ONLY_OFFLINE = (
    *("eval_splits", "original", "format", "encoding", "quality", "compression"),
    *("workers", "scheduler", "overwrite", "dry_run"),
)


def refuse_offline_options(context: typer.Context) -> None:
    """Raises: UserError if one was given, which --online would not heed."""
    for name in ONLY_OFFLINE:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise UserError(f"--online: writes no shards; leave out {option}")


@app.command()
def augment(
    context: typer.Context,
    online: Annotated[
        bool, typer.Option("--online/--offline", help="Stream without writing, or write shards.")
    ] = False,
    dataset: Dataset = "digits",
    data_dir: DataDir = DATA_DIR,
    split: Annotated[str, typer.Option(help="The split to augment, or all.")] = "train",
    eval_splits: Annotated[
        bool, typer.Option(help="Write the other splits too, originals only.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder; of --online: a contact sheet.",
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be written.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="Of --online: OpenCV's kernel, or TensorFlow's graph ops.")
    ] = Engine.opencv,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Write augmented copies of a data set to shards, or make them and keep none (--online)."""
    from pipeline.plan import AugmentConfig
    from pipeline.report import Report, summary_lines

    options = {} if workers is None else {"workers": workers}
    config = AugmentConfig(
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
        image_size=parse_size(image_size),
        seed=seed,
        block_samples=block_samples,
        scheduler=scheduler,
        limit=limit,
        max_bad=max_bad,
        overwrite=overwrite,
        **options,
    )
    report = Report(quiet=quiet, log_format=log_format.value)
    if online:
        refuse_offline_options(context)
        from pipeline.online import stream_through

        print(stream_through(config, engine.value, report))
        return
    from pipeline import offline

    if dry_run:
        print(offline.dry_run(config, report))
    else:
        summary_lines(offline.materialize(config, report), report)


@app.command()
def train(
    online: Annotated[
        bool, typer.Option("--online", help="Augment while training (the default).")
    ] = False,
    offline: Annotated[
        Path | None, typer.Option(help="Train from this output of `pipeline augment` instead.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name or path, as for augment.", show_default="digits")
    ] = None,
    data_dir: DataDir = DATA_DIR,
    model: Annotated[
        Model, typer.Option(help="cnn: a small residual network; textbook: the classic one.")
    ] = Model.cnn,
    policy: Policy = None,
    engine: Annotated[
        Engine, typer.Option(help="OpenCV's kernel, or TensorFlow's graph ops.")
    ] = Engine.opencv,
    per_epoch: Annotated[
        PerEpoch, typer.Option(help="From shards: another copy in each epoch, or all in each.")
    ] = PerEpoch.one_copy,
    image_size: ImageSize = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the network's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
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
    ensemble: Annotated[
        int, typer.Option(min=1, max=100, help="Train so many, with the seeds that follow.")
    ] = 1,
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
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Train a network on augmented images, and say what it is worth on images it has not seen."""
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
    from pipeline.report import Report
    from trainers.config import TrainConfig, run_folder
    from trainers.data import DataConfig
    from trainers.models import ModelConfig
    from trainers.train import train as run

    augment = AugmentConfig(
        dataset="digits" if dataset is None else dataset,
        data_dir=data_dir,
        policy=policy,
        image_size=parse_size(image_size),
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
        batch_size=batch_size,
        order_seed=seed,
    )
    network = ModelConfig(model.value, dropout, weight_decay, bias_decay, activity_l1, batch_norm)
    config = TrainConfig(
        data=data,
        model=network,
        out=run_folder(out, offline, dataset),
        epochs=epochs,
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
    run(config, ensemble, Report(quiet=quiet, log_format=log_format.value))


@app.command()
def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, .keras or .h5 files; several are averaged.")
    ],
    dataset: Annotated[
        str | None, typer.Option(help="Name or path.", show_default="the first run's")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where known data sets lie.",
            envvar="PIPELINE_DATA",
            show_default="the first run's, or ~/.cache/augmentation-pipeline",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "test",
    policy: Annotated[
        str | None, typer.Option(help="Of --tta.", show_default="the first run's")
    ] = None,
    tta: Annotated[
        int, typer.Option(min=0, max=1000, help="Average so many augmented copies of each too.")
    ] = 0,
    image_size: ImageSize = None,
    seed: Annotated[
        int | None, typer.Option(help="Of --tta.", show_default="the first run's")
    ] = None,
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
        image_size=parse_size(image_size),
        seed=seed,
        limit=limit,
    )
    print(evaluate_runs(config, Report(quiet=quiet, log_format=log_format.value)))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Output of `pipeline augment`.")],
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also decode every row, and recompute some from the source."),
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="For --deep: the source, where it is not found by its name.")
    ] = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Check every hash, size and count of an output; exit code 3 if anything is damaged."""
    from pipeline.check import check

    print(check(folder, deep=deep, dataset=dataset, data_dir=data_dir))


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Output of `pipeline augment`.")],
) -> None:
    """Show what an output holds: job, counts per class and copy, ranges of parameters, size."""
    from pipeline.contents import describe

    describe(folder)


@app.command()
def preview(
    folder: Annotated[
        Path | None, typer.Argument(help="Output of `pipeline augment`, instead of a data set.")
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
) -> None:
    """Draw a contact sheet: a row a sample, a column a copy, with the parameters under each."""
    from pipeline import preview as sheet

    size = parse_size(image_size)
    if folder is None:
        name = "digits" if dataset is None else dataset
        tiles = sheet.from_source(name, data_dir, split, policy, samples, copies, size, seed or 0)
    elif (dataset, policy, size, seed) == (None, None, None, None):
        tiles = sheet.from_output(folder, split, samples, copies)
    else:
        raise UserError(
            f"{folder}: shown as it is stored; --dataset, --policy, --image-size and --seed belong "
            "to a preview of a data set: leave them out, or leave the folder out"
        )
    print(sheet.draw(tiles, out))


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
        Path, typer.Argument(help="An output, or a folder under which outputs lie.")
    ] = Path("augmented"),
) -> None:
    """Remove what unfinished runs have left beside outputs."""
    from datasets.commit import clean as remove

    n = 0
    for line in remove(folder):
        print(line)
        n += 1
    print(f"{n} unfinished under {folder}")


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


def main() -> NoReturn:
    """The command `pipeline`; exit codes as in `datasets.errors`, or 128 and the signal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        check_packages()
        raise SystemExit(app())
    except Stopped:  # only here, when no progress bar would wipe the line away
        print(
            "pipeline: stopped; the same command goes on from there (train: with --resume)",
            file=sys.stderr,
        )
        raise
    except UserError as err:
        print(f"pipeline: {err}", file=sys.stderr)
        raise SystemExit(err.exit_code) from None


if __name__ == "__main__":
    main()
