"""What a network guessed for each sample, in a run folder: written and read."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.errors import UserError, first_line
from datasets.storage import write_atomically

if TYPE_CHECKING:
    from pipeline.stream import Images
    from trainers.evaluate import Evaluation

PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Predictions:
    """What was guessed for n samples, which are sorted by their ids.

    labels, guesses: (n,) int64. probabilities: (n, n_classes) float32.
    """

    ids: list[str]
    labels: np.ndarray
    guesses: np.ndarray
    probabilities: np.ndarray

    @property
    def sureness(self) -> np.ndarray:
        """(n,) float32, the probability of each guess."""
        return np.asarray(self.probabilities.max(1))


def save_predictions(path: Path, source: Images, shown: np.ndarray, found: Evaluation) -> None:
    """Writes a row for each sample that was evaluated: sample_id, label, guess and the float32
    probabilities of all classes, in the order of the labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "sample_id": pa.array([source.ids[i] for i in shown], pa.string()),
        "label": pa.array(found.labels, pa.int64()),
        "guess": pa.array(found.guesses, pa.int64()),
        "probabilities": pa.FixedSizeListArray.from_arrays(
            pa.array(found.probabilities.ravel(), pa.float32()), found.probabilities.shape[1]
        ),
    }
    file = io.BytesIO()
    pq.write_table(pa.table(rows), file, write_page_checksum=True)
    write_atomically(path, file.getvalue())


def read_predictions(path: Path, n_classes: int) -> Predictions:
    """The rows of `save_predictions`, in the order of their sample ids.

    Raises: UserError if it holds anything else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        names = ["sample_id", "label", "guess", "probabilities"]
        file = pq.ParquetFile(path, page_checksum_verification=True)
        table = file.read(names).sort_by("sample_id")
        ids = table["sample_id"].to_pylist()
        flat = pc.list_flatten(table["probabilities"]).to_numpy()
        probabilities = flat.reshape(len(ids), n_classes)
        labels, guesses = table["label"].to_numpy(), table["guess"].to_numpy()
        if len({*ids}) < len(ids) or not all(isinstance(name, str) for name in ids):
            raise ValueError("its sample ids are not unique strings")
        if labels.dtype != np.int64 or not ((labels >= 0) & (labels < n_classes)).all():
            raise ValueError(f"its labels are not whole numbers below {n_classes}")
        if guesses.dtype != np.int64 or (guesses != probabilities.argmax(1)).any():
            raise ValueError("its guesses are not the most probable classes")
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as err:
        reason = first_line(err)
        raise UserError(
            f"{path}: cannot be read as predictions: {reason}; the same command with --resume "
            "writes it again"
        ) from err
    return Predictions(ids, labels, guesses, probabilities)
