"""All that a training is, in one file after each epoch: it goes on from there bit for bit.

Keras' own ways to resume do not repeat: dropout's seeds go back to their start, and an optimizer's
count of steps is lost before it is built. So every variable is written, seeds included.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from datasets.commit import write_atomically
from datasets.errors import Damaged


def variables_of(model: Any, optimizer: Any) -> list[Any]:
    """Weights, moving statistics, the states of seed generators, and the optimizer's own."""
    return [*model.variables, *optimizer.variables]


def save_state(path: Path, model: Any, optimizer: Any, progress: dict[str, Any]) -> None:
    """Writes everything, whole or not at all. progress: JSON of the epochs that are done."""
    arrays = {
        f"{i:05d}": np.asarray(variable)
        for i, variable in enumerate(variables_of(model, optimizer))
    }
    file = io.BytesIO()
    np.savez(file, **arrays, progress=np.array(json.dumps(progress)))  # type: ignore[arg-type]
    write_atomically(path, file.getvalue())


def restore_state(path: Path, model: Any, optimizer: Any) -> dict[str, Any]:
    """The progress that was saved; every variable has its saved value again.

    Raises: Damaged if the file is not that of such a training.
    """
    optimizer.build(model.trainable_variables)
    variables = variables_of(model, optimizer)
    try:
        with np.load(path, allow_pickle=False) as saved:
            if len(saved.files) != len(variables) + 1:
                raise ValueError(f"{len(saved.files) - 1} variables, expected {len(variables)}")
            for i, variable in enumerate(variables):
                variable.assign(saved[f"{i:05d}"])
            progress: dict[str, Any] = json.loads(str(saved["progress"]))
    except Exception as err:  # NumPy and zipfile raise nearly every type there is
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        raise Damaged(
            f"{path}: cannot be resumed from: {reason}; remove the folder and train anew"
        ) from err
    return progress
