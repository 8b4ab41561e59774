"""All that a training is, in one file after each epoch: it goes on from there bit for bit.

Keras' own ways to resume do not repeat: dropout's seeds go back to their start, and an optimizer's
count of steps is lost before it is built. So every variable is written, seeds included.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import Damaged, first_line
from datasets.manifest import sha256_text
from datasets.schema import canonical_json
from datasets.storage import write_atomically

# Of a layer's settings, what does not change what it computes, or is told by a run's options.
ASIDE = ("build_config", "module", "registered_name", "synchronized", "trainable")


def variables_of(model: Any, optimizer: Any) -> list[Any]:
    """Weights, moving statistics, the states of seed generators, and the optimizer's own."""
    return [*model.variables, *optimizer.variables]


def layers_digest(model: Any) -> str:
    """16 hex digits that are equal where layers, their settings and how they are joined are; of a
    model whose names Keras has counted from the first."""

    def settings(value: Any) -> Any:
        if isinstance(value, dict):  # later versions of Keras have more settings, which are None
            kept = {k: settings(v) for k, v in value.items() if k not in ASIDE}
            return {k: v for k, v in kept.items() if v is not None}
        return list(map(settings, value)) if isinstance(value, list | tuple) else value

    return sha256_text(canonical_json(settings(model.get_config())))[:16]


@dataclass
class History:
    """The epochs that are done: figures of each, and float32 losses of all their steps."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    losses: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))


def save_state(path: Path, model: Any, optimizer: Any, history: History) -> None:
    """Writes everything, whole or not at all."""
    arrays = {
        f"{i:05d}": np.asarray(variable)
        for i, variable in enumerate(variables_of(model, optimizer))
    }
    arrays |= {"epochs": np.array(json.dumps(history.epochs)), "losses": history.losses}
    arrays["layers"] = np.array(layers_digest(model))
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    write_atomically(path, file.getvalue())


def restore_state(
    path: Path, model: Any, optimizer_after: Callable[[int], Any], is_finished: bool
) -> tuple[History, Any]:
    """The history that was saved, and its optimizer; every variable has its saved value again.

    optimizer_after: Number of epochs -> the optimizer that has trained the last of them, built.
    is_finished: Whether the run is whole, and only a file of it is to be made: then layers may be
      unknown, as earlier versions left them.
    Raises: Damaged if the file is not that of such a training, or of other layers.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            history = History(json.loads(str(saved["epochs"])), saved["losses"])
            optimizer = optimizer_after(len(history.epochs))
            variables = variables_of(model, optimizer)
            layers = str(saved["layers"]) if "layers" in saved.files else None
            if layers != layers_digest(model) and not (layers is None and is_finished):
                had = "may have had" if layers is None else "had"
                raise ValueError(f"in the version that began it the network {had} other layers")
            n_saved = sum(map(str.isdecimal, saved.files))
            if n_saved != len(variables):
                raise ValueError(f"{n_saved} variables, expected {len(variables)}")
            for i, variable in enumerate(variables):
                variable.assign(saved[f"{i:05d}"])
            return history, optimizer
    except Exception as err:  # NumPy and zipfile raise nearly every type there is
        reason = first_line(err)
        raise Damaged(
            f"{path}: cannot be resumed from: {reason}; remove the folder and train again"
        ) from err
