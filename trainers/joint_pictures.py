"""Pictures of several trainings: their curves together, and the images on which they differ; folds,
and what each part of a training is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.preview import TILE_PX, Sheet, Tile, draw
from trainers.pictures import N_COLUMNS, TRAINING, VALIDATION, new_figure, save

BLUE = "#1f77b4"
BLANK = Tile(np.full((1, TILE_PX, 1), 255, np.uint8), "")  # makes no row higher


def curves_together(
    names: Sequence[str], histories: Sequence[list[list[dict[str, Any]]]], path: Path
) -> None:
    """The curves of runs over one another, a colour a run; all members' of an ensemble. Validation
    is a line, training broken; the names are below, where they hide nothing."""
    import matplotlib as mpl
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    n = len(names)
    few, many = mpl.colormaps["tab10"], mpl.colormaps["turbo"]
    colours = few(np.arange(n)) if n <= 10 else many(np.linspace(0.05, 0.95, n))
    labels = [name if len(name) <= 80 else f"…{name[-79:]}" for name in names]
    n_columns = max(1, min(4, n + 2, 110 // (max(map(len, labels)) + 6)))
    figure = new_figure(9, 3.6 + 0.22 * -(-(n + 2) // n_columns))
    marker = "." if max(len(h) for several in histories for h in several) <= 20 else ""
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for colour, several in zip(colours, histories, strict=True):
            for history in several:
                epochs = [epoch["epoch"] for epoch in history]
                look = {"color": colour, "marker": marker, "lw": 1.5 if len(several) == 1 else 0.8}
                axes.plot(epochs, [e[f"val_{name}"] for e in history], **look)
                axes.plot(epochs, [e[name] for e in history], **look, ls="--", alpha=0.5)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    lines = [
        *(
            Line2D([], [], color=c, label=f"{i}  {text}")
            for i, (c, text) in enumerate(zip(colours, labels, strict=True), 1)
        ),
        Line2D([], [], color="#555555", label=VALIDATION),
        Line2D([], [], color="#555555", ls="--", alpha=0.5, label=TRAINING),
    ]
    legend = figure.legend(handles=lines, loc="outside lower left", ncols=n_columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save(figure, path)


def changes(title: str, sides: Sequence[tuple[str, list[Tile]]], path: Path) -> None:
    """Images in rows that are named by their side; as wide as the title needs, however few."""
    names, rows = [], []
    for name, tiles in sides:
        for start in range(0, len(tiles), N_COLUMNS):
            row = tiles[start : start + N_COLUMNS]
            names.append(name)
            rows.append(row + [BLANK] * (N_COLUMNS - len(row)))
    note = "under each: what it is, and the guess of either with how sure that was"
    draw(Sheet(title, names or [""], [], rows or [[BLANK] * N_COLUMNS], note=note), path)


def folds(accuracy: dict[str, Any], path: Path) -> None:
    """The accuracy of each fold, their mean, and its interval as a band."""
    each = [100 * value for value in accuracy["each"]]
    figure = new_figure(6.4, 3.2)
    axes = figure.subplots()
    if accuracy["low"] is not None:
        band = 100 * accuracy["low"], 100 * accuracy["high"]
        axes.axhspan(*band, color="#1f77b4", alpha=0.15, lw=0)
    axes.axhline(100 * accuracy["mean"], color="#1f77b4", lw=1.5)
    axes.plot(range(1, len(each) + 1), each, "o", color="#333333")
    axes.set(xlabel="fold", ylabel="accuracy, %", xticks=range(1, len(each) + 1))
    axes.set_title("line: mean; band: its 95 % interval", fontsize="medium", color="#555555")
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def contributions(result: dict[str, Any], path: Path) -> None:
    """What leaving each part out costs, in points of accuracy: a row a part, its mean with the
    interval, and a dot a seed. Beside it the accuracies themselves, and those in training."""
    rows = [{"part": "nothing", "cost": None, "diverged": ()} | result, *result["without"]]
    figure = new_figure(10, 1.5 + 0.42 * len(rows))
    lost, reached = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for row, found in enumerate(rows):
        cost = found["cost"]
        if found["accuracy"] is None:
            lost.annotate("diverged", (0, row), (6, 0), textcoords="offset points", va="center")
            continue
        if cost is not None:
            each = [100 * value for value in cost["each"]]
            lost.plot(each, [row] * len(each), "o", color="#999999", ms=4, zorder=3)
            if cost["low"] is not None:
                lost.plot([100 * cost["low"], 100 * cost["high"]], [row, row], color=BLUE, lw=2)
            lost.plot(100 * cost["mean"], row, "D", color=BLUE, ms=7)
        tested, trained = (100 * found[k]["mean"] for k in ("accuracy", "training_accuracy"))
        reached.plot([tested, trained], [row, row], color="#bbbbbb", lw=1.5, zorder=1)
        reached.plot(tested, row, "D", color=BLUE, ms=7)
        reached.plot(trained, row, "o", color="#d62728", ms=7, mfc="white")
    lost.axvline(0, color="#333333", lw=1)
    lost.set_yticks(range(len(rows)), [found["part"] for found in rows], parse_math=False)
    lost.set_ylim(len(rows) - 0.5, -0.5)
    lost.set(xlabel="points of accuracy that are lost without it (right: it helps)")
    reached.set(xlabel="accuracy without it, %")
    for axes, title in (
        (
            lost,
            f"diamond: mean of {len(result['seeds'])} seeds; line: 95 % interval; dots: each seed",
        ),
        (reached, f"diamond: {result['split']}; circle: training, as augmented"),
    ):
        axes.set_title(title, fontsize="medium", color="#555555")
        axes.grid(alpha=0.3, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
