"""What a label in a table or a shard says: a class by its name, or by its number."""

from __future__ import annotations

import json
from typing import Any

MAX_NUMBER = 999_999  # where nothing names the classes, each number up to the largest is one


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: no text, null or NaN."""
    return value is None or value == "" or value != value


def as_name(value: Any) -> str:
    """A cell as text; pandas keeps whole numbers as floats in a column with a gap: 2.0 is `2`."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def as_number(value: Any) -> int:
    """The number of a row's class; -1 where it has none: an empty cell, or -1 itself.

    Raises: ValueError if it is no whole number from 0 to 999,999.
    """
    if is_missing(value) or value == -1:
        return -1
    if isinstance(value, int | float) and 0 <= value <= MAX_NUMBER and value == int(value):
        return int(value)
    raise ValueError(f"expected a whole number from 0 to {MAX_NUMBER:,}")


def names_in(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """The class names that Hugging Face keeps in a schema's metadata; () where there are none.

    Raises: ValueError, AttributeError if the metadata is none of Hugging Face's.
    """
    told = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    feature = told.get("info", {}).get("features", {}).get(label)
    names = feature.get("names") or [] if isinstance(feature, dict) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names of classes are {repr(names)[:60]}, expected a list of texts")
    return tuple(names)
