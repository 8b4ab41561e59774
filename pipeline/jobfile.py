"""A job file: YAML that names a job's steps, read, filled in and checked before anything runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.errors import JobError, UserError, first_line, similar, system_failure
from datasets.storage import local_path
from pipeline.job_mistakes import (
    Loc,
    as_in_file,
    dashed,
    lines_in,
    mistake,
    refused,
    shown,
    shown_name,
    told_place,
)
from pipeline.job_schema import KEYS, PLACEHOLDER, Placeholder, job_model
from pipeline.step_places import outputs_in_history
from pipeline.steps import Command, Step, at_home

UNITS_S = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class JobFile:
    """A job as it runs, with every `${NAME}` filled in.

    sha256: Of the file. history: Folder of the records of its runs. deadline_s: After which it
      stops itself, or None.
    """

    path: Path
    sha256: str
    name: str
    history: Path
    deadline_s: float | None
    steps: tuple[Step, ...]


def read_job_file(
    path: Path,
    changes: Sequence[str],
    commands: Mapping[str, Command],
    environ: Mapping[str, str],
    date: str,
) -> JobFile:
    """The job of a file.

    Args:
      changes: `KEY=VALUE` or `STEP.OPTION=VALUE`, which every step of that command gets.
      commands: What a step may be, by name.
      environ: What `${NAME}` stands for. date: What `${DATE}` stands for.
    Raises: JobError that tells all mistakes at once: variables that are not set, with those of its
      form or, if there is none, those of the values.
    """
    data = read_bytes(path)
    body = parse(data, str(path))
    if not isinstance(body, dict):
        raise JobError(f"{path}: found {shown(body)}, expected name, deadline, steps and the like")
    for change in changes:
        apply(change, body)
    body.setdefault("name", path.stem)
    unset: dict[Loc, list[str]] = {}
    filled = fill_in(with_dashes(body), {**environ, "DATE": date}, (), unset)
    text = "" if changes else data.decode("utf-8-sig")  # whose lines are no longer the job's
    return checked(path, hashlib.sha256(data).hexdigest(), text, filled, commands, unset)


def read_bytes(path: Path) -> bytes:
    """Raises: JobError if there is no such file, or if it is too long for a job."""
    from pipeline.yaml_file import MAX_BYTES

    if not path.is_file():
        found = "is not a file" if path.exists() else "no such file"
        raise JobError(f"{path}: {found}; expected a job file, such as jobs/demo.yaml")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise JobError(f"{path}: cannot be read ({err.strerror})") from err
    if len(data) > MAX_BYTES:
        raise JobError(f"{path}: longer than {MAX_BYTES:,} bytes, which no job file is")
    return data


def parse(data: bytes, where: str) -> Any:
    """Raises: JobError where it is no YAML, or YAML of another kind than job files have."""
    from pipeline.yaml_file import read_yaml

    try:
        return read_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as err:
        raise JobError(f"{where}: no UTF-8 at byte {err.start}") from None
    except ValueError as err:
        raise JobError(f"{where}: {err}") from None


def apply(change: str, body: dict[str, Any]) -> None:
    """Changes the job as `--set` says; with nothing behind the `=` the key is taken out.

    Raises: JobError if it cannot be read, no step has that command, or what is to be taken out.
    """
    where = f"--set {change}"
    key, equals, text = change.partition("=")
    if not equals or not key or not key.isascii():
        raise JobError(f"{where}: expected KEY=VALUE, such as deadline=2h or augment.copies=8")
    is_out = not text.strip()
    value = parse(text.encode(errors="surrogateescape"), where)
    if isinstance(value, str) and text[0] not in "'\"":
        value = text  # what YAML would take for a comment belongs to it
    command, dot, option = key.partition(".")
    if not dot:
        if key not in KEYS and not is_out:
            hint = similar(key, KEYS) or "an option is COMMAND.OPTION, such as augment.copies"
            raise JobError(f"{where}: {shown_name(key)} is not known; {hint}")
        if not is_out:
            body[key] = value
        elif body.pop(key, None) is None:
            raise JobError(f"{where}: there is no {shown_name(key)} to take out")
        return
    steps = body.get("steps")
    named = [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else []
    if not any(command in step for step in named):
        listed = ", ".join(dict.fromkeys(shown_name(name) for step in named for name in step))
        raise JobError(f"{where}: no step is {command}; there are {listed}")
    is_there = False
    for step in named:
        if command in step and isinstance(step[command] or {}, dict):
            options = step[command] or {}
            others = {k: v for k, v in options.items() if dashed(k) != dashed(option)}
            is_there |= others.keys() != options.keys()
            step[command] = others if is_out else {**others, option: value}
    if is_out and not is_there:
        raise JobError(f"{where}: no step of {command} has {shown_name(option)} to take out")


def with_dashes(body: dict[str, Any]) -> dict[str, Any]:
    """The same, with the options of steps as the command line writes them: image-size. One that is
    there in both ways stays, and is refused with the unknown ones."""

    def renamed(options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        return {
            (dashed(key) if key == dashed(key) or dashed(key) not in options else key): value
            for key, value in options.items()
        }

    def of_step(step: Any) -> Any:
        if not isinstance(step, dict):
            return step
        return {command: renamed(options) for command, options in step.items()}

    steps = body.get("steps")
    return {**body, "steps": [of_step(s) for s in steps]} if isinstance(steps, list) else body


def fill_in(value: Any, known: Mapping[str, str], loc: Loc, unset: dict[Loc, list[str]]) -> Any:
    """The value with `${NAME}` replaced in all texts; `$${` stays as `${`.

    loc: Of the value.
    unset: Gets, of each text, a line for each name that is not known, or is none.
    """
    if isinstance(value, dict):
        return {key: fill_in(one, known, (*loc, key), unset) for key, one in value.items()}
    if isinstance(value, list):
        return [fill_in(one, known, (*loc, i), unset) for i, one in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(found: re.Match[str]) -> str:
        text = found[0]
        if text == "$${":
            return "${"
        if not re.fullmatch(PLACEHOLDER, text):
            unset.setdefault(loc, []).append(
                f"{told_place(loc)}: found {shown(text)}, expected ${{NAME}}, or $${{ for these "
                "two characters"
            )
        elif text[2:-1] not in known:
            unset.setdefault(loc, []).append(
                f"{told_place(loc)}: {text} is not set: no environment variable {text[2:-1]}"
            )
        else:
            return known[text[2:-1]]
        return text

    filled = re.sub(r"\$\$\{|\$\{[^}]*\}?", replacement, value)
    return Placeholder(filled) if re.fullmatch(PLACEHOLDER, value) else filled


def checked(
    path: Path,
    sha256: str,
    text: str,
    body: dict[str, Any],
    commands: Mapping[str, Command],
    unset: Mapping[Loc, list[str]],
) -> JobFile:
    """Raises: JobError with every mistake that was found."""
    from pydantic import ValidationError

    mistakes = [line for lines in unset.values() for line in lines]
    try:
        valid: Any = job_model(tuple(commands.values())).model_validate(body)
    except ValidationError as err:
        # Those of the job itself first, which may be the cause of others.
        errors = sorted(err.errors(include_url=False), key=lambda error: len(error["loc"]) > 1)
        # Of what is not filled in, nothing else is known.
        left = [error for error in errors if not is_within(error["loc"], unset)]
        lines = lines_in(text)
        raise refused(path, mistakes + [mistake(e, commands, lines) for e in left]) from None
    found = valid.model_dump(by_alias=True, exclude_unset=True)
    steps = [next(iter(step.items())) for step in found["steps"]]
    job = JobFile(
        path=path,
        sha256=sha256,
        name=found["name"],
        history=folder_on_disk(path, found.get("history", "history")),
        deadline_s=seconds_of(found["deadline"]) if "deadline" in found else None,
        steps=tuple(Step(commands[name], options) for name, options in steps),
    )
    unfilled = {loc[1] for loc in unset if loc[0] == "steps"}
    mistakes += refusals(job.steps, unfilled)
    if mistakes := mistakes or list(outputs_in_history(job.steps, job.history, job.name)):
        raise refused(path, mistakes)
    return job


def is_within(loc: Loc, known: Mapping[Loc, object]) -> bool:
    """Whether one of these leads to the value, or to what it is in."""
    return any(loc[:n] in known for n in range(len(loc) + 1))


def folder_on_disk(path: Path, history: str) -> Path:
    """Raises: JobError if the records of runs cannot lie there: they need locks, and to be added
    to."""
    try:
        folder = local_path(at_home(history))
    except UserError as err:
        raise refused(path, [f"history: {err}"]) from None
    if folder.exists() and not folder.is_dir():
        raise refused(path, [f"history: {history} is a file; expected a folder on a disk"])
    return folder


def refusals(steps: Sequence[Step], unfilled: Collection[object]) -> Iterator[str]:
    """What commands say to the values of their options, one line for each step that is refused.

    unfilled: Positions of steps whose values are not all known.
    """
    for number, step in enumerate(steps, 1):
        if number - 1 in unfilled:
            continue
        try:
            step.command.check(step.words)
        except (UserError, OSError, RuntimeError) as err:
            told = system_failure(err) or err
            if isinstance(told, RuntimeError):  # no path: a bug, which is nobody's mistake
                raise
            told_of = as_in_file(first_line(told), step.command)
            yield f"step {number} ({step.command.name}): {told_of}"


def seconds_of(deadline: str) -> float:
    """`90s`, `30min` or `6h` in seconds."""
    number, unit = re.fullmatch(r"(\d+)(s|min|h)", deadline).groups()  # type: ignore[union-attr]
    return int(number) * UNITS_S[unit]
