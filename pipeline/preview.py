"""Contact sheets: a row a sample, a column a copy, with the parameters under each image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import images
from datasets.blocks import limited
from datasets.catalog import open_source
from datasets.errors import EnvironmentFailed, ImageError, UserError
from datasets.formats import FORMATS
from datasets.manifest import read_manifest
from datasets.source import check_listing, sample_keys
from pipeline.library_ops import LibraryStage
from pipeline.opencv_kernel import augment_batch, prepare
from pipeline.policy import DEFAULTS, PRESETS, parse_policy

TILE_PX = 112
CAPTION_PX = 40
MARGIN_PX = 12
SHORT = {
    "shift_x_px": ("shift {:+.1f}", 0.0),
    "shift_y_px": (", {:+.1f}", 0.0),
    "angle_deg": ("turn {:+.0f}°", 0.0),
    "flipped": ("flip", 0.0),
    "flipped_vertically": ("flip v", 0.0),
    "brightness": ("light {:.2f}", 1.0),
}


@dataclass(frozen=True)
class Tile:
    """One image of the sheet: (H, W) or (H, W, 3) uint8, and what is written under it."""

    image: np.ndarray
    caption: str


@dataclass(frozen=True)
class Sheet:
    """Rows of tiles with a title; each row is named by its class."""

    title: str
    names: list[str]
    rows: list[list[Tile]]


def caption(params: dict[str, float], library: str | None) -> str:
    """`shift +2.1, -0.4 / turn +7° / light 1.08`: what was done, in a few words."""
    parts: list[str] = []
    for name, value in params.items():
        words, neutral = SHORT.get(name.rstrip("_23456789"), (name + " {:.2f}", 0.0))
        if value == neutral and not name.startswith("shift"):
            continue
        text = words.format(value)
        if text.startswith(", ") and parts:
            parts[-1] += text
        else:
            parts.append(text)
    if library and library != "[]":
        parts.append("+ library ops")
    return "  ".join(parts)


def from_source(
    dataset: str,
    data_dir: Path,
    split: str,
    policy_text: str | None,
    n_samples: int,
    n_copies: int,
    image_size: tuple[int, int] | None,
    seed: int,
) -> Sheet:
    """The first samples by hash of a data set, and copies as `augment` would write them."""
    from pipeline.shard import decode_one

    policy = parse_policy(policy_text or DEFAULTS.get(dataset) or PRESETS["standard"])
    source = open_source(dataset, data_dir)
    listing = check_listing(dataset, source.listing())
    if split not in listing.splits:
        raise UserError(f"--split {split}: {dataset} has {', '.join(listing.splits)}")
    samples = listing.splits[split].take(limited(listing.splits[split].ids, n_samples))
    library = LibraryStage(policy.library) if policy.library else None
    names, rows = [], []
    for i, data in enumerate(source.read(samples.refs)):
        box = None if samples.boxes is None else tuple(samples.boxes[i].tolist())
        try:
            image = decode_one(data, source.channels, box, image_size, None)[None]
        except ImageError as err:
            raise UserError(f"{samples.ids[i]}: {err}; it would not be used") from err
        row = []
        for copy in range(n_copies + 1):
            keys = sample_keys([samples.ids[i]])
            out, params, done = augment_batch(
                policy, image, prepare(image, policy.fill), keys, copy, seed, library
            )
            values = {name: float(value[0]) for name, value in params.items()}
            text = caption(values, done[0] if done else None) if copy else "original"
            row.append(Tile(out[0], text))
        names.append(listing.classes[int(samples.labels[i])])
        rows.append(row)
    return Sheet(f"{dataset}, {split}: {policy}", names, rows)


def from_output(folder: Path, split: str, n_samples: int, n_copies: int) -> Sheet:
    """The first samples of the first shards of an output, as they are stored."""
    manifest = read_manifest(folder)
    shards = [r for r in manifest.shards if r.split == split and r.rows]
    if not shards:
        known = ", ".join(sorted({r.split for r in manifest.shards}))
        raise UserError(f"--split {split}: {folder} has {known}")
    found: dict[str, dict[int, tuple[Tile, int]]] = {}
    for record in shards:
        for rows in FORMATS[manifest.job["format"]].read(folder / record.name):
            if rows.copy > n_copies:
                break
            for i, sample_id in enumerate(rows.ids):
                if sample_id not in found and len(found) == n_samples:
                    continue
                stored = rows.images[i]
                image = images.decode(stored) if isinstance(stored, bytes) else stored
                values = {name: float(column[i]) for name, column in rows.params.items()}
                text = caption(values, rows.library[i] if rows.library else None)
                tile = Tile(image, text if rows.copy else "original")
                found.setdefault(sample_id, {})[rows.copy] = (tile, int(rows.labels[i]))
        if len(found) == n_samples:
            break
    names = [manifest.classes[next(iter(tiles.values()))[1]] for tiles in found.values()]
    grid = [[tiles[copy][0] for copy in sorted(tiles)] for tiles in found.values()]
    return Sheet(f"{folder.name}, {split}: {manifest.job['policy']}", names, grid)


def draw(sheet: Sheet, out: Path) -> str:
    """Writes the sheet as PNG; says where it is.

    Small images are enlarged without smoothing, so that each pixel can be seen.
    """
    from PIL import Image, ImageDraw, ImageFont

    n_columns = max(len(row) for row in sheet.rows)
    step_x, step_y = TILE_PX + MARGIN_PX, TILE_PX + CAPTION_PX
    left, top = 120, 56
    width, height = left + n_columns * step_x + MARGIN_PX, top + len(sheet.rows) * step_y
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(15), ImageFont.load_default(11)
    pen.text((MARGIN_PX, 10), fitted(sheet.title, large, width - 2 * MARGIN_PX), "black", large)
    for column in range(n_columns):
        pen.text((left + column * step_x, 34), f"copy {column}", "#777777", small)
    for r, (name, row) in enumerate(zip(sheet.names, sheet.rows, strict=True)):
        y = top + r * step_y
        pen.text((MARGIN_PX, y + TILE_PX // 2 - 8), fitted(name, small, left - 20), "black", small)
        for c, tile in enumerate(row):
            x = left + c * step_x
            pixels = tile.image[..., 0] if tile.image.shape[-1] == 1 else tile.image
            image = Image.fromarray(pixels)
            scale = TILE_PX / max(image.size)
            shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
            canvas.paste(image.resize(shape, how), (x, y))
            for n, line in enumerate(wrapped(tile.caption, small)[:2]):
                pen.text((x, y + TILE_PX + 2 + 14 * n), line, "#444444", small)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(out, format="PNG")
    except OSError as err:
        raise EnvironmentFailed(f"--out {out}: cannot be written ({err.strerror})") from err
    return f"{out}: {len(sheet.rows)} samples, {n_columns} copies each"


def fitted(text: str, font: object, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:  # type: ignore[attr-defined]
        return text
    while text and font.getlength(text + "…") > width:  # type: ignore[attr-defined]
        text = text[:-1]
    return text + "…"


def wrapped(text: str, font: object) -> list[str]:
    """Lines no wider than a tile."""
    lines = [""]
    for word in text.split("  "):
        longer = f"{lines[-1]}  {word}".strip()
        if font.getlength(longer) <= TILE_PX + MARGIN_PX - 4 or not lines[-1]:  # type: ignore[attr-defined]
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
