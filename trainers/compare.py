"""`pipeline compare`: how runs differ, in options, in figures and in what they guess for the same
images, and whether that may be chance."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.commit import hold
from datasets.errors import EnvironmentFailed, ImageError, OutputError, UserError
from datasets.folder import readable
from datasets.schema import as_utf8, canonical_json
from datasets.storage import write_atomically
from pipeline.online import open_images
from pipeline.output_place import refuse_nesting
from pipeline.preview import Tile
from pipeline.report import Report
from trainers import joint_pictures
from trainers.comparison import figures, format_tables
from trainers.evaluate import EvaluateConfig, data_of, is_part_of_train, positions_of
from trainers.results import Run, read_run

FIGURES, TABLE, CURVES, CHANGED = "compare.json", "changed.csv", "curves.png", "changed.png"
N_SHOWN = 24  # images of either direction


def compare(paths: Sequence[Path], out: Path, report: Report) -> str:
    """Tables for people; then the folder `out` holds the same figures, and pictures.

    Raises: UserError for runs that cannot be compared; OutputError if `out` holds anything else.
    """
    place = out.expanduser().resolve()
    try:
        runs = read_runs(paths)
        refuse_to_compare(runs)
        for run in runs:
            refuse_nesting(place, str(run.config["origin"].get("dataset")))
        refuse_to_write(place)
        with hold(place):
            found = figures(runs)
            files = {
                TABLE: changed_table(runs),
                CURVES: as_png(
                    lambda path: joint_pictures.curves_together(
                        [run.name for run in runs], [run.histories for run in runs], path
                    )
                ),
            }
            try:
                title, sides = changed_tiles(runs[0], runs[-1], len(runs), report)
            except (UserError, ImageError, OSError) as err:
                found["left_out"] = f"{CHANGED} is left out: {' '.join(str(err).split())}"
            else:
                if any(tiles for _, tiles in sides):
                    files[CHANGED] = as_png(lambda path: joint_pictures.changes(title, sides, path))
                else:
                    found["left_out"] = f"{CHANGED} is left out: the same images are right in both"
            write(place, {FIGURES: as_utf8(canonical_json(found)), **files})
    except OSError as err:
        raise EnvironmentFailed(
            f"{err.filename or out}: {err.strerror or err}; fix that, then try again"
        ) from err
    lines = [format_tables(found), "", f"{readable(str(out))}: {', '.join([FIGURES, *files])}"]
    return "\n".join(lines + ([found["left_out"]] if found["left_out"] else []))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Raises: UserError unless there are two or more, each finished and whole."""
    places = [path.expanduser().resolve() for path in paths]
    twice = next((path for path, p in zip(paths, places, strict=True) if places.count(p) > 1), None)
    if twice or len(places) < 2:
        found = "is named twice" if twice else "is one run"
        raise UserError(f"{twice or paths[0]}: {found}; name two or more that differ")
    ends = [place.name for place in places]
    names = ends if len({*ends}) == len(ends) else list(map(str, paths))
    return [
        read_run(path.expanduser(), readable(name)) for path, name in zip(paths, names, strict=True)
    ]


def refuse_to_compare(runs: list[Run]) -> None:
    """Raises: UserError unless all have guessed, from the same classes, for the same images."""
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = first.guessed, run.guessed
        if run.classes != first.classes:
            what = "has other classes than"
        elif run.result["split"] != first.result["split"]:
            what = f"was tested on {run.result['split']}, not on {first.result['split']} as"
        elif theirs.ids != ours.ids:
            n_both = len({*theirs.ids} & {*ours.ids})
            what = (
                f"was tested on {len(theirs.ids):,} images, {n_both:,} of them among the "
                f"{len(ours.ids):,} of"
            )
        elif (theirs.labels != ours.labels).any():
            i = int((theirs.labels != ours.labels).argmax())
            what = f"has another class for the image {ours.ids[i]} than"
        else:
            continue
        raise UserError(
            f"{run.path}: {what} {first.path}; name runs that were tested on the same images, with "
            "the same classes"
        )


def refuse_to_write(out: Path) -> None:
    """Raises: OutputError if the folder holds anything but an earlier comparison."""
    if not out.exists() or (
        out.is_dir() and all(path.match(f".{FIGURES}.*.tmp") for path in out.iterdir())
    ):
        return
    try:
        is_ours = {"runs", "pairs"} <= json.loads((out / FIGURES).read_text()).keys()
    except (OSError, ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise OutputError(
            f"{out}: exists and was not written by `pipeline compare`; choose another --out"
        )


def write(out: Path, files: dict[str, bytes]) -> None:
    """Writes the files, the first of which makes the folder a comparison; what an earlier one had
    goes first, so that nothing ever stands beside the figures of other runs."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (TABLE, CURVES, CHANGED):
        (out / name).unlink(missing_ok=True)
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()  # of a comparison that was killed; this one holds the folder
    for name, data in files.items():
        write_atomically(out / name, data)


def as_png(draw: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "picture.png")
        return (Path(folder) / "picture.png").read_bytes()


def changed_table(runs: list[Run]) -> bytes:
    """CSV with a row for each image that some of the runs have right, and some wrong."""
    text, classes, first = io.StringIO(), runs[0].classes, runs[0].guessed
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["sample_id", "truth", *(f"guess of {run.name}" for run in runs)])
    right = np.stack([run.right for run in runs])
    for i in np.flatnonzero(right.any(0) & ~right.all(0)).tolist():
        guesses = [classes[run.guessed.guesses[i]] for run in runs]
        table.writerow([first.ids[i], classes[first.labels[i]], *guesses])
    return text.getvalue().encode()


def changed_tiles(
    first: Run, last: Run, n_runs: int, report: Report
) -> tuple[str, list[tuple[str, list[Tile]]]]:
    """A title, and both sides by name: images that the first run alone got right, and the last. At
    the head are those for which the less sure of both was surest.

    Raises: UserError or ImageError if the images cannot be had any more.
    """
    sureness = np.minimum(first.guessed.sureness, last.guessed.sureness)
    sides = [np.flatnonzero(a.right & ~b.right) for a, b in ((first, last), (last, first))]
    shown = [side[np.argsort(-sureness[side], kind="stable")][:N_SHOWN] for side in sides]
    images = iter(originals(first, [first.guessed.ids[i] for side in shown for i in side], report))
    numbers, classes = (1, n_runs), first.classes

    def tile(i: int) -> Tile:
        guesses = [
            f"{number}: {classes[run.guessed.guesses[i]]} ({run.guessed.sureness[i]:.0%})"
            for number, run in zip(numbers, (first, last), strict=True)
        ]
        truth = f"is {classes[first.guessed.labels[i]]}"
        return Tile(next(images), "\n".join((truth, *guesses)))

    title = (
        f"of {len(sureness):,} images {len(sides[0]):,} are right in 1 alone, {len(sides[1]):,} in "
        f"{n_runs} alone, the surest first; 1 is {first.name}, {n_runs} is {last.name}"
    )
    names = [f"only {number} right" for number in numbers]
    return title, [
        (name, [tile(i) for i in side.tolist()]) for name, side in zip(names, shown, strict=True)
    ]


def originals(run: Run, ids: list[str], report: Report) -> np.ndarray:
    """(n, H, W, C) uint8: these samples, from where the run has found its data.

    Raises: UserError or ImageError if one of them cannot be had any more.
    """
    if not ids:
        return np.empty((0, 1, 1, 1), np.uint8)
    split = "train" if is_part_of_train(run.result["split"], run.config) else "test"
    config = EvaluateConfig((run.path,), Path(), split=split, policy="none")
    data = replace(data_of(config, run.config), max_bad=1.0)  # what is gone of these is told
    source = open_images(data, "none", report)
    return source.images(positions_of(ids, source, data.dataset), 0)
