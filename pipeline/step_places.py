"""Where the steps of a job read and write, as far as their options tell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets.catalog import CATALOG, data_name
from pipeline.default_out import DEFAULT_OUT, FEATURES_FOLDER, default_out
from pipeline.steps import Step

# Options that say what is read, where they are text: `model` of a training is one of a few names.
# What `clean` is told to clean need not be there.
INPUTS = ("dataset", "offline", "weights", "runs", "model", "image", "folder")
NAMES = {*CATALOG, "imagenet", "none"}


def output_of(step: Step) -> str | None:
    """Where the step writes, its default included."""
    out = step.options.get("out")
    if out is None and step.command.name in DEFAULT_OUT:
        data = step.options.get("offline") or step.options.get("dataset", "digits")
        out = str(default_out(step.command.name, data_name(data)))
    return out


def outputs_in_history(steps: Sequence[Step], history: Path, job: str) -> Iterator[str]:
    """Steps whose output would share lock and log with the job itself, a line for each."""
    taken = (history / job).resolve()
    for number, step in enumerate(steps, 1):
        out = output_of(step)
        if out and whole_path(out) == taken:
            yield (
                f"step {number} ({step.command.name}): out: {out} is where the records of the job "
                f"{job} are; choose another place, history or name"
            )


def missing_inputs(steps: Sequence[Step]) -> Iterator[str]:
    """What steps after the first would not find hours later, a line for each: paths of this machine
    where nothing is, and where no step before will write. The first step looks by itself, at once.
    """
    written: list[Path] = []
    for number, step in enumerate(steps, 1):
        for option, path in inputs_of(step) if number > 1 else ():
            is_made = any(path.is_relative_to(out) or out.is_relative_to(path) for out in written)
            if not is_made and not os.path.exists(path):
                yield (
                    f"step {number} ({step.command.name}): {option}: {path} is not there, and no "
                    "step before writes it; correct it, or add the step that does"
                )
        kept = step.options.get("features", str(FEATURES_FOLDER))
        written += [whole_path(out) for out in (output_of(step), kept) if out and "://" not in out]


def inputs_of(step: Step) -> Iterator[tuple[str, Path]]:
    """(option, absolute path) of all that the step reads from this machine."""
    for option in step.command.options if step.command.name != "clean" else ():
        if option.name not in INPUTS or option.kind is not str:
            continue
        found: list[str] | str = step.options.get(option.name) or []
        for value in found if isinstance(found, list) else [found]:
            if value not in NAMES and "://" not in value:
                yield option.name, whole_path(value)


def whole_path(text: str) -> Path:
    """Absolute and without links, whether it is there or not."""
    return Path(os.path.realpath(os.path.expanduser(text)))
