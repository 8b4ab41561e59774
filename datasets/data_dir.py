"""Where data sets known by name lie, unless told otherwise. The command line needs it to start."""

from pathlib import Path

DATA_DIR = Path.home() / ".cache" / "augmentation-pipeline"
