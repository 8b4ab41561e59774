"""`pipeline inspect`: what a committed output holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from datasets.formats import FORMATS
from datasets.manifest import Manifest, read_manifest
from pipeline.report import size


def describe(folder: Path) -> None:
    """Prints job, counts and parameter ranges as tables; images are not read."""
    from rich.console import Console
    from rich.table import Table

    manifest = read_manifest(folder)
    counts, ranges = collect(folder, manifest)
    console = Console()
    job = Table("job", "", title=str(folder), title_justify="left")
    for name, value in manifest.job.items():
        if name not in ("splits", "source"):
            job.add_row(name, str(value))
    job.add_row("source", manifest.job["source"][:16])
    job.add_row("job hash", manifest.job_sha256[:16])
    n_bytes = sum(r.bytes for r in manifest.shards)
    job.add_row("size", f"{size(n_bytes)} in {len(manifest.shards)} shards")
    job.add_row("not used", f"{len(manifest.quarantined)} inputs")
    console.print(job)

    keys = sorted({(split, copy) for split, copy, _ in counts})
    rows = Table(
        "class", *[f"{split} {copy}" for split, copy in keys], title="images by split and copy"
    )
    for label, name in enumerate(manifest.classes):
        if any((split, copy, label) in counts for split, copy in keys):
            rows.add_row(name, *[f"{counts[split, copy, label]:,}" for split, copy in keys])
    total = [sum(n for (s, c, _), n in counts.items() if (s, c) == key) for key in keys]
    rows.add_row("all", *[f"{n:,}" for n in total])
    console.print(rows)

    if ranges:
        table = Table("parameter", "least", "mean", "most", title="parameters of augmented copies")
        for name, (low, mean, high) in ranges.items():
            table.add_row(name, f"{low:.3f}", f"{mean:.3f}", f"{high:.3f}")
        console.print(table)
    for name, why in manifest.quarantined:
        console.print(f"not used: {name}: {why}", markup=False)


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
