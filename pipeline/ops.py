"""The built-in ops: what each one draws and what the draws mean. Kernels say how to apply them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from datasets.errors import PolicyError

Array = Any  # NumPy or TensorFlow: ops use operators alone, so that both give the same bits


def check_range(op: str, name: str, value: Any, low: float, high: float) -> None:
    """Raises PolicyError unless `value` is a finite number from `low` to `high`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise PolicyError(
            f"{op}: {name} must be a number from {low:g} to {high:g}, got {value!r}; "
            f"write for example {op}({name}={(low + high) / 4:g})"
        )


class Op:
    """One built-in op, a frozen dataclass. `p` is the share of copies it is applied to; its draw
    is always taken. No dataclass itself, or `p` would be the first option and not the last.

    draws(u) order: u[:, 0] decides `p`, the others are the op's own.
    """

    name: ClassVar[str]
    n_draws: ClassVar[int]
    param_names: ClassVar[tuple[str, ...]]
    neutral: ClassVar[tuple[float, ...]]
    p: float

    def __repr__(self) -> str:
        # `p=1.0` is left out, everything else is said: the repr is what is stored and hashed.
        shown = [
            f"{f.name}={float(getattr(self, f.name))!r}"
            for f in fields(self)  # type: ignore[arg-type]
            if f.name != "p" or getattr(self, f.name) != 1
        ]
        return f"{self.name}({', '.join(shown)})"

    def params(self, u: Array, height: int, width: int) -> tuple[Array, ...]:
        """(B, n_draws) float32 uniforms of the op -> (B,) float32 for each of `param_names`.

        Operators only, so that NumPy and TensorFlow give the same bits.
        """
        raise NotImplementedError


def centred(u: Array) -> Array:
    """Uniforms in [0, 1) -> uniforms in [-1, 1), exactly."""
    return u * 2 - 1


@dataclass(frozen=True, repr=False)
class Shift(Op):
    """Shift by up to ±x of the width and ±y of the height (0 to 1); positive is right and down."""

    name = "shift"
    n_draws = 2
    param_names = ("shift_x_px", "shift_y_px")
    neutral = (0.0, 0.0)

    x: float = 0.1
    y: float = 0.1
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.name, "x", self.x, 0, 1)
        check_range(self.name, "y", self.y, 0, 1)
        check_range(self.name, "p", self.p, 0, 1)

    def params(self, u: Array, height: int, width: int) -> tuple[Array, ...]:
        return centred(u[:, 0]) * (self.x * width), centred(u[:, 1]) * (self.y * height)


@dataclass(frozen=True, repr=False)
class Rotate(Op):
    """Rotate about the centre by up to ±degrees (0 to 180); positive is counter-clockwise."""

    name = "rotate"
    n_draws = 1
    param_names = ("angle_deg",)
    neutral = (0.0,)

    degrees: float = 15.0
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.name, "degrees", self.degrees, 0, 180)
        check_range(self.name, "p", self.p, 0, 1)

    def params(self, u: Array, height: int, width: int) -> tuple[Array, ...]:
        return (centred(u[:, 0]) * self.degrees,)


@dataclass(frozen=True, repr=False)
class Flip(Op):
    """Mirror left to right, top to bottom, or both, each with its own probability (0 to 1)."""

    name = "flip"
    n_draws = 2
    param_names = ("flipped", "flipped_vertically")
    neutral = (0.0, 0.0)

    horizontal: float = 0.5
    vertical: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.name, "horizontal", self.horizontal, 0, 1)
        check_range(self.name, "vertical", self.vertical, 0, 1)
        check_range(self.name, "p", self.p, 0, 1)

    def params(self, u: Array, height: int, width: int) -> tuple[Array, ...]:
        return u[:, 0] < self.horizontal, u[:, 1] < self.vertical


@dataclass(frozen=True, repr=False)
class Brightness(Op):
    """Multiply by 1 ± factor (0 to 1), round half to even, clip to 0..255."""

    name = "brightness"
    n_draws = 1
    param_names = ("brightness",)
    neutral = (1.0,)

    factor: float = 0.2
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.name, "factor", self.factor, 0, 1)
        check_range(self.name, "p", self.p, 0, 1)

    def params(self, u: Array, height: int, width: int) -> tuple[Array, ...]:
        return (centred(u[:, 0]) * self.factor + 1,)


OPS: dict[str, type[Op]] = {op.name: op for op in (Shift, Rotate, Flip, Brightness)}
GEOMETRIC: tuple[type[Op], ...] = (Shift, Rotate, Flip)


def signature(op: type[Op]) -> str:
    """How the op is written, with its defaults: `shift(x=0.1, y=0.1, p=1.0)`."""
    shown = [f"{f.name}={f.default!r}" for f in fields(op) if f.default is not MISSING]  # type: ignore[arg-type]
    return f"{op.name}({', '.join(shown)})"


def occurrences(names: Sequence[str]) -> list[int]:
    """For each name, how many times it came before: ["a", "b", "a"] -> [0, 0, 1]."""
    return [names[:i].count(name) for i, name in enumerate(names)]
