"""What a job may be made of: the commands of the command line, with the same options."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo, ParameterInfo
from typer.utils import get_params_from_function

from datasets.storage import refuse_credentials

# `run` itself decides how its steps log, and whether anything is done.
LEFT_OUT = ("dry_run", "log_format", "quiet")


@dataclass(frozen=True)
class Option:
    """An option, or a positional argument, of a command.

    name: As a job file has it: `image-size`.
    kind: bool, int, float, str or a StrEnum.
    on, off: The flags; on is None of an argument, off where the option has none.
    """

    name: str
    kind: type
    is_list: bool
    is_required: bool
    on: str | None
    off: str | None
    low: float | None
    high: float | None
    help: str

    @property
    def expected(self) -> str:
        """`a whole number of at least 1`."""
        if issubclass(self.kind, StrEnum):
            text = "one of " + ", ".join(self.kind)
        elif self.kind is bool:
            text = "true or false"
        else:
            text = {int: "a whole number", float: "a number"}.get(self.kind, "text")
            if self.low is not None and self.high is not None:
                text += f", {self.low} to {self.high}"
            elif self.low is not None:
                text += f" of at least {self.low}"
        return f"a list, each {text}" if self.is_list else text


@dataclass(frozen=True)
class Command:
    """A command that can be a step.

    function: As the command line has it. What `function.make` makes of the options, where there is
      such, refuses those that do not go together.
    """

    name: str
    help: str
    options: tuple[Option, ...]
    function: Callable[..., Any]

    def words(self, given: dict[str, Any]) -> list[str]:
        """The command line that has these options: `augment --copies 8`. A training goes on where
        it stopped, unless told otherwise: a job may be run again at any time."""
        given = {"resume": True} | given
        flags: list[str] = []
        arguments: list[str] = []
        for option in self.options:
            if option.name not in given:
                continue
            value = given[option.name]
            values = [at_home(str(one)) for one in (value if option.is_list else [value])]
            if option.on is None:
                arguments += values
            elif option.kind is bool:
                flags += [flag for flag in [option.on if value else option.off] if flag]
            else:
                flags += [word for one in values for word in (option.on, one)]
        if any(argument.startswith("-") for argument in arguments):
            arguments.insert(0, "--")
        return [self.name, *flags, *arguments]

    def check(self, words: Sequence[str]) -> None:
        """Raises: UserError where the command would refuse its command line before any work, and
        where that, which is logged, holds credentials."""
        for word in words:
            refuse_credentials(word)
        app = typer.Typer(add_completion=False)
        app.command()(self.function)
        context = typer.main.get_command(app).make_context(self.name, list(words[1:]))
        if make := getattr(self.function, "make", None):
            known = {"context": context, **context.params}
            make(**{name: known[name] for name in signature(make).parameters})


@dataclass(frozen=True)
class Step:
    """options: As the job file has them, checked."""

    command: Command
    options: dict[str, Any]

    @property
    def words(self) -> list[str]:
        return self.command.words(self.options)


def at_home(word: str) -> str:
    """The word as a shell would give it: `~` and `~/photos` are the user's own folder."""
    return os.path.expanduser(word) if word == "~" or word.startswith("~/") else word


def command_of(function: Callable[..., Any]) -> Command:
    """The command that Typer makes of a function, from what it knows of its parameters."""
    known = get_params_from_function(function)
    return Command(
        name=function.__name__,
        help=function.__doc__ or "",
        options=tuple(
            option_of(name, known[name].annotation, known[name].default)
            for name in known
            if isinstance(known[name].default, ParameterInfo) and name not in LEFT_OUT
        ),
        function=function,
    )


def option_of(name: str, annotation: Any, about: Any) -> Option:
    """The option that Typer makes of a parameter, its annotation, and an OptionInfo or
    ArgumentInfo."""
    if isinstance(annotation, UnionType):
        (annotation,) = [kind for kind in get_args(annotation) if kind is not NoneType]
    is_list = get_origin(annotation) is list
    kind = get_args(annotation)[0] if is_list else annotation
    written = name.replace("_", "-")
    on, off = f"--{written}", f"--no-{written}" if kind is bool else ""
    if about.param_decls:
        on, _, off = about.param_decls[0].partition("/")
    is_argument = isinstance(about, ArgumentInfo)
    return Option(
        name=written if is_argument else on.removeprefix("--"),
        kind=str if kind is Path or about.parser else kind,
        is_list=is_list,
        is_required=about.default is ...,
        on=None if is_argument else on,
        off=off or None,
        low=about.min,
        high=about.max,
        help=about.help or "",
    )
