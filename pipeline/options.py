"""Options of the command line that several commands share, each written once, and those of
`augment`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from datasets.data_dir import DATA_DIR
from datasets.errors import UserError, similar
from datasets.storage import place

if TYPE_CHECKING:
    from pipeline.plan import AugmentConfig

T = TypeVar("T")


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
        help="Name (see `pipeline datasets`), or path or URL of a folder or a list of images."
    ),
]
Output = Annotated[
    Path,
    typer.Argument(parser=place, metavar="PATH|URL", help="Output of `pipeline augment`."),
]
DataDir = Annotated[
    Path,
    typer.Option(
        help="Folder of the data sets known by name, and where they are downloaded to.",
        envvar="PIPELINE_DATA",
        show_default="~/.cache/augmentation-pipeline",
    ),
]


def checked_policy(text: str) -> str:
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
    from datasets.images import MAX_PIXELS

    if int(parts[0]) * int(parts[-1]) > MAX_PIXELS:
        raise UserError(f"--image-size {text}: expected at most {MAX_PIXELS:,} pixels")
    return int(parts[0]), int(parts[-1])


POLICY: Any = {"parser": checked_policy, "metavar": "OPS|PRESET|FILE"}
Policy = Annotated[
    str | None,
    typer.Option(
        help="Ops joined by |, a preset (see `pipeline policies`), or a file saved by "
        "albumentations.save.",
        show_default="one that suits the data set",
        **POLICY,
    ),
]
# (height, width); called `Any`, since Typer would take a tuple for two words.
SIZE: Any = {"parser": read_size, "metavar": "S|HxW"}
ImageSize = Annotated[
    Any, typer.Option(help="Resize (antialiased) and centre-crop to SxS or HxW pixels.", **SIZE)
]
Seed = Annotated[int, typer.Option(help="Augmentation seed.")]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Use only this many samples of each split, chosen by hash."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only: no progress, no results.")]
Log = Annotated[
    LogFormat,
    typer.Option(
        help="text: progress on standard error, results on standard output. json: everything as "
        "JSON lines on standard error."
    ),
]


def wrong_words(err: Any) -> str:
    """What Typer refuses on a command line, in one line; nothing where it has printed the help.

    err: A `TyperException`.
    """
    from pydantic import ValidationError

    cause = err.__cause__
    if not isinstance(cause, ValidationError):
        context = getattr(err, "ctx", None)
        see = f"; see `{context.command_path} --help`" if context else ""
        message: str = err.format_message()
        return message.rstrip(".?") + see if message else ""
    found = cause.errors()[0]
    where = f"{err.param.opts[0]} {found['input']}"
    choices = [str(choice) for choice in err.param.type_descriptor.choices or ()]
    if not choices:
        told = found["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
        return f"{where}: {told.partition(', unable to parse')[0]}"
    hint = similar(found["input"], choices)
    return "; ".join([f"{where}: expected one of {', '.join(choices)}", *filter(None, [hint])])


# Options of augment that are about files, or about other processes.
ONLY_OFFLINE = (
    *("eval_splits", "original", "format", "encoding", "quality", "compression"),
    *("workers", "scheduler", "overwrite", "publish", "keep", "dry_run"),
)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line has the option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_mixed_options(context: typer.Context) -> None:
    """Raises: UserError if one was given that --online, or shards, would not heed."""
    if not context.params["online"]:
        if is_given(context, "engine"):
            raise UserError("--engine: shards are OpenCV's; leave it out, or give --online")
        return
    for name in ONLY_OFFLINE:
        if is_given(context, name):
            option = "--" + name.replace("_", "-")
            raise UserError(f"--online: writes no shards; leave out {option}")


def augmenting(
    context: typer.Context,
    dataset: Dataset = "digits",
    data_dir: DataDir = DATA_DIR,
    split: Annotated[str, typer.Option(help="Split to augment; all for every split.")] = "train",
    eval_splits: Annotated[
        bool, typer.Option(help="Also write the other splits, as originals only.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="PATH|URL",
            help="Output folder, or an s3://, gs:// or az:// URL; with --online, a contact sheet.",
            show_default="augmented/NAME, augmented/NAME-online.png",
        ),
    ] = None,
    policy: Policy = None,
    copies: Annotated[int, typer.Option(help="Augmented copies of each sample.")] = 4,
    original: Annotated[bool, typer.Option(help="Also write each original, as copy 0.")] = True,
    format: Annotated[Format, typer.Option(help="File format of the shards.")] = Format.parquet,
    encoding: Annotated[
        Encoding,
        typer.Option(
            help="How images are stored. auto: raw if all have one size of at most 64 px, "
            "else jpeg."
        ),
    ] = Encoding.auto,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality.", show_default="95")
    ] = None,
    compression: Annotated[
        Compression, typer.Option(help="Compression of Parquet columns.")
    ] = Compression.none,
    image_size: ImageSize = None,
    seed: Seed = 0,
    block_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="At most this many samples per shard, on average.",
            show_default="16 MB decoded, at most 4096",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Worker processes; 0 does it all in this one.", show_default="one per core"
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Address of a running Dask scheduler; its workers write the shards."),
    ] = None,
    limit: Limit = None,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share of inputs allowed to be unusable.")
    ] = 0.01,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite/--resume",
            help="Replace the output in --out, or resume an unfinished run.",
        ),
    ] = False,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish",
            help="Write a new version below --out and point `latest` at it.",
        ),
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --publish: keep this many versions; older ones go once nobody reads them, "
            "as does what unfinished runs left.",
            show_default="all",
        ),
    ] = None,
) -> AugmentConfig:
    """What `augment` is to write."""
    from pipeline.plan import AugmentConfig

    refuse_mixed_options(context)
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


def options_of(function: Callable[..., Any]) -> list[Parameter]:
    """The function's parameters, their annotations evaluated, but for a leading config."""
    found = [p for p in signature(function).parameters.values() if p.name != "config"]
    scope = function.__globals__
    kind = Parameter.KEYWORD_ONLY  # in any order, whether they have a default or not
    return [p.replace(kind=kind, annotation=eval(p.annotation, scope)) for p in found]


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
