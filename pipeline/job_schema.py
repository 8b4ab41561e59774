"""What a job file may say: pydantic's models of it, made from the commands, and its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, cast

from pipeline.steps import Command, Option

PLACEHOLDER = r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
DEADLINE = r"^[1-9][0-9]{0,6}(s|min|h)$"
TEXT = r"^[^\u0000]+$"
# The keys of a job, and what is expected of each.
KEYS = {
    "name": "a name of letters, digits, dots, - and _, at most 100",
    "history": "a folder",
    "deadline": "a time such as 90s, 30min or 6h, in whole numbers",
    "steps": "a list of one or more commands, each after a dash, with its options",
}


class Placeholder(str):
    """What a `${NAME}` that stood alone was replaced by: a number or truth value where one is
    expected."""


@lru_cache(maxsize=1)
def job_model(commands: tuple[Command, ...]) -> Any:
    """The pydantic model of a whole job file, whose steps are these commands."""
    from pydantic import BeforeValidator, Field

    steps = {
        one.name: (options_type(one), Field(None, alias=one.name, description=one.help))
        for one in commands
    }
    step = model("step", steps, json_schema_extra={"minProperties": 1, "maxProperties": 1})
    types = {
        "name": pattern_type(NAME),
        "history": text_type(),
        "deadline": pattern_type(DEADLINE),
        "steps": list[Annotated[step, BeforeValidator(refuse_all_but_one)]],  # type: ignore[valid-type]
    }
    described = {key: Field(None, alias=key, description=text) for key, text in KEYS.items()}
    described["steps"] = Field(..., alias="steps", description=KEYS["steps"], min_length=1)
    return model("job", {key: (types[key], described[key]) for key in KEYS})


def model(name: str, fields: dict[str, Any], **config: Any) -> Any:
    """A pydantic model that knows no other keys. Its fields' own names shadow nothing of
    pydantic's."""
    from pydantic import ConfigDict, create_model

    own = {f"{key.replace('-', '_')}_": field for key, field in fields.items()}
    settings = cast(ConfigDict, {"extra": "forbid", "strict": True, **config})
    return create_model(name, __config__=settings, **own)


def options_type(command: Command) -> Any:
    """The options of a step; nothing at all where none is required, as in `- clean:`."""
    from pydantic import BeforeValidator, Field

    fields = {
        option.name: (
            list_type(option) if option.is_list else value_type(option),
            Field(... if option.is_required else None, alias=option.name, description=option.help),
        )
        for option in command.options
    }
    options = model(command.name, fields, json_schema_extra=allow_underscores)
    if any(option.is_required for option in command.options):
        return options
    return Annotated[options | None, BeforeValidator(lambda found: {} if found is None else found)]


def list_type(option: Option) -> Any:
    from pydantic import Field

    value = value_type(option)
    return Annotated[list[value], Field(min_length=1)]  # type: ignore[valid-type]


def value_type(option: Option) -> Any:
    """One value: what the command line accepts, or a `${NAME}` in its place."""
    from pydantic import BeforeValidator, Field, WithJsonSchema

    if issubclass(option.kind, StrEnum):
        values = [str(value) for value in option.kind]
        schema: dict[str, Any] = {
            "anyOf": [{"enum": values}, {"type": "string", "pattern": PLACEHOLDER}]
        }
        return Annotated[Literal[tuple(values)], WithJsonSchema(schema)]
    if option.kind is str:
        return text_type()
    kind = {bool: "boolean", int: "integer", float: "number"}[option.kind]
    limits = {"minimum": option.low, "maximum": option.high}
    number = {"type": kind, **{k: v for k, v in limits.items() if v is not None}}
    alone = {"type": "string", "pattern": f"^{PLACEHOLDER}$"}
    return Annotated[
        option.kind,
        Field(ge=option.low, le=option.high, allow_inf_nan=False if option.kind is float else None),
        BeforeValidator(read_placeholder),
        WithJsonSchema({"anyOf": [number, alone]}),
    ]


def text_type() -> Any:
    """Text, or a whole number, which is the text of its digits: `image-size: 224`."""
    from pydantic import BeforeValidator, Field, WithJsonSchema

    schema = {"type": ["string", "integer"], "pattern": TEXT}
    return Annotated[str, Field(pattern=TEXT), BeforeValidator(as_text), WithJsonSchema(schema)]


def pattern_type(pattern: str) -> Any:
    """Text of this form, or with a `${NAME}` in it that may give it."""
    from pydantic import Field, WithJsonSchema

    forms = [{"type": "string", "pattern": form} for form in (pattern, PLACEHOLDER)]
    return Annotated[str, Field(pattern=pattern), WithJsonSchema({"anyOf": forms})]


def as_text(found: Any) -> Any:
    return str(found) if isinstance(found, int) and not isinstance(found, bool) else found


def read_placeholder(found: Any) -> Any:
    from pipeline.yaml_file import read_scalar

    return read_scalar(found) if isinstance(found, Placeholder) else found


def refuse_all_but_one(found: Any) -> Any:
    if not isinstance(found, dict) or len(found) != 1:
        raise ValueError("expected one command")
    return found


def allow_underscores(schema: dict[str, Any]) -> None:
    """`image_size` is `image-size`, in a schema; but not both."""
    dashed = [name for name in schema["properties"] if "-" in name]
    for name in dashed:
        schema["properties"][name.replace("-", "_")] = schema["properties"][name]
    both = [{"not": {"required": [name, name.replace("-", "_")]}} for name in dashed]
    if both:
        schema["allOf"] = both


def json_schema(commands: Mapping[str, Command]) -> dict[str, Any]:
    """What editors check a job file by: it accepts what `read_job_file` does, but for what is known
    only when a job starts, such as the values of environment variables."""
    from pydantic.json_schema import GenerateJsonSchema

    class Plain(GenerateJsonSchema):
        """Without the titles and defaults of fields, which say nothing here."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

        def default_schema(self, schema: Any) -> Any:
            return self.generate_inner(schema["schema"])

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **job_model(tuple(commands.values())).model_json_schema(schema_generator=Plain),
    }
