"""`pipeline inspect`: what a committed output holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from datasets.errors import printable
from datasets.formats import FORMATS
from datasets.manifest import Manifest, read_manifest
from datasets.versions import reading
from pipeline.check import job_of
from pipeline.report import counted, size


def print_contents(folder: Path) -> None:
    """Prints job, counts and parameter ranges as tables; images are not read."""
    from rich.console import Console
    from rich.table import Column, Table

    with reading(folder) as found:
        manifest = read_manifest(found)
        job_of(found, manifest)  # else its parts may be anything
        counts, ranges = collect(found, manifest)
    console = Console(markup=False, emoji=False)  # names are shown as they are
    job = Table("job", Column(overflow="fold"), title=printable(str(found)), title_justify="left")
    for name, value in manifest.job.items():
        if value is not None and name not in ("splits", "source"):
            job.add_row(name, str(value))
    job.add_row("source", manifest.job["source"][:16])
    job.add_row("job hash", manifest.job_sha256[:16])
    n_bytes = sum(r.bytes for r in manifest.shards)
    job.add_row("size", f"{size(n_bytes)} in {counted(len(manifest.shards), 'shard')}")
    job.add_row("not used", counted(len(manifest.quarantined), "input"))
    console.print(job)

    columns = merge_equal_copies(counts)
    rows = Table(Column("class", overflow="fold"), *columns, title="images of each copy, by split")
    for label, name in enumerate(manifest.classes):
        if any(label in column for column in columns.values()):
            rows.add_row(printable(name), *[f"{column[label]:,}" for column in columns.values()])
    rows.add_row("all", *[f"{column.total():,}" for column in columns.values()])
    console.print(rows)

    if ranges:
        table = Table("parameter", "least", "mean", "most", title="parameters of augmented copies")
        for name, (low, mean, high) in ranges.items():
            table.add_row(name, f"{low:.3f}", f"{mean:.3f}", f"{high:.3f}")
        console.print(table)
    for name, why in manifest.quarantined:
        console.print(printable(f"not used: {name}: {why}"))


def merge_equal_copies(counts: Counter[tuple[str, int, int]]) -> dict[str, Counter[int]]:
    """`train 0 to 4` -> images of each class, for copies in a row that have the same: many columns
    would not fit a terminal."""
    by_copy: dict[tuple[str, int], Counter[int]] = {}
    for (split, copy, label), n in sorted(counts.items()):
        by_copy.setdefault((split, copy), Counter())[label] = n
    groups: list[tuple[str, int, int, Counter[int]]] = []
    for (split, copy), found in by_copy.items():
        if groups and groups[-1][0] == split and groups[-1][3] == found:
            groups[-1] = (split, groups[-1][1], copy, found)
        else:
            groups.append((split, copy, copy, found))
    return {
        f"{split} {low}" if low == high else f"{split} {low} to {high}": found
        for split, low, high, found in groups
    }


def collect(
    folder: Path, manifest: Manifest
) -> tuple[Counter[tuple[str, int, int]], dict[str, tuple[float, float, float]]]:
    """Rows by (split, copy, label), and (least, mean, most) of each parameter over copies >= 1."""
    counts: Counter[tuple[str, int, int]] = Counter()
    sums: dict[str, list[float]] = {}
    reader = FORMATS[manifest.job["format"]]
    for record in manifest.shards:
        table = reader.read_columns(folder / record.name, None)
        copies, labels = table["copy"].to_numpy(), table["label"].to_numpy()
        pairs, n = np.unique(np.stack([copies, labels]), axis=1, return_counts=True)
        for (copy, label), count in zip(pairs.T.tolist(), n.tolist(), strict=True):
            counts[record.split, copy, label] += count
        for field in table.schema:
            if str(field.type) != "float":
                continue
            values = table[field.name].to_numpy()[copies > 0]
            if len(values):
                low, total, high, n_rows = sums.get(field.name, [np.inf, 0.0, -np.inf, 0])
                sums[field.name] = [
                    min(low, float(values.min())),
                    total + float(values.sum(dtype=np.float64)),
                    max(high, float(values.max())),
                    n_rows + len(values),
                ]
    return counts, {name: (a, total / n, b) for name, (a, total, b, n) in sums.items()}
