"""YAML as a job file may have it: plain values only, and every key once.

Of YAML 1.2: `yes` and 2026-01-01 are text, 1e-3 is a number, 010 is ten.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_BYTES = 100_000  # a long job has two thousand; reading this much takes half a second
MAX_DEPTH = 20
INTEGER = re.compile(r"[-+]?[0-9]{1,20}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}


class PlainLoader(yaml.SafeLoader):
    """Refuses aliases, which can make much of little, all tags, and keys that are there twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise refused("anchors and aliases are not accepted; write the value out", event)
        if getattr(event, "tag", None):
            raise refused(f"the tag {event.tag} is not accepted; write a plain value", event)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise refused(f"nested deeper than {MAX_DEPTH}", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value in node.value:
                key = key_node.value
                if not isinstance(key, str) or isinstance(read_scalar(key), bool | int | float):
                    raise refused("a key is not a name", key_node)
                key.encode()
                if key in found:
                    raise refused(f"{key} is there twice", key_node)
                found[key] = self.construct_object(value)
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self.construct_object(value) for value in node.value]
        node.value.encode()  # or it raises: half a character, from an escape such as "\ud800"
        return node.value if node.style else read_scalar(node.value)


def refused(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def read_scalar(text: str) -> str | int | float | bool | None:
    """What a value without quotes means."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


def read_yaml(text: str) -> Any:
    """Mappings with names as keys, lists, and plain values.

    Raises: ValueError, in one line, where it is anything else.
    """
    try:
        return yaml.load(text, PlainLoader)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(err, "problem", None) or getattr(err, "reason", None) or "no YAML"
        is_form = isinstance(err, yaml.scanner.ScannerError | yaml.parser.ParserError)
        hint = "; look at the indentation and the quotes from there upwards" if is_form else ""
        raise ValueError(f"{where}{' '.join(problem.split())}{hint}") from None
    except (ValueError, OverflowError) as err:  # or none at all, as "\\UFFFFFFFF"
        raise ValueError(f"no text: {err}") from None


def lines_of(text: str) -> dict[tuple[str | int, ...], int]:
    """Keys and positions that lead to a value -> the line, from 1, of that, or of its key; of a
    text that `read_yaml` accepts."""
    lines = {}
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), yaml.compose(text, PlainLoader))]
    while waiting:
        loc, node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            parts = [((*loc, i), part, part) for i, part in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            parts = [((*loc, key.value), key, value) for key, value in node.value]
        else:
            continue
        lines.update({inner: told.start_mark.line + 1 for inner, told, _ in parts})
        waiting += [(inner, value) for inner, _, value in parts]
    return lines
