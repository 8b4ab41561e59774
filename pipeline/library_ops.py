"""Albumentations transforms as ops: named in the policy, seeded per sample and copy."""

from __future__ import annotations

import ast
import inspect
import json
import os
import random
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import PolicyError, first_line, nearest
from datasets.quiet import pass_over_warnings
from datasets.source import read_file
from pipeline.ops import occurrences
from pipeline.rng import op_number, words_of

PREFIX = "albumentations."
MAX_FILE_BYTES, MAX_VALUES = 100_000, 10_000  # of a saved policy, whose text has 10,000 characters
# Modules of which a transform's warnings are said to be: NumPy's too, and this one, which calls it.
OF_LIBRARY = r"(albumentations|albucore|numpy|pipeline\.library_ops)\b"
MAX_RECORDED = 64  # numbers of one parameter that the `library_ops` column still writes out


def import_albumentations() -> Any:
    """The library, without the question to the network that its import asks otherwise."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import albumentations

    return albumentations


@dataclass(frozen=True)
class LibraryOp:
    """One transform of the library: its class and arguments (literals, lists, other LibraryOps)."""

    class_name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return PREFIX + self.class_name

    @property
    def is_group(self) -> bool:
        """Whether it runs other transforms (OneOf, Sequential, ...)."""
        given = [value if isinstance(value, tuple) else (value,) for _, value in self.arguments]
        return any(isinstance(item, LibraryOp) for value in given for item in value)

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.arguments)
        return f"{self.name}({inside})"

    @classmethod
    def from_call(cls, call: ast.Call, where: str) -> LibraryOp:
        """`albumentations.Blur(blur_limit=3)` as parsed -> the op, its arguments sorted by name.

        Raises: PolicyError if the library refuses it.
        """
        op = cls._from_call(call, where)
        op.build(where)
        return op

    @classmethod
    def _from_call(cls, call: ast.Call, where: str) -> LibraryOp:
        class_name = ast.unparse(call.func).removeprefix(PREFIX)
        if not class_name.isidentifier():
            raise PolicyError(f"{where}: {class_name!r} is not the name of a transform")
        given = {}
        if call.args:
            # Only the groups (OneOf, Sequential, SomeOf) take something without a name.
            if len(call.args) > 1:
                raise PolicyError(f"{where}: write the options by name, as {class_name}(p=0.5)")
            given["transforms"] = cls._value(call.args[0], where)
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in given:
                raise PolicyError(
                    f"{where}: {keyword.arg or '**'} is given twice or not understood"
                )
            given[keyword.arg] = cls._value(keyword.value, where)
        return cls(class_name, tuple(sorted(given.items())))

    @classmethod
    def _value(cls, node: ast.expr, where: str) -> Any:
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(PREFIX):
            return cls._from_call(node, where)
        if isinstance(node, ast.List | ast.Tuple):
            return tuple(cls._value(item, where) for item in node.elts)
        try:
            # A set is written in another order by each process, and means the same as a list.
            if not any(isinstance(part, ast.Set) for part in ast.walk(node)):
                return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError):
            pass
        raise PolicyError(f"{where}: {ast.unparse(node)} is not a plain value")

    @classmethod
    def from_file(cls, path: Path) -> tuple[LibraryOp, ...]:
        """The transforms of a file saved by `albumentations.save`; read as data, never executed,
        and not built either: what they hold may be nothing that a policy can hold.

        Raises: PolicyError if it cannot be read or is no such file.
        """
        try:
            text = read_file(path, MAX_FILE_BYTES).decode()
            if path.suffix == ".json":
                saved = json.loads(text)
            else:
                import yaml

                saved = yaml.safe_load(text)
            check_size(saved)
        except OSError as err:
            raise PolicyError(f"{err.strerror}; expected a saved policy") from err
        except Exception as err:
            raise PolicyError(
                f"not a file saved by albumentations.save: {first_line(err)}"
            ) from err
        try:
            op = cls._from_saved(saved["transform"])
            options = dict(op.arguments)
            if op.class_name == "Compose" and options.get("p", 1.0) == 1.0:
                return tuple(options["transforms"])
        except (KeyError, TypeError, AttributeError) as err:
            raise PolicyError(
                f"not a file saved by albumentations.save (no {err}); save it with "
                "albumentations.save(transform, path, data_format='yaml')"
            ) from err
        return (op,)

    @classmethod
    def _from_saved(cls, saved: dict[str, Any]) -> LibraryOp:
        class_name = saved["__class_fullname__"].removeprefix(PREFIX)
        unset = {"bbox_params", "keypoint_params", "additional_targets", "seed", "is_check_shapes"}
        skipped = {"__class_fullname__", *(unset if class_name == "Compose" else ())}
        skipped |= not_taken(class_name)
        for name in (class_name, *saved):
            if not str.isidentifier(name):  # it would be read as other code than it is
                raise PolicyError(
                    f"{name!r} is neither a transform of albumentations nor an option"
                )
        given = {
            k: tuple(cls._from_saved(t) for t in v)
            if k == "transforms"
            else (tuple(v) if isinstance(v, list) else v)
            for k, v in saved.items()
            if k not in skipped
        }
        return cls(class_name, tuple(sorted(given.items())))

    def build(self, where: str) -> Any:
        """The library's own object.

        Raises: PolicyError if there is no such transform or an argument is not accepted.
        """
        library = import_albumentations()
        kind = getattr(library, self.class_name, None)
        known = (library.BasicTransform, library.BaseCompose)
        if not (isinstance(kind, type) and issubclass(kind, known)):
            hint = nearest(self.class_name, [n for n in dir(library) if n[0].isupper()])
            raise PolicyError(f"{where}: {self.name} is not a transform of albumentations; {hint}")

        def built(value: Any) -> Any:
            if isinstance(value, LibraryOp):
                return value.build(where)
            if isinstance(value, tuple) and any(isinstance(item, LibraryOp) for item in value):
                return [built(item) for item in value]
            return value

        try:
            with warnings.catch_warnings():
                # It only warns about an argument that it does not know; all else is advice.
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", r"Argument\(s\) ")
                return kind(**{k: built(v) for k, v in self.arguments})
        except PolicyError:
            raise
        except Exception as err:
            lines = str(err).splitlines()[:3] or [type(err).__name__]
            reason = "; ".join(line.strip() for line in lines)
            raise PolicyError(f"{where}: albumentations refuses {self!r}: {reason}") from err


def not_taken(class_name: str) -> set[str]:
    """Options in a saved file that the transform does not take: the library saves those of its base
    classes, too."""
    kind = getattr(import_albumentations(), class_name, None)
    if not isinstance(kind, type):
        return set()
    above = [base.__init__ for base in kind.__mro__[1:] if "__init__" in vars(base)]  # type: ignore[misc]
    known = {name for init in above for name in inspect.signature(init).parameters}
    return known - inspect.signature(kind).parameters.keys()


def check_size(saved: object) -> None:
    """Raises: ValueError if a file holds more than a policy can. Aliases let a few lines of YAML
    stand for more values than there is memory, or hold themselves."""
    waiting, n = [saved], 0
    while waiting:
        item = waiting.pop()
        n += 1
        if n > MAX_VALUES:
            raise ValueError(f"holds more than {MAX_VALUES:,} values")
        if isinstance(item, int) and abs(item) > sys.float_info.max:
            raise ValueError(f"holds a number beyond {sys.float_info.max:.0e}")
        waiting += [*item, *item.values()] if isinstance(item, dict) else ()
        waiting += item if isinstance(item, list | tuple | set) else ()


class LibraryStage:
    """The library ops of a policy, built once a process and run image by image."""

    def __init__(self, ops: tuple[LibraryOp, ...]) -> None:
        self.ops = [(op, op.build("policy")) for op in ops]
        self.occurrences = occurrences([op.name for op in ops])

    def apply(
        self, images: list[np.ndarray], seed: int, keys: np.ndarray, copy: int
    ) -> tuple[list[np.ndarray], list[str]]:
        """uint8 (H, W, 3) or (H, W) images -> images of the same shapes, and what was done to each
        as JSON (op, seed, whether applied, small parameters).

        Raises: PolicyError if an op changes an image's shape or type, or needs more than an image.
        """
        done: list[list[dict[str, Any]]] = [[] for _ in images]
        for (op, transform), occurrence in zip(self.ops, self.occurrences, strict=True):
            (drawn,) = words_of(seed, keys, copy, [(op_number(op.name), occurrence, 1)])
            seeds = drawn[:, 0].tolist()
            for i, one_seed in enumerate(seeds):
                images[i], applied = run_one(op, transform, images[i], one_seed)
                done[i].append({"op": op.name, "seed": one_seed, **applied})
        return images, [json.dumps(steps, sort_keys=True) for steps in done]


def run_one(
    op: LibraryOp, transform: Any, image: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """One image through one transform, its generators set from `seed` first."""
    # `set_random_seed` would give every op of a group generators of its own, with the same numbers.
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    singles = singles_of(transform)
    for single in singles:
        single.params = {}  # an earlier call's parameters are not this one's
    grey = image.ndim == 2
    pass_over_warnings(OF_LIBRARY)
    try:
        result = transform(image=image[..., None] if grey else image)["image"]
    except Exception as err:
        reason = first_line(err)
        raise PolicyError(
            f"{op!r} cannot run on an image of shape {image.shape}: {reason}"
        ) from err
    if grey and result.ndim == 3:
        result = result[..., 0]
    if result.shape != image.shape or result.dtype != np.uint8:
        raise PolicyError(
            f"{op!r}: turned {image.shape} uint8 into {result.shape} {result.dtype}; ops that "
            "change an image's shape or type cannot be part of a policy: set --image-size instead"
        )
    result = np.ascontiguousarray(result)
    if singles == [transform]:
        return result, {"applied": bool(transform.params), "params": params_of(transform)}
    done = [{"op": PREFIX + type(s).__name__, "params": params_of(s)} for s in singles if s.params]
    return result, {"applied": bool(done), "transforms": done}


def singles_of(transform: Any) -> list[Any]:
    """The transform itself, or those in a group, however deep."""
    if hasattr(transform, "params"):
        return [transform]
    return [single for inner in transform.transforms for single in singles_of(inner)]


def params_of(single: Any) -> dict[str, Any]:
    """What the library says that it did, in its last call."""
    return {k: recorded(v) for k, v in single.params.items() if k not in ("shape", "seed")}


def recorded(value: Any) -> Any:
    """A parameter as JSON; one too long to be of use in a table is told by its type alone."""
    if isinstance(value, np.ndarray | np.generic):
        size, value = value.size, value.tolist() if value.size <= MAX_RECORDED else None
        return value if value is not None else f"array of {size} numbers"
    if isinstance(value, dict):
        return {str(k): recorded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [recorded(v) for v in value[:MAX_RECORDED]]
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__
