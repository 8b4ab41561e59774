"""The command line: parse, build a config, call one function, print. Decides nothing."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import traceback
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from datasets.data_dir import DATA_DIR
from datasets.errors import Damaged, UserError, printable, system_failure
from datasets.storage import kind, local_path, place
from datasets.storage_errors import as_storage_error
from pipeline.options import (
    POLICY,
    SIZE,
    DataDir,
    Engine,
    ImageSize,
    Limit,
    Log,
    LogFormat,
    Output,
    Policy,
    Quiet,
    augmenting,
    with_options_of,
    wrong_words,
)
from trainers.options import RunDataDir, RunDataset, training

if TYPE_CHECKING:
    from pipeline.plan import AugmentConfig
    from trainers.config import TrainConfig

GC_EVERY = 100_000  # new objects
PACKAGE = "augmentation-pipeline"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def tell_version(is_asked: bool) -> None:
    """Prints the version and ends, if that is what was asked for."""
    if is_asked:
        from importlib.metadata import version

        print(f"{PACKAGE} {version(PACKAGE)}")
        raise typer.Exit


@app.callback()
def pipeline(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=tell_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Image augmentation: one policy, offline into shards or online while training."""


@app.command()
@with_options_of(augmenting)
def augment(
    config: AugmentConfig,
    online: Annotated[
        bool,
        typer.Option(
            "--online/--offline", help="Stream without writing anything, or write shards."
        ),
    ] = False,
    engine: Annotated[
        Engine,
        typer.Option(help="With --online: augment with OpenCV or with TensorFlow graph ops."),
    ] = Engine.opencv,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be written.")
    ] = False,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Write augmented copies of a data set to shards, or stream them without writing (--online)."""
    from pipeline.report import Report, report_summary

    report = Report(quiet=quiet, log_format=log_format.value)
    if online:
        from pipeline.online import stream_through

        report.result(stream_through(config, engine.value, report))
        return
    from pipeline import offline

    if dry_run:
        report.result(offline.dry_run(config, report))
    else:
        report_summary(offline.materialize(config, report), report)


@app.command()
@with_options_of(training)
def train(
    config: TrainConfig,
    ensemble: Annotated[
        int,
        typer.Option(min=1, max=100, help="Number of networks, trained with consecutive seeds."),
    ] = 1,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the run in --out once this one has finished."),
    ] = False,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Train an image classifier on augmented images and report its test accuracy."""
    from dataclasses import replace

    from pipeline.report import Report
    from trainers.train import train as run

    config = replace(config, overwrite=overwrite)
    run(config, ensemble, Report(quiet=quiet, log_format=log_format.value))


def apart(config: TrainConfig, context: typer.Context) -> TrainConfig:
    """The same, in a folder beside that of a single training, unless --out names one."""
    from dataclasses import replace

    from trainers.config import run_folder

    data = config.data
    folder = run_folder(
        context.params["out"], data.offline, data.augment.dataset, str(context.info_name)
    )
    return replace(config, out=folder)


@app.command()
@with_options_of(training)
def crossval(
    config: TrainConfig,
    context: typer.Context,
    folds: Annotated[int, typer.Option(min=2, max=1000, help="Number of folds.")] = 5,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Cross-validate: train one network per fold and report mean accuracy."""
    from pipeline.report import Report
    from trainers.crossval import crossval as run

    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(run(apart(config, context), folds, report))


@app.command()
@with_options_of(training)
def ablate(
    config: TrainConfig,
    context: typer.Context,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Trainings of each variant, with consecutive seeds.")
    ] = 3,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler; its workers train.")
    ] = None,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Leave out each op and regularizer in turn and report what that costs."""
    from pipeline.report import Report
    from trainers.ablate import ablate as run

    at_once = len(os.sched_getaffinity(0)) // config.threads
    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(run(apart(config, context), seeds, scheduler, at_once, report))


@app.command()
def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, .keras or .h5 files; several are also averaged."),
    ],
    dataset: RunDataset = None,
    data_dir: RunDataDir = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split to evaluate on.", show_default="what the run was tested on"),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Policy of the --tta copies.", show_default="the run's", **POLICY),
    ] = None,
    tta: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            help="Augmented copies to average with the original (test-time augmentation).",
        ),
    ] = 0,
    image_size: ImageSize = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Augmentation seed of the --tta copies.", show_default="the run's"),
    ] = None,
    limit: Limit = None,
    max_bad: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of inputs allowed to be unusable.", show_default="the run's"
        ),
    ] = None,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Evaluate trained models, each alone and averaged."""
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
        max_bad=max_bad,
    )
    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(evaluate_runs(config, report))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, tested on the same images.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=local_path, metavar="PATH", help="Folder to write figures and pictures to."
        ),
    ] = Path("compare"),
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Compare runs tested on the same images, with significance tests."""
    from pipeline.report import Report
    from trainers.compare import compare as run

    report = Report(quiet=quiet, log_format=log_format.value)
    report.result(run(runs, out, report))


@app.command()
def visualize(
    model: Annotated[Path, typer.Argument(help="Run folder, or a .keras or .h5 file.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="Only list the layers and their output shapes.")
    ] = False,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Layer whose kernels and feature maps to draw; repeatable.",
            show_default="the first convolution, and the last layer with maps",
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Image file to use; repeatable.", show_default="samples of a data set"),
    ] = None,
    dataset: RunDataset = None,
    data_dir: RunDataDir = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split to take samples from.", show_default="test; train without one"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, max=40, help="Number of samples, chosen by hash.", show_default="4"),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Class that Grad-CAM explains.",
            show_default="each image's most likely",
        ),
    ] = None,
    channels: Annotated[
        int,
        typer.Option(min=1, max=64, help="Feature maps to draw per layer, the strongest ones."),
    ] = 16,
    image_size: Annotated[
        Any, typer.Option(help="Input size in pixels, for a model that takes any size.", **SIZE)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="PATH",
            help="Folder to write pictures to.",
            show_default="pictures/ in the run folder, or beside the model file",
        ),
    ] = None,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Draw what a trained model has learned: kernels, feature maps and Grad-CAM."""
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
        typer.Option(
            "--deep", help="Also decode every row and recompute a sample of rows from the source."
        ),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="With --deep: the source to compare with; fails if it is missing or has changed."
        ),
    ] = None,
    data_dir: DataDir = DATA_DIR,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Check every hash, size and count of an output; exits with 3 if anything is damaged."""
    from pipeline.check import check
    from pipeline.report import Report

    report = Report(quiet=quiet, log_format=log_format.value)
    found = check(folder, deep=deep, dataset=dataset, data_dir=data_dir, report=report)
    report.result(printable(found))


@app.command()
def inspect(
    folder: Output,
) -> None:
    """Show what an output holds: its job, counts per class and copy, parameter ranges and size."""
    from pipeline.contents import print_contents

    print_contents(folder)


@app.command()
def preview(
    folder: Annotated[
        Path | None,
        typer.Argument(
            parser=place,
            metavar="[PATH|URL]",
            help="Output of `pipeline augment` to show instead of a data set.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name (see `pipeline datasets`), path or URL of a data set to preview.",
            show_default="digits",
        ),
    ] = None,
    data_dir: DataDir = DATA_DIR,
    split: Annotated[str, typer.Option(help="Split to show.")] = "train",
    policy: Policy = None,
    copies: Annotated[int, typer.Option(min=1, max=16, help="Augmented copies to show.")] = 6,
    samples: Annotated[int, typer.Option(min=1, max=40, help="Samples to show.")] = 8,
    image_size: ImageSize = None,
    seed: Annotated[int | None, typer.Option(help="Augmentation seed.", show_default="0")] = None,
    out: Annotated[
        Path, typer.Option(parser=local_path, metavar="PATH", help="PNG file to write.")
    ] = Path("preview.png"),
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Draw a contact sheet: one row per sample, one column per copy, with parameters below."""
    from pipeline import preview as sheet
    from pipeline.report import Report

    report = Report(quiet=quiet, log_format=log_format.value)
    if folder is None:
        name = "digits" if dataset is None else dataset
        tiles = sheet.from_source(
            name, data_dir, split, policy, samples, copies, image_size, seed or 0, report
        )
    elif (dataset, policy, image_size, seed) == (None, None, None, None):
        tiles = sheet.from_output(folder, split, samples, copies)
    else:
        raise UserError(
            f"{folder}: shown as it is stored; --dataset, --policy, --image-size and --seed belong "
            "to a preview of a data set: leave them out, or leave the folder out"
        )
    report.result(sheet.draw(tiles, out))


@app.command("datasets")
def list_datasets() -> None:
    """List the data sets known by name."""
    from datasets.catalog import CATALOG, describe

    for name in CATALOG:
        print(f"{name:16} {describe(name)}")
    print("or a path: a folder of class folders, a CSV or Parquet list, a folder of shards")


@app.command()
def policies() -> None:
    """List policy presets, ops and their options."""
    from pipeline.policy import catalogue

    print(catalogue())


@app.command()
def clean(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=place,
            metavar="[PATH|URL]",
            help="An output, or a folder that holds outputs.",
        ),
    ] = Path("augmented"),
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Remove leftovers of unfinished runs."""
    from datasets.clean import clean as remove
    from pipeline.report import Report

    report, n = Report(quiet=quiet, log_format=log_format.value), 0
    for line in remove(folder):
        report.result(printable(line))
        n += 1
    if n:
        report.result(f"{folder}: {n} removed or put back")
    else:  # a typing error, or the first night of a job
        report.result(f"{folder}: {'nothing to remove' if kind(folder) else 'nothing is there'}")


STEPS = (augment, train, crossval, ablate, evaluate, compare, visualize, verify, preview, clean)
# A step of a job is this installation, whatever lies in the current folder.
STEP = (sys.executable, "-P", "-c", "import cli; cli.step()")


@app.command("run")
def run_file(
    job: Annotated[Path, typer.Argument(help="YAML job file, such as jobs/demo.yaml.")],
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a key of the job (KEY=VALUE) or an option of every step of a command "
            "(COMMAND.OPTION=VALUE); repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the command line of each step.")
    ] = False,
    log_format: Log = LogFormat.text,
    quiet: Quiet = False,
) -> None:
    """Run a job file's steps; run it again to resume."""
    from pipeline.history import timestamp
    from pipeline.jobfile import read_job_file
    from pipeline.report import Report
    from pipeline.service import command_lines, run_job
    from pipeline.steps import command_of

    changes, commands = change or [], {step.__name__: command_of(step) for step in STEPS}
    found = read_job_file(job, changes, commands, os.environ, timestamp()[:10])
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
            metavar="PATH",
            help="Folders of job histories, or of outputs, on this machine.",
            show_default="history",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Show each job's last run; exits with 3 if one failed."""
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
    """Print the JSON Schema of job files, for use in editors."""
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


def stop(signum: int, frame: FrameType | None) -> None:
    """Raises: Stopped, as soon as it may be."""
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        # Raised there, it could leave the lock of all imports held, and a thread that imports would
        # wait for it without end: so once more, in a moment.
        Timer(0.01, os.kill, (os.getpid(), signum)).start()
        return
    raise Stopped(128 + signum)


def main(log_format: str | None = None) -> NoReturn:
    """The command `pipeline`; exit codes as in `datasets.errors`, or 128 and the signal."""
    # Libraries and plans make a million objects that live to the end. To look at them for garbage
    # each time there are 700 more, and once more at the end, would take half a second.
    gc.set_threshold(GC_EVERY)
    atexit.register(gc.freeze)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # by `nohup`
            signal.signal(number, stop)
    # A name that standard output has no letters for must not end what is done otherwise.
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    logs = log_format or asked_log_format(sys.argv)
    try:
        check_packages()
        raise SystemExit(app(prog_name="pipeline", standalone_mode=False))
    except Stopped as err:  # only here, when no progress bar would wipe the line away
        is_training = {"train", "crossval", "ablate"} & {*sys.argv[1:2]}
        message = (
            f"stopped; the same command goes on from there{' with --resume' * bool(is_training)}"
        )
        tell_error(logs, message, int(err.code or 0))
        raise
    except UserError as err:
        tell_error(logs, str(err), err.exit_code, mistakes=err.mistakes)
        raise SystemExit(err.exit_code) from None
    except TyperException as err:
        if words := wrong_words(err):
            tell_error(logs, words, UserError.exit_code)
        raise SystemExit(UserError.exit_code) from None
    except Exception as err:
        if (told := as_storage_error("object storage", err) or system_failure(err)) is not None:
            tell_error(logs, str(told), told.exit_code)
            raise SystemExit(told.exit_code) from None
        if logs == "text":
            raise
        tell_error(logs, repr(err), 1, traceback="\n" + traceback.format_exc())
        raise SystemExit(1) from None


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
