"""Contact sheets: one row per sample, one column per copy, with the parameters below."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets import images
from datasets.blocks import limited
from datasets.catalog import open_source
from datasets.errors import Damaged, EnvironmentFailed, ImageError, UserError, printable
from datasets.fingerprint import read_each
from datasets.formats import FORMATS
from datasets.manifest import read_manifest, refuse_missing_or_cut, repair_advice
from datasets.source import listing_of, sample_keys
from datasets.storage import is_object
from datasets.versions import reading
from pipeline.check import job_of
from pipeline.library_ops import PREFIX, LibraryStage
from pipeline.opencv_kernel import augment_batch, prepare
from pipeline.policy import resolve_policy
from pipeline.report import Report, counted

if TYPE_CHECKING:
    from PIL import Image

TILE_PX = 128
LINE_PX = 14
MARGIN_PX = 16
PART_LINES = 4  # of one part of a caption
LEFT_PX, TOP_PX = 120, 56
SHORT = {
    "shift_x_px": ("shift {:+.1f}", 0.0),
    "shift_y_px": (", {:+.1f} px", 0.0),
    "angle_deg": ("rotate {:+z.0f}°", 0.0),
    "flipped": ("flip", 0.0),
    "flipped_vertically": ("flip v", 0.0),
    "brightness": ("bright {:.2f}", 1.0),
}


@dataclass(frozen=True)
class Tile:
    """One image of the sheet: (H, W) or (H, W, 3) uint8, and what is written under it."""

    image: np.ndarray
    caption: str


@dataclass(frozen=True)
class Sheet:
    """Rows of tiles with a title; each row is named by its class, each column by its copy.

    ids: Of the samples, below their classes; [] for none.
    note: How to read the sheet, below a title that is then never cut, instead of names of columns.
    tile_px: The longer side of every image.
    """

    title: str
    names: list[str]
    copies: list[int]
    rows: list[list[Tile]]
    ids: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    note: str = ""
    tile_px: int = TILE_PX


def caption(params: dict[str, float], library: str | None) -> str:
    """`shift +2.1, -0.4  rotate +7°  bright 1.08`: what was done, in a few words."""
    parts: list[str] = []
    for name, value in params.items():
        words, neutral = SHORT.get(re.sub(r"_\d+$", "", name), (name + " {:.2f}", 0.0))
        if value == neutral and not name.startswith("shift"):
            continue
        text = words.format(value)
        if text.startswith(", ") and parts:
            parts[-1] += text
        else:
            parts.append(text)
    for step in json.loads(library or "[]"):
        if step.get("applied", True):
            parts += [s["op"].removeprefix(PREFIX) for s in step.get("transforms", [step])]
    return "  ".join(parts)


def original(image: np.ndarray) -> str:
    """With its size, since tiles all have one and shifts are in pixels of the image."""
    height, width = image.shape[:2]
    return f"original, {height}x{width}"


def from_source(
    dataset: str,
    data_dir: Path,
    split: str,
    policy_text: str | None,
    n_samples: int,
    n_copies: int,
    image_size: tuple[int, int] | None,
    seed: int,
    report: Report,
) -> Sheet:
    """The first samples by hash of a data set, and copies as `augment` would write them.

    Raises: UserError if none of them can be shown.
    """
    from pipeline.shard import decode_sample

    if not 0 <= seed < 2**64:
        raise UserError(f"--seed: expected 0 to 2**64 - 1, got {seed}")
    source = open_source(dataset, data_dir)
    policy = resolve_policy(policy_text, source.name)
    listing = listing_of(dataset, source, report)
    if split not in listing.splits:
        raise UserError(f"--split {split}: {dataset} has {', '.join(listing.splits)}")
    samples = listing.splits[split].take(limited(listing.splits[split].ids, n_samples))
    copies = list(range(n_copies + 1))
    library = LibraryStage(policy.library) if policy.library else None
    names, rows, ids, bad = [], [], [], []
    for i, data in enumerate(read_each(source, samples.refs)):
        try:
            image = decode_sample(source, samples, i, data, image_size)[None]
        except ImageError as err:
            bad.append(f"{samples.ids[i]}: {err}")
            continue
        keys, ready, row = sample_keys([samples.ids[i]]), prepare(image, policy.fill), []
        for copy in copies:
            out, params, done = augment_batch(policy, image, ready, keys, copy, seed, library)
            values = {name: float(value[0]) for name, value in params.items()}
            text = caption(values, done[0] if done else None) if copy else original(out[0])
            row.append(Tile(out[0], text))
        names.append(listing.classes[int(samples.labels[i])])
        rows.append(row)
        ids.append(samples.ids[i])
    if not rows:
        why = f"none of its images can be shown: {'; '.join(bad[:3])}" if bad else "has no image"
        raise UserError(f"--split {split}: {dataset} {why}; choose another split or data set")
    return Sheet(f"{source.name}, {split}: {policy}", names, copies, rows, ids, bad)


def from_output(folder: Path, split: str, n_samples: int, n_copies: int) -> Sheet:
    """The first samples of the first shards of an output, as they are stored."""
    with reading(folder) as found:
        return from_version(found, split, n_samples, n_copies)


def from_version(folder: Path, split: str, n_samples: int, n_copies: int) -> Sheet:
    manifest = read_manifest(folder)
    refuse_missing_or_cut(folder, manifest)
    job = job_of(folder, manifest)
    if job.network:
        raise UserError(
            f"{folder}: holds features, which are not images; name what they are made of"
        )
    filled = [r for r in manifest.shards if r.rows]
    shards = [r for r in filled if r.split == split]
    if not shards:
        known = ", ".join(sorted({r.split for r in filled}))
        raise UserError(f"--split {split}: {folder} has {known}")
    found: dict[str, dict[int, tuple[Tile, int]]] = {}
    names = job.schema(tuple(manifest.classes)).params  # in the order of the policy
    for record in shards:
        for rows in FORMATS[job.format].read(folder / record.name):
            if rows.copy > n_copies:
                break
            for i, sample_id in enumerate(rows.ids):
                if sample_id not in found and len(found) == n_samples:
                    continue
                stored = rows.images[i]
                try:
                    image = images.decode(stored) if isinstance(stored, bytes) else stored
                except ImageError as err:
                    raise Damaged(
                        f"{folder / record.name}: {sample_id}: {err}; {repair_advice(folder)}"
                    ) from err
                values = {n: float(rows.params[n][i]) for n in names if n in rows.params}
                text = caption(values, rows.library[i] if rows.library else None)
                tile = Tile(image, text if rows.copy else original(image))
                found.setdefault(sample_id, {})[rows.copy] = (tile, int(rows.labels[i]))
        if len(found) == n_samples:
            break
    labels = [next(iter(tiles.values()))[1] for tiles in found.values()]
    if not {*labels} <= {*range(len(manifest.classes))}:
        raise Damaged(f"{folder}: has labels without a class; {repair_advice(folder)}")
    classes = [manifest.classes[label] for label in labels]
    copies = sorted({copy for tiles in found.values() for copy in tiles})
    grid = [[tiles[copy][0] for copy in copies] for tiles in found.values()]
    return Sheet(f"{folder.name}, {split}: {job.policy}", classes, copies, grid, list(found))


def refuse_other_names(out: Path) -> None:
    """Raises: UserError if no PNG can be written there."""
    if out.suffix.lower() != ".png" or is_object(out):
        raise UserError(f"--out {out}: expected the name of a file on a disk that ends with .png")


def draw(sheet: Sheet, out: Path) -> str:
    """Writes the sheet as PNG; says where it is. Small images are enlarged without smoothing, so
    that each pixel can be seen.

    Raises: UserError if the name is not that of a PNG; EnvironmentFailed if it cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    refuse_other_names(out)
    large, small = ImageFont.load_default(15), ImageFont.load_default(11)
    scaled = [[enlarged(tile.image, sheet.tile_px) for tile in row] for row in sheet.rows]
    lines = [[wrapped(tile.caption, small, sheet.tile_px) for tile in row] for row in sheet.rows]
    ids = [broken(name, small, LEFT_PX - 20) for name in sheet.ids or [""] * len(sheet.rows)]
    tallest = [max(image.height for image in row) for row in scaled]
    heights = [
        max(tall + LINE_PX * max(map(len, captions)), tall // 2 + LINE_PX * (1 + len(name)))
        + MARGIN_PX
        for tall, captions, name in zip(tallest, lines, ids, strict=True)
    ]
    n_columns = max([1, *map(len, sheet.rows)])
    left, step = LEFT_PX if any(sheet.names) else MARGIN_PX, sheet.tile_px + MARGIN_PX
    width = left + n_columns * step
    if sheet.note:
        longest = max(large.getlength(sheet.title), small.getlength(sheet.note))
        width = max(width, math.ceil(longest) + 2 * MARGIN_PX)
    canvas = Image.new("RGB", (width, TOP_PX + sum(heights)), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN_PX, 10), fitted(sheet.title, large, width - 2 * MARGIN_PX), "black", large)
    pen.text((MARGIN_PX, TOP_PX - LINE_PX - 8), sheet.note, "#777777", small)
    for column, copy in enumerate(sheet.copies):
        x = left + column * step
        pen.text((x, TOP_PX - LINE_PX - 6), f"copy {copy}", "#777777", small)
    y = TOP_PX
    for name, sample_id, row, tall, captions, height in zip(
        sheet.names, ids, scaled, tallest, lines, heights, strict=True
    ):
        middle = y + tall // 2 - LINE_PX // 2
        pen.text((MARGIN_PX, middle), fitted(name, small, LEFT_PX - 20), "black", small)
        for n, line in enumerate(sample_id, 1):
            pen.text((MARGIN_PX, middle + LINE_PX * n), line, "#777777", small)
        for column, (image, caption) in enumerate(zip(row, captions, strict=True)):
            x = left + column * step
            if sheet.note:  # white tiles would have no end
                box = (x - 1, y - 1, x + image.width, y + image.height)
                pen.rectangle(box, outline="#cccccc")
            canvas.paste(image, (x, y))
            for n, line in enumerate(caption):
                pen.text((x, y + image.height + 3 + LINE_PX * n), line, "#444444", small)
        y += height
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(out, format="PNG")
    except OSError as err:
        raise EnvironmentFailed(f"--out {out}: cannot be written ({err.strerror})") from err
    shown = f"{out}: {counted(len(sheet.rows), 'sample')}, {counted(n_columns, 'image')} of each"
    return "\n".join([shown, *(printable(f"not shown: {reason}") for reason in sheet.bad)])


def enlarged(pixels: np.ndarray, tile_px: int = TILE_PX) -> Image.Image:
    """(H, W, C) uint8 as large as a tile: without smoothing if it grows, averaged if it shrinks."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    scale = tile_px / max(image.size)
    shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return image.resize(shape, how)


def fitted(text: str, font: object, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    text = printable(text)
    if len(text) <= width and font.getlength(text) <= width:  # type: ignore[attr-defined]
        return text
    text = text[:width]  # of letters that are one pixel wide
    while text and font.getlength(text + "…") > width:  # type: ignore[attr-defined]
        text = text[:-1]
    return text + "…"


def wrapped(text: str, font: object, tile_px: int) -> list[str]:
    """Lines no wider than a tile: parts, which two spaces separate, share one where they fit."""
    lines: list[str] = []
    for given in text.split("\n"):
        own: list[str] = []
        for part in given.split("  "):
            longer = f"{own[-1]}  {part}".strip() if own else part
            if own and is_narrow(longer, font, tile_px):
                own[-1] = longer
            else:
                own += broken(part, font, tile_px)
        lines += own
    return lines


def broken(text: str, font: object, tile_px: int) -> list[str]:
    """Lines no wider than a tile, ended by a space, _, - or / where there is one;
    of a text that would need more than `PART_LINES` the rest is cut."""
    lines: list[str] = []
    while not is_narrow(text, font, tile_px) and len(lines) < PART_LINES - 1:
        end = next((n for n in range(len(text), 1, -1) if is_narrow(text[:n], font, tile_px)), 1)
        mark = 1 + max(text.rfind(mark, 0, end) for mark in " _-/")
        lines.append(text[: mark or end].rstrip())
        text = text[mark or end :].lstrip()
    return [*lines, fitted(text, font, tile_px)]


def is_narrow(text: str, font: object, tile_px: int) -> bool:
    return bool(font.getlength(text) <= tile_px)  # type: ignore[attr-defined]
