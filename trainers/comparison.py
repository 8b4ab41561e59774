"""What `pipeline compare` says of runs: their figures, the options that differ, and tests of
whether one guesses better than another. Needs no disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from datasets.folder import readable
from datasets.schema import canonical_json
from trainers.intervals import CONFIDENCE
from trainers.results import COST, Run

# Of a recipe, what no option changes; the rest is told by the options.
OWN = ("optimizer", "averaged")


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of the share that is right, of all images such as these n.
    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    from scipy.stats import binomtest

    found = binomtest(n_right, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value: how likely a difference at least this large is, among the images
    that only one of two runs got right, if both were equally good.
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947; for classifiers Dietterich, "Approximate statistical tests for comparing
    supervised classification learning algorithms", 1998.
    """
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """The p-values in the same order, corrected for their number: to call those below 0.05 real
    gives even one false alarm with a probability of at most 0.05.
    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return list(map(float, corrected))


def options(run: Run) -> dict[str, Any]:
    """What a run was trained with, by name; of its data the beginnings of the hashes."""
    flat: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if name != "recipe" or key in OWN:
                    add(f"{name}.{key}", inner)
        else:
            flat[name] = value

    for name, value in run.config["run"].items():
        if name != "classes":
            add(name, [str(content)[:8] for content in value] if name == "source" else value)
    return flat


def figures(runs: list[Run]) -> dict[str, Any]:
    """What `compare.json` holds. Pairs are told by the runs' numbers, from 1."""
    known = [options(run) for run in runs]
    names = sorted({name for each in known for name in each})
    values = {name: [each.get(name) for each in known] for name in names}
    pairs, p_values = [], []
    for (i, first), (j, second) in combinations(enumerate(runs, 1), 2):
        n_first = int((first.right & ~second.right).sum())
        n_second = int((second.right & ~first.right).sum())
        p_values.append(mcnemar(n_first, n_second))
        pairs.append({"runs": [i, j], "only_right": [n_first, n_second], "p": p_values[-1]})
    corrected = holm(p_values)
    return {
        "split": runs[0].result["split"],
        "n": len(runs[0].right),
        "runs": [
            {
                "name": run.name,
                "path": readable(str(run.path)),
                "accuracy": run.result["accuracy"],
                "interval": wilson(int(run.right.sum()), len(run.right)),
                "loss": run.result["loss"],
                **run.cost,
            }
            for run in runs
        ],
        "confidence": CONFIDENCE,
        "options": {k: v for k, v in values.items() if len({canonical_json(x) for x in v}) > 1},
        "pairs": [{**pair, "holm": p} for pair, p in zip(pairs, corrected, strict=True)],
        "left_out": None,
    }


def aligned(rows: Sequence[Sequence[str]], to_right: range) -> str:
    """Lines with their columns below one another, those in `to_right` by their right edges."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i in to_right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def format_tables(found: dict[str, Any]) -> str:
    """The figures as tables: runs, options that differ, pairs."""
    runs = [["", "run", "accuracy", "95 % interval", "loss", *COST]]
    for i, run in enumerate(found["runs"], 1):
        low, high = run["interval"]
        cost = ["-" if run[name] is None else f"{run[name]:,.0f}" for name in COST]
        guesses = [f"{run['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{run['loss']:.4f}"]
        runs.append([str(i), run["name"], *guesses, *cost])
    differing = [["option", "runs", "value"]]
    for name, values in found["options"].items():
        by_value: dict[str, list[str]] = {}
        for i, value in enumerate(values, 1):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            by_value.setdefault(text, []).append(str(i))
        for text, numbers in by_value.items():
            differing.append([name, ", ".join(numbers), text])
            name = ""
    several = len(found["pairs"]) > 1
    pairs = [["runs", "only the first right", "only the second right", "p", "p (Holm)"]]
    for pair in found["pairs"]:
        counts = [f"{n:,}" for n in pair["only_right"]]
        p = [f"{pair[name]:.3g}" for name in ("p", "holm")]
        pairs.append([" and ".join(map(str, pair["runs"])), *counts, *p])
    return "\n\n".join(
        [
            f"{found['n']:,} images of the split {found['split']}",
            aligned(runs, range(2, 8)),
            aligned(differing, range(0)) if len(differing) > 1 else "no option differs",
            aligned([row[: 5 if several else 4] for row in pairs], range(1, 5)),
            "p: exact McNemar test, two-sided, of these networks; says nothing of other seeds"
            + (f"\np (Holm): corrected for {len(found['pairs'])} pairs" if several else ""),
        ]
    )
