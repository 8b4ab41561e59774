"""Pictures of a training: curves, confusion, and the mistakes that it was surest of."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.preview import Sheet, Tile, draw
from pipeline.stream import Images
from trainers.evaluate import Evaluation

MAX_NAMED = 30  # classes; more names would not be legible
N_MISTAKES = 32


def new_figure(width: float, height: float) -> Any:
    import matplotlib as mpl

    mpl.use("agg")  # no display is needed
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is shown as a box
        figure.savefig(path, dpi=120)


def curves(history: list[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy of each epoch, in training and validation."""
    figure = new_figure(9, 3.6)
    epochs = [epoch["epoch"] for epoch in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [e[name] for e in history], label="training", color="#888888")
        axes.plot(epochs, [e[f"val_{name}"] for e in history], label="validation", color="#1f77b4")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save(figure, path)


def confusion(found: Evaluation, classes: tuple[str, ...], path: Path) -> None:
    """Rows are the true classes, columns the guesses; shares of each row, and counts if few."""
    n = len(classes)
    counts = np.zeros((n, n), int)
    np.add.at(counts, (found.labels, found.guesses), 1)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = min(16, max(4.5, 0.42 * n + 1.6))
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="guessed", ylabel="true")
    if n <= MAX_NAMED:
        # As they are, a $ would begin a formula.
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
        axes.set_xticks(range(n), names, rotation=90, parse_math=False)
        axes.set_yticks(range(n), names, parse_math=False)
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "#333333"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=colour)
    save(figure, path)


def mistakes(found: Evaluation, source: Images, shown: np.ndarray, path: Path) -> None:
    """Images of wrong guesses with the highest probability, with guess, truth and probability."""
    sure, classes = found.probabilities.max(1), source.classes
    wrong = np.flatnonzero(found.labels != found.guesses)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:N_MISTAKES]
    tiles = [
        Tile(image, f"{classes[found.guesses[i]]} ({sure[i]:.0%})  is {classes[found.labels[i]]}")
        for i, image in zip(worst, source.images(shown[worst], 0), strict=True)
    ]
    rows = [tiles[i : i + 8] for i in range(0, len(tiles), 8)]
    title = f"{len(wrong)} of {len(shown)} wrong, the surest first"
    draw(Sheet(title, [""] * len(rows), [], rows), path)
