"""A policy: ops in order, written as one string such as `shift(x=0.1)|rotate(degrees=15)`."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from datasets.errors import PolicyError, nearest
from pipeline.library_ops import PREFIX, LibraryOp
from pipeline.ops import GEOMETRIC, OPS, Op, check_range, occurrences, signature
from pipeline.rng import op_number, uniforms_of

PRESETS = {
    "none": "none",
    "light": "shift(x=0.05, y=0.05)|flip(horizontal=0.5)",
    "standard": "shift(x=0.1, y=0.1)|rotate(degrees=15)|flip(horizontal=0.5)"
    "|brightness(factor=0.2)",
    "strong": "shift(x=0.2, y=0.2)|rotate(degrees=30)|flip(horizontal=0.5)|brightness(factor=0.4)",
}
# A mirrored digit is another sign, so digits are never flipped unless asked.
DEFAULTS = {"digits": "shift(x=0.1, y=0.1)|rotate(degrees=10)|brightness(factor=0.2)"}
MAX_TEXT, SHOWN = 10_000, 100  # characters of a policy, and of one that cannot be read
FILL_MODES = ("reflect", "constant", "edge", "wrap")


@dataclass(frozen=True)
class Fill:
    """What lies beyond the border: `reflect` (d c b a | a b c d | d c b a), `edge`, `wrap`, or
    `constant` with a grey `value` (0 to 255)."""

    mode: str = "reflect"
    value: int = 0

    def __post_init__(self) -> None:
        if self.mode not in FILL_MODES:
            raise PolicyError(
                f"fill: mode must be one of {', '.join(FILL_MODES)}; {self.mode!r} is not"
            )
        check_range("fill", "value", self.value, 0, 255)
        if self.value != int(self.value):
            raise PolicyError(
                f"fill: value must be a whole number from 0 to 255, got {self.value!r}"
            )
        if self.value and self.mode != "constant":
            raise PolicyError(f"fill: value belongs to mode='constant', not to {self.mode!r}")

    def __repr__(self) -> str:
        value = f", value={int(self.value)}" if self.mode == "constant" else ""
        return f"fill(mode='{self.mode}'{value})"


@dataclass(frozen=True)
class Policy:
    """Built-in ops, then library ops, and the fill. `str` gives the canonical form, which is what
    is stored and hashed; `parse_policy` reads it back to an equal policy."""

    ops: tuple[Op, ...] = ()
    library: tuple[LibraryOp, ...] = ()
    fill: Fill = field(default_factory=Fill)

    def __post_init__(self) -> None:
        numbers: dict[int, str] = {}
        for name in [op.name for op in self.ops] + [op.name for op in self.library]:
            other = numbers.setdefault(op_number(name), name)
            if other != name:
                raise PolicyError(
                    f"policy: {other} and {name} share the op number {op_number(name)}, so their "
                    "draws would be the same; use only one of them"
                )

    def __str__(self) -> str:
        parts = [repr(op) for op in (*self.ops, *self.library)]
        if self.fill != Fill():
            parts.append(repr(self.fill))
        return "|".join(parts) or "none"

    @property
    def op_names(self) -> list[str]:
        """Of all ops, library ops last; a second `rotate` is `rotate 2`."""
        names = [op.name for op in self.ops] + [op.name for op in self.library]
        seen = occurrences(names)
        return [f"{name} {n + 1}" if n else name for name, n in zip(names, seen, strict=True)]

    def without(self, i: int) -> Policy:
        """The same, but that op of all is never applied. It stays in its place, with p=0, so that
        the draws of the others are what they were, those of a second op of its name too."""
        if i < len(self.ops):
            off = replace(self.ops[i], p=0.0)  # type: ignore[type-var]
            return replace(self, ops=(*self.ops[:i], off, *self.ops[i + 1 :]))
        i -= len(self.ops)
        kept = [pair for pair in self.library[i].arguments if pair[0] != "p"]
        switched = replace(self.library[i], arguments=tuple(sorted([*kept, ("p", 0.0)])))
        return replace(self, library=(*self.library[:i], switched, *self.library[i + 1 :]))

    @property
    def geometric(self) -> tuple[tuple[int, Op], ...]:
        """The ops that move pixels, in order, each with its position in `ops`."""
        return tuple((i, op) for i, op in enumerate(self.ops) if isinstance(op, GEOMETRIC))

    @property
    def columns(self) -> list[tuple[str, ...]]:
        """For each op its parameter columns; a second `rotate` has `angle_deg_2`."""
        seen = occurrences([op.name for op in self.ops])
        return [
            tuple(f"{param}_{n + 1}" if n else param for param in op.param_names)
            for op, n in zip(self.ops, seen, strict=True)
        ]

    @property
    def param_names(self) -> tuple[str, ...]:
        return tuple(name for names in self.columns for name in names)

    def params(
        self, seed: int, keys: np.ndarray, copy: int, height: int, width: int
    ) -> dict[str, np.ndarray]:
        """(B,) uint64 sample keys -> (B,) float32 for each of `param_names`.

        Copy 0 is the original: every parameter has its neutral value.
        """
        out: dict[str, np.ndarray] = {}
        seen = occurrences([op.name for op in self.ops])
        uses = [
            (op_number(op.name), occurrence, 1 + op.n_draws)
            for op, occurrence in zip(self.ops, seen, strict=True)
        ]
        are_drawn = copy > 0 and uses
        draws = uniforms_of(seed, keys, copy, uses) if are_drawn else [None] * len(uses)
        for op, columns, u in zip(self.ops, self.columns, draws, strict=True):
            applied = np.zeros(len(keys), bool)
            values: tuple[object, ...] = op.neutral
            if u is not None:
                values, applied = op.params(u[:, 1:], height, width), u[:, 0] < op.p
            for name, value, neutral in zip(columns, values, op.neutral, strict=True):
                chosen = np.where(applied, np.asarray(value, np.float32), np.float32(neutral))
                out[name] = chosen
        return out


def resolve_policy(text: str | None, name: str) -> Policy:
    """The policy that `text` writes; where it is None, one that suits the data set of that name."""
    return parse_policy(DEFAULTS.get(name, PRESETS["standard"]) if text is None else text)


def refuse_library_ops(policy: Policy) -> None:
    """Raises: PolicyError if the policy has library ops, which TensorFlow's graphs cannot hold."""
    if policy.library:
        raise PolicyError(
            f"--engine tensorflow: {policy.library[0].name} is not a graph op; use --engine "
            "opencv, or take it out of the policy"
        )


def parse_policy(text: str) -> Policy:
    """The policy that `text` writes; presets are names for strings, `none` is the empty policy.

    Python call syntax with literal arguments, joined by `|`. Read with `ast`, never evaluated.
    A path ending in .yaml, .yml or .json is a file saved by `albumentations.save`.
    Raises: PolicyError that quotes the offending part and where it is.
    """
    try:
        if text.endswith((".yaml", ".yml", ".json")):
            policy = read_saved(Path(text))
        else:
            policy = read_text(text)
        written = str(policy)  # what is stored, and read again by workers
    except RecursionError:
        raise PolicyError(f"policy {text[:60]!r}...: nested too deeply; write fewer ops") from None
    if len(written) > MAX_TEXT:
        raise PolicyError(
            f"policy: {len(written):,} characters with every option written out; at most "
            f"{MAX_TEXT:,} are read: write fewer ops"
        )
    return policy


def read_saved(path: Path) -> Policy:
    """The policy of a file, through its text, so that what is stored can be read again."""
    try:
        return read_text(str(Policy(library=LibraryOp.from_file(path))))
    except PolicyError as err:
        raise PolicyError(f"{path}: {err}") from err


def read_text(text: str) -> Policy:
    """The policy that `text` writes in Python's syntax."""
    if len(text) > MAX_TEXT:
        raise PolicyError(f"policy: {len(text):,} characters; at most {MAX_TEXT:,} are read")
    text = re.sub(r"[\r\n]", " ", text).strip()  # of a job file, it may have lines
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as err:
        at = getattr(err, "offset", None)
        where = f" at character {at}" if at else ""
        start = max(0, (at or 0) - SHOWN // 2)
        shown = repr(text[start : start + SHOWN])
        before = "..." if start > 0 else ""
        after = "..." if start + SHOWN < len(text) else ""
        raise PolicyError(
            f"policy {before}{shown}{after}: cannot be read{where}: "
            f"{getattr(err, 'msg', None) or err}; "
            "write ops as name(option=number), joined by |, for example "
            "shift(x=0.1)|rotate(degrees=15)"
        ) from None
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, int | float | complex) and abs(value) > sys.float_info.max:
            raise PolicyError(
                f"policy, at character {getattr(node, 'col_offset', 0) + 1}: a number beyond "
                f"{sys.float_info.max:.0e}; write a smaller one"
            )
    return build_policy(flatten(tree), text)


def flatten(node: ast.expr) -> list[ast.expr]:
    """`a|b|c` -> [a, b, c], with each preset replaced by its ops."""
    parts: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts.append(node.right)
        node = node.left
    parts.append(node)
    out: list[ast.expr] = []
    for part in reversed(parts):
        if isinstance(part, ast.Name) and part.id in PRESETS:
            if part.id != "none":
                ops = flatten(ast.parse(PRESETS[part.id], mode="eval").body)
                out += [ast.copy_location(op, part) for op in ops]  # where the user wrote it
        else:
            out.append(part)
    return out


def build_policy(parts: list[ast.expr], text: str) -> Policy:
    """The parsed ops of `text` -> the policy they make."""
    ops: list[Op] = []
    library: list[LibraryOp] = []
    fill: Fill | None = None
    for part in parts:
        source = ast.get_source_segment(text, part) or ast.unparse(part)
        where = f"policy, {source!r} at character {part.col_offset + 1}"
        if isinstance(part, ast.Call) and ast.unparse(part.func).startswith(PREFIX):
            library.append(LibraryOp.from_call(part, where))
            continue
        if not (isinstance(part, ast.Call) and isinstance(part.func, ast.Name)):
            name = part.id if isinstance(part, ast.Name) else source
            is_op = name in OPS or name.startswith(PREFIX)
            hint = f"write {name}()" if is_op else nearest(name, [*PRESETS, *OPS])
            raise PolicyError(
                f"{where}: expected an op such as rotate(degrees=15) or a preset; {hint}"
            )
        kind = {**OPS, "fill": Fill}.get(part.func.id)
        if kind is None:
            raise PolicyError(f"{where}: no such op; {nearest(part.func.id, [*OPS, 'fill'])}")
        made = kind(**arguments(part, kind, where))
        if isinstance(made, Fill):
            if fill is not None:
                raise PolicyError(f"{where}: fill is given twice; one holds for the whole policy")
            fill = made
        elif library:
            raise PolicyError(
                f"{where}: stands after {library[-1].name}, but library ops run last, after the "
                "one warp that all built-in ops share; move it before them"
            )
        else:
            ops.append(made)
    return Policy(tuple(ops), tuple(library), fill or Fill())


def arguments(call: ast.Call, kind: type, where: str) -> dict[str, object]:
    """The literal arguments of a built-in op's call, by name."""
    known = [f.name for f in fields(kind)]
    if len(call.args) > len(known):
        raise PolicyError(f"{where}: takes at most {len(known)} arguments ({', '.join(known)})")
    given: dict[str, object] = {}
    for name, node in [
        *zip(known, call.args, strict=False),
        *((k.arg, k.value) for k in call.keywords),
    ]:
        if name is None:
            raise PolicyError(f"{where}: ** is not understood; write every option out")
        if name not in known:
            raise PolicyError(f"{where}: no option {name!r}; {nearest(name, known)}")
        if name in given:
            raise PolicyError(f"{where}: {name} is given twice")
        try:
            given[name] = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError):
            raise PolicyError(
                f"{where}: {name}={ast.unparse(node)} is not a plain number or string; "
                f"write for example {name}=0.1"
            ) from None
    return given


def catalogue() -> str:
    """Presets, ops with their defaults and what they do, and where library ops are named."""
    lines = ["presets"]
    lines += [f"  {name:9} {text}" for name, text in PRESETS.items()]
    lines.append(
        "ops (shift, rotate and flip become one warp, in the order written; brightness follows)"
    )
    for op in OPS.values():
        summary = " ".join((op.__doc__ or "").split())
        lines += [f"  {signature(op)}", f"      {summary}"]
    lines.append("border, for the whole policy")
    lines.append(f"  fill(mode='reflect', value=0)   mode: {', '.join(FILL_MODES)}")
    lines.append("library ops, after the others")
    lines.append("  albumentations.NAME(...)        any transform that keeps the image's shape")
    return "\n".join(lines)
