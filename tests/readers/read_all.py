"""Opens an output folder with one foreign library and prints what it sees as JSON.

Run in an environment that has those libraries and not this product: `read_all.py LIBRARY FOLDER`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def pixels_of(image: Any) -> str:
    import numpy as np

    array = np.asarray(image)
    return hashlib.sha256(array.tobytes()).hexdigest() + str(list(array.shape[:2]))


def hugging_face(folder: Path) -> Rows:
    from datasets import load_dataset

    rows = []
    for split, data in load_dataset(str(folder), cache_dir=str(folder.parent / "hf")).items():
        names = data.features["label"].names
        for row in data:
            image = row.pop("image")
            raw = isinstance(image, bytes)
            seen = hashlib.sha256(image).hexdigest() if raw else pixels_of(image)
            rows.append({**row, "image": seen, "class": names[row["label"]], "split": split})
    return rows


def tfds(folder: Path) -> Rows:
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(str(folder))
    names = builder.info.features["label"].names
    rows = []
    for split in builder.info.splits:
        dataset = builder.as_dataset(split=split, shuffle_files=False)
        assert len(dataset) == builder.info.splits[split].num_examples
        for row in tensorflow_datasets.as_numpy(dataset):
            seen = pixels_of(row.pop("image"))
            values = {k: v.decode() if isinstance(v, bytes) else v.item() for k, v in row.items()}
            rows.append({**values, "image": seen, "class": names[values["label"]], "split": split})
    return rows


def parse_example(folder: Path) -> Rows:
    """By the very lines that docs/data.md shows, for raw digits in `augmented/tfrecord`."""
    import tensorflow as tf

    document = Path(__file__).parents[2] / "docs" / "data.md"
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.S | re.M)
    (lines,) = [block for block in blocks if "TFRecordDataset" in block]
    names: dict[str, Any] = {"tf": tf}
    os.chdir(folder.parents[1])
    exec(lines, names)
    return [
        {
            "image": pixels_of(row["image"]),
            "label": int(row["label"]),
            "sample_id": row["sample_id"].decode(),
            "copy": int(row["copy"]),
            "brightness": float(row["brightness"]),
        }
        for row in names["dataset"].as_numpy_iterator()
    ]


QUERY = """
SELECT label, copy, count(*) AS n, min(brightness) AS low, max(brightness) AS high
FROM read_parquet('{}') GROUP BY label, copy ORDER BY label, copy
"""


def duckdb(folder: Path) -> Rows:
    import duckdb as db

    result = db.sql(QUERY.format(folder / "train-*.parquet"))
    names = result.columns
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def polars(folder: Path) -> Rows:
    import polars as pl

    found = (
        pl.scan_parquet(folder / "train-*.parquet")
        .group_by("label", "copy")
        .agg(
            pl.len().alias("n"),
            pl.col("brightness").min().alias("low"),
            pl.col("brightness").max().alias("high"),
        )
        .sort("label", "copy")
    )
    return found.collect().to_dicts()


if __name__ == "__main__":
    readers = (hugging_face, tfds, parse_example, duckdb, polars)
    library, folder = sys.argv[1:]
    rows = {r.__name__: r for r in readers}[library](Path(folder))
    json.dump(rows, sys.stdout)
