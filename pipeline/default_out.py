"""Where outputs go unless told, by the name of the data."""

from __future__ import annotations

from pathlib import Path

DEFAULT_OUT = {
    "augment": "augmented/{}",
    "online": "augmented/{}-online.png",
    "train": "runs/{}",
    "crossval": "runs/{}-crossval",
    "ablate": "runs/{}-ablate",
}
FEATURES_FOLDER = Path("features")  # of trainings on a frozen backbone


def default_out(command: str, name: str) -> Path:
    """A relative path; the name is a source's own, or `data_name` where none can be opened yet."""
    return Path(DEFAULT_OUT[command].format(name))
