"""How the mistakes of a job file are told: where, what was found, what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.errors import JobError, nearest, similar
from pipeline.job_schema import KEYS
from pipeline.steps import Command

SHOWN_MISTAKES = 50
SHOWN_CHARACTERS = 60
Loc = tuple[str | int, ...]  # the keys and positions that lead to a value in the job


def dashed(name: str) -> str:
    return name.replace("_", "-")


def told_place(loc: Loc) -> str:
    """`step 2 (train): out`, as far as the keys and positions lead, or a key of the job itself."""
    match loc:
        case ("steps", int(number), command, key, *_):
            return f"step {number + 1} ({shown_name(str(command))}): {shown_name(str(key))}"
        case ("steps", int(number), key):
            return f"step {number + 1}: {shown_name(str(key))}"
        case ("steps", int(number)):
            return f"step {number + 1}"
    return shown_name(str(loc[0]))


def as_in_file(told: str, command: Command) -> str:
    """What a command says of its options, with their names as a job file has them."""
    names = {one.on: one.name for one in command.options if one.on}
    names |= {one.off: f"{one.name}: false" for one in command.options if one.off}
    return re.sub(r"(?<!\S)--[a-z][a-z0-9-]*", lambda flag: names.get(flag[0], flag[0]), told)


def refused(path: Path, mistakes: Sequence[str]) -> JobError:
    """Tells of one mistake in one line, of several in a line each."""
    if len(mistakes) == 1:
        return JobError(f"{path}: {mistakes[0]}")
    more = len(mistakes) - SHOWN_MISTAKES
    shown = (*mistakes[:SHOWN_MISTAKES], *([f"and {more} more"] if more > 0 else []))
    return JobError(f"{path}: {len(mistakes)} mistakes", shown)


def lines_in(text: str) -> dict[Loc, str]:
    """`line 3: ` for each value of a job's text, which may be none."""
    from pipeline.yaml_file import lines_of

    found = lines_of(text) if text else {}
    return {as_read(loc): f"line {n}: " for loc, n in found.items()}


def as_read(loc: Loc) -> Loc:
    """With options as they are named once they are read."""
    return tuple(dashed(one) if isinstance(one, str) else one for one in loc)


def mistake(error: Any, commands: Mapping[str, Command], lines: Mapping[Loc, str]) -> str:
    """What pydantic found: place, found, expected."""
    where, line = told_place(error["loc"]), lines.get(as_read(error["loc"]), "")
    match error["loc"]:
        case ("steps", _, command, key, *_):
            known = {option.name: option.expected for option in commands[command].options}
            for option in commands[command].options:
                if option.off == f"--{key}":
                    return f"{where} is not known, write {option.name}: false"
        case ("steps", _, key):
            known = dict.fromkeys(commands, "options, each with its value")
        case ("steps", _):
            key, known = "", {"": "one command and a colon, its options indented below it"}
        case (key,):
            known = KEYS
    if error["type"] == "extra_forbidden":
        is_option = any(dashed(key) == one.name for c in commands.values() for one in c.options)
        if is_option and len(error["loc"]) < 4 and line:
            return f"{line}{where} is an option; indent it further than the command that it is of"
        return f"{where} is not known; {nearest(key, known)}"
    if error["type"] == "missing":
        return f"{where} is missing; expected {known[key]}"
    found = error["input"]
    if isinstance(found, dict):  # most often since something is indented too little or too far
        where = line + where
    told = f"{where}: found {shown(found)}, expected {known[key]}"
    if error["type"] != "literal_error":
        return told
    kind: Any = next(one.kind for one in commands[command].options if one.name == key)
    hint = similar(str(found), map(str, kind))
    return f"{told}; {hint}" if hint else told


def shown(value: Any) -> str:
    """The value in one short line, as a job file has it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict) and value:
        return f"the key{'s' * (len(value) > 1)} {', '.join(map(shown_name, value))}"
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def shown_name(key: str) -> str:
    return key if re.fullmatch(r"[\w.-]{1,40}", key) else shown(key)
