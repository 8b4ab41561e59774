"""Writes folders with one foreign library and prints the rows that it reads back as JSON.

Run in an environment that has those libraries and not this product: `write_all.py LIBRARY FOLDER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from read_all import Rows
from read_all import hugging_face as read_hugging_face
from read_all import tfds as read_tfds

NAMES = ["night heron", "ibis"]
SPLITS = {"train": 12, "test": 5}


def images_of(split: str) -> np.ndarray:
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (SPLITS[split], 8, 6, 3), np.uint8)


def hugging_face(folder: Path) -> dict[str, Rows]:
    from PIL import Image as Pillow

    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    for split, n in SPLITS.items():
        columns = {
            "image": [Pillow.fromarray(image) for image in images_of(split)],
            "label": [i % 2 for i in range(n)],
        }
        path = folder / "birds" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features).to_parquet(path, batch_size=5)
    return {"birds": read_hugging_face(folder / "birds")}


def tfds(folder: Path) -> dict[str, Rows]:
    import importlib.resources.abc

    # Its writer imports this backport, which it asks for on old Pythons only.
    sys.modules["importlib_resources"] = importlib.resources
    import tensorflow_datasets

    library: Any = tensorflow_datasets.features
    kinds = {
        "files": library.Image(),
        "bytes": library.Tensor(shape=(8, 6, 3), dtype=np.uint8, encoding="bytes"),
        "numbers": library.Tensor(shape=(8, 6, 3), dtype=np.uint8),
    }
    rows = {}
    for name, image in kinds.items():
        builder = tensorflow_datasets.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            data_dir=folder,
            features=library.FeaturesDict(
                {"image": image, "label": library.ClassLabel(names=NAMES)}
            ),
            split_datasets={
                split: [
                    (f"{split} {i}", {"image": image, "label": i % 2})
                    for i, image in enumerate(images_of(split))
                ]
                for split in SPLITS
            },
        )
        rows[f"{name}/1.0.0"] = read_tfds(Path(builder.data_dir))
    return rows


if __name__ == "__main__":
    library, folder = sys.argv[1:]
    rows = {"hugging_face": hugging_face, "tfds": tfds}[library](Path(folder))
    json.dump(rows, sys.stdout)
