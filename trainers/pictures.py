"""Pictures of a training: curves, confusion, and the mistakes that it was surest of."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.preview import Sheet, Tile
from pipeline.stream import Images
from trainers.evaluate import Evaluation

MAX_NAMED = 30  # classes; with more, counts in cells would not be legible
MAX_CELLS = 1000  # classes; with more, a cell would be smaller than a point, and all take gigabytes
MAX_TICKS = 40  # names at a side
MAX_LETTERS = 32  # of a name
N_PAIRS = 20
MATRIX_PT = 470  # its side, about, where the pairs are listed beside it
N_MISTAKES = 32
N_COLUMNS = 8
MARK = "#b00020"
# Of curves: whoever sees them alone would wonder why the training is worse.
TRAINING, VALIDATION = "training, as augmented", "validation, on originals"


@dataclass(frozen=True)
class Pair:
    """`n` of the `of` images of class `truth` were guessed to be `guess`."""

    truth: int
    guess: int
    n: int
    of: int


def new_figure(width: float, height: float) -> Any:
    import matplotlib as mpl

    mpl.use("agg")  # no display is needed
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path, crop: bool = False) -> None:
    """Writes a PNG; `crop` leaves out margins around what is drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is shown as a box
        figure.savefig(path, dpi=120, bbox_inches="tight" if crop else None)


def curves(history: list[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy of each epoch, in training and validation."""
    figure = new_figure(9, 3.6)
    epochs = [epoch["epoch"] for epoch in history]
    dot = "o" if len(epochs) == 1 else ""  # one point makes no line
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for prefix, label, colour in (
            ("", TRAINING, "#888888"),
            ("val_", VALIDATION, "#1f77b4"),
        ):
            values = [epoch[prefix + name] for epoch in history]
            axes.plot(epochs, values, marker=dot, label=label, color=colour)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save(figure, path)


def confusion(found: Evaluation, classes: tuple[str, ...], path: Path) -> None:
    """Rows are the true classes, columns the guesses: what was right in blue, mistakes in orange,
    by their share of the row. With few classes every count is in its cell; with many, the pairs
    that were confused most are ringed and listed at the right."""
    counts, n = confusion_counts(found, len(classes)), len(classes)
    if n <= MAX_NAMED:
        side, names_in = max(2.4, 0.36 * n), 0.085 * min(MAX_LETTERS, max(map(len, classes)))
        figure = new_figure(side + names_in + 0.7, side + names_in + 0.6)
        axes = draw_matrix(figure.subplots(), counts, classes, every=1)
        write_counts(axes, counts.toarray(), cell_pt=72 * side / n)
    else:
        figure = new_figure(12.6, 9.0)
        axes, beside = figure.subplots(1, 2, width_ratios=(9.2, 3.4))
        draw_matrix(axes, counts, classes, every=math.ceil(n / MAX_TICKS))
        list_pairs(axes, beside, confused_pairs(counts), classes)
    save(figure, path, crop=True)


def confusion_counts(found: Evaluation, n_classes: int) -> Any:
    """(n_classes, n_classes) int, a sparse array of SciPy: how many of each true class, the row,
    were guessed to be each."""
    from scipy.sparse import coo_array

    ones = np.ones(len(found.labels), int)
    where = (found.labels, found.guesses)
    return coo_array((ones, where), shape=(n_classes, n_classes)).tocsr()


def confused_pairs(counts: Any) -> list[Pair]:
    """The mistakes of each kind, the most frequent first."""
    of, cells = counts.sum(1).tolist(), counts.tocoo()
    found = zip(*(part.tolist() for part in (cells.row, cells.col, cells.data)), strict=True)
    wrong = [Pair(truth, guess, n, of[truth]) for truth, guess, n in found if truth != guess]
    return sorted(wrong, key=lambda p: (-p.n, -p.n / p.of, p.truth, p.guess))


def draw_matrix(axes: Any, counts: Any, classes: tuple[str, ...], every: int) -> Any:
    """The axes, with the cells in colours and the name of every `every`-th class."""
    n = len(classes)
    draw_cells(axes, counts)
    axes.set(xlabel="guessed", ylabel="true")
    named = range(0, n, every)
    names = [shortened(classes[i]) for i in named]
    size = 9 if n <= MAX_NAMED else 7.5
    # As they are, a $ would begin a formula.
    axes.set_xticks(named, names, rotation=90, parse_math=False, fontsize=size)
    axes.set_yticks(named, names, parse_math=False, fontsize=size)
    axes.spines[:].set_color("#999999")
    axes.tick_params(color="#999999")
    if n <= MAX_NAMED:
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.tick_params(which="minor", length=0)
    which = "minor" if n <= MAX_NAMED else "major"
    axes.grid(which=which, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def draw_cells(axes: Any, counts: Any) -> None:
    """A coloured cell for each count but 0; of very many classes a point."""
    from matplotlib import colormaps

    n, blues, oranges = counts.shape[0], colormaps["Blues"], colormaps["Oranges"]
    if n > MAX_CELLS:
        truth, guess = counts.nonzero()
        is_right = truth == guess
        axes.scatter(guess[~is_right], truth[~is_right], s=2, color=oranges(0.6), linewidths=0)
        axes.scatter(guess[is_right], truth[is_right], s=2, color=blues(0.8), linewidths=0)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
        return
    cells = counts.toarray()
    shares = cells / np.maximum(1, cells.sum(1, keepdims=True))
    # The root, so that a few mistakes among many can be seen; a cell without any stays clear.
    faintest = min(0.25, 0.08 + n / 1000)  # a small cell needs more of it
    colours = oranges(faintest + (0.85 - faintest) * np.sqrt(shares))
    colours[np.eye(n, dtype=bool)] = blues(0.15 + 0.75 * np.diag(shares))
    colours[..., 3] = cells > 0
    axes.imshow(colours, zorder=1)


def write_counts(axes: Any, counts: np.ndarray, cell_pt: float) -> None:
    """Every count but 0 in its cell, as large as the longest fits."""
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    size = min(10.0, 0.9 * cell_pt / (0.64 * len(str(counts.max()))))
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.6 else "#222222"
        count = counts[row, column]
        middle = {"ha": "center", "va": "center"}
        axes.text(column, row, count, color=colour, fontsize=size, **middle)


def list_pairs(axes: Any, beside: Any, pairs: list[Pair], classes: tuple[str, ...]) -> None:
    """A numbered ring around the cell of each pair that was confused more than once, the most
    frequent alone if there are many, and a list of what they are."""
    from matplotlib import patheffects

    shown = [pair for pair in pairs if pair.n > 1][:N_PAIRS]
    ring_pt = max(8.0, 1.5 * MATRIX_PT / len(classes))
    halo = [patheffects.withStroke(linewidth=2, foreground="white")]
    counts = [f"{pair.n:,} of {pair.of:,}" for pair in shown]
    names_at = 0.13 + 0.025 * max(map(len, counts), default=0)
    beside.axis("off")
    title = "most often confused" if shown else "no pair was confused twice"
    beside.text(0, 1, title, fontsize=10, va="top", weight="bold")
    for number, pair in enumerate(shown, 1):
        at, side = (pair.guess, pair.truth), 1 if pair.guess > pair.truth else -1
        ring = {"facecolors": "none", "edgecolors": MARK, "clip_on": False}
        axes.scatter(*at, s=ring_pt**2, zorder=2, **ring)
        axes.annotate(
            str(number),
            at,
            (side * (ring_pt / 2 + 2), side * ring_pt / 3),  # away from the diagonal
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=7.5,
            color=MARK,
            path_effects=halo,
        )
        top = 1 - 0.95 * number / N_PAIRS
        style = {"fontsize": 8, "va": "top", "parse_math": False}
        beside.text(0, top, f"{number}", color=MARK, **style)
        beside.text(0.1, top, counts[number - 1], color="#666666", **style)
        names = f"{shortened(classes[pair.truth])}\n→ {shortened(classes[pair.guess])}"
        beside.text(names_at, top, names, linespacing=1.3, **style)


def shortened(name: str) -> str:
    """The name, without its middle where it is too long: the ends tell more."""
    half = MAX_LETTERS // 2
    return name if len(name) <= MAX_LETTERS else f"{name[:half]}…{name[-half + 1 :]}"


def mistakes(found: Evaluation, source: Images, shown: np.ndarray) -> Sheet:
    """Images of wrong guesses with the highest probability, with guess, probability, truth and
    sample id."""
    sure, classes = found.probabilities.max(1), source.classes
    wrong = np.flatnonzero(found.labels != found.guesses)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:N_MISTAKES]
    tiles = []
    for i, image in zip(worst, source.images(shown[worst], 0), strict=True):
        guess, truth = classes[found.guesses[i]], classes[found.labels[i]]
        name = source.ids[shown[i]]
        tiles.append(Tile(image, f"{guess} ({sure[i]:.0%})  is {truth}\n{name}"))
    rows = [tiles[i : i + N_COLUMNS] for i in range(0, len(tiles), N_COLUMNS)]
    title = (
        f"{len(wrong):,} of {len(shown):,} wrong{', the surest first' if len(wrong) > 1 else ''}"
    )
    note = "under each: the guess, how sure it was, what it is, and which sample"
    return Sheet(title, [""] * len(rows), [], rows, note=note)
