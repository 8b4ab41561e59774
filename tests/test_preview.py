"""`pipeline preview`: the sheet shows the very pixels of the rows, enlarged, and what was done."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageFont

from datasets.images import decode
from pipeline.preview import TILE_PX, caption, from_output, from_source, wrapped
from pipeline.report import Report
from tests.running import run, write_photos

# Of a sheet, in pixels: where the first tile is, its longer side, and to the next one in its row.
LEFT, TOP, TILE, STEP = 120, 56, 128, 144


def sheet(*arguments: object, out: Path) -> np.ndarray:
    """(H, W, 3) of the PNG that the command writes."""
    said = run("preview", *arguments, "--out", out).stdout
    assert said.startswith(f"{out}: ")
    with Image.open(out) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def part(pixels: np.ndarray, y: int, column: int, height: int, width: int) -> np.ndarray:
    x = LEFT + column * STEP
    return pixels[y : y + height, x : x + width]


def find(pixels: np.ndarray, tile: np.ndarray, below: int) -> int:
    """Where down the first column the tile begins, not above `below`."""
    height, width = tile.shape[:2]
    for y in range(below, len(pixels) - height + 1):
        if np.array_equal(part(pixels, y, 0, height, width), tile):
            return y
    raise AssertionError("not on the sheet")


def rows_of(out: Path, split: str = "train") -> dict[str, dict[int, np.ndarray]]:
    """Sample id -> copy -> (H, W, 3), in the order of the samples in the shards."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for path in sorted(out.glob(f"{split}-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            image = row["image"]
            if isinstance(image, bytes):
                pixels = np.frombuffer(image, np.uint8).reshape(8, 8, 1).repeat(3, -1)
            else:
                pixels = decode(image["bytes"])
            found.setdefault(row["sample_id"], {})[row["copy"]] = pixels
    return found


def assert_shows(pixels: np.ndarray, rows: list[dict[int, np.ndarray]], copies: list[int]) -> None:
    """Each row of the sheet is one sample, each column one copy, enlarged without smoothing."""
    assert pixels.shape[1] == LEFT + len(copies) * STEP
    y = TOP
    for row in rows:
        tiles = [row[copy].repeat(TILE // 8, 0).repeat(TILE // 8, 1) for copy in copies]
        y = find(pixels, tiles[0], y)
        for column, tile in enumerate(tiles):
            assert_array_equal(part(pixels, y, column, TILE, TILE), tile)
        y += TILE
    assert y < len(pixels) < y + TILE  # captions, and no further row


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("output") / "out"
    run("augment", "--limit", 5, "--copies", 3, "--seed", 9, "--workers", 0, "--out", out)
    return out


def test_a_sheet_of_an_output_shows_its_rows(tmp_path: Path, output: Path) -> None:
    rows = list(rows_of(output).values())
    pixels = sheet(output, "--samples", 3, "--copies", 2, out=tmp_path / "new" / "a.png")
    assert_shows(pixels, rows[:3], [0, 1, 2])


def test_a_sheet_of_a_data_set_shows_what_augment_writes(tmp_path: Path, output: Path) -> None:
    rows = rows_of(output)  # the five samples that come first by hash, as in the sheet
    pixels = sheet("--samples", 5, "--copies", 3, "--seed", 9, out=tmp_path / "a.png")
    assert_shows(pixels, [rows[i] for i in sorted(rows)], [0, 1, 2, 3])


def test_every_tile_has_its_caption_below_and_its_class_at_the_left(
    tmp_path: Path, output: Path
) -> None:
    pixels = sheet(output, "--samples", 2, "--copies", 1, out=tmp_path / "a.png")
    rows = [tiles[0].repeat(16, 0).repeat(16, 1) for tiles in list(rows_of(output).values())[:2]]
    first = find(pixels, rows[0], TOP)
    second = find(pixels, rows[1], first + TILE)
    captions = [part(pixels, y + TILE, c, 32, TILE) for y in (first, second) for c in range(2)]
    assert all((text < 128).sum() > 50 for text in captions)
    assert_array_equal(captions[0], captions[2])  # `original`
    assert (captions[1] != captions[0]).any()
    assert (captions[1] != captions[3]).any()
    assert (pixels[first : first + TILE, : LEFT - 1] < 128).any()
    assert (pixels[: TOP - 20] < 128).sum() > 500  # the title: which data set and policy


@pytest.mark.parametrize(
    ("caption", "lines"),
    [
        ("3 (98%)  is 8", ["3 (98%)  is 8"]),
        (
            "Black_throated_Blue_Jay (98%)  is Northern_Rough_winged_Swallow",
            ["Black_throated_Blue_", "Jay (98%)", "is Northern_Rough_", "winged_Swallow"],
        ),
        ("", [""]),
    ],
)
def test_long_names_are_broken_and_not_cut(caption: str, lines: list[str]) -> None:
    assert wrapped(caption, ImageFont.load_default(11), TILE_PX) == lines


def test_no_name_is_too_long_for_a_caption() -> None:
    font = ImageFont.load_default(11)
    lines = wrapped("x" * 255 + "  is y", font, TILE_PX)
    assert len(lines) == 5
    assert lines[-2].endswith("…")
    assert lines[-1] == "is y"
    assert all(font.getlength(line) <= TILE for line in lines)


def test_a_caption_says_what_was_done_and_leaves_out_what_was_not() -> None:
    params = {"shift_x_px": 2.06, "shift_y_px": -0.4, "angle_deg": 7.2, "brightness": 1.084}
    assert caption(params, None) == "shift +2.1, -0.4 px  rotate +7°  bright 1.08"
    still = {"angle_deg": 0.0, "flipped": 1.0, "flipped_vertically": 0.0, "brightness": 1.0}
    assert caption(still, "[]") == "flip"
    steps = ['{"op": "albumentations.Blur"}', '{"op": "albumentations.Noise", "applied": false}']
    assert caption({"angle_deg_2": -3.0}, f"[{', '.join(steps)}]") == "rotate -3°  Blur"
    assert caption({"angle_deg": -0.3}, None) == "rotate +0°"
    group = {"op": "albumentations.OneOf", "applied": True, "transforms": [json.loads(steps[0])]}
    assert caption({}, json.dumps([group])) == "Blur"
    assert caption({}, json.dumps([group | {"applied": False, "transforms": []}])) == ""


def test_the_tenth_of_an_op_is_told_as_the_first_is() -> None:
    assert caption({"brightness": 1.0, "brightness_10": 1.0}, None) == ""


def test_captions_tell_the_parameters_of_the_rows(output: Path) -> None:
    shown = from_output(output, "train", 2, 3)
    table = pq.read_table(sorted(output.glob("train-*.parquet"))[0]).to_pylist()
    ids = list(dict.fromkeys(row["sample_id"] for row in table))[:2]
    names = ("shift_x_px", "shift_y_px", "angle_deg", "brightness")
    for sample_id, tiles in zip(ids, shown.rows, strict=True):
        rows = sorted((r for r in table if r["sample_id"] == sample_id), key=lambda r: r["copy"])
        told = [caption({name: row[name] for name in names}, None) for row in rows[1:]]
        assert [tile.caption for tile in tiles] == ["original, 8x8", *told]
    assert shown.ids == ids


def test_columns_are_named_by_the_copies_that_are_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("augment", "--limit", 2, "--copies", 2, "--no-original", "--workers", 0, "--out", out)
    assert from_output(out, "train", 2, 6).copies == [1, 2]
    assert from_output(out, "test", 2, 6).copies == [0]
    assert from_source("digits", out, "train", None, 2, 2, None, 0, Report()).copies == [0, 1, 2]
    rows = list(rows_of(out).values())
    assert_shows(sheet(out, "--samples", 2, out=tmp_path / "a.png"), rows, [1, 2])


def test_photos_keep_their_shape_and_library_ops_are_shown(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 3), tmp_path / "out"
    job = ("--dataset", photos, "--policy", "albumentations.GaussianBlur(p=1)")
    run("augment", *job, "--copies", 1, "--encoding", "png", "--workers", 0, "--out", out)
    from_data = sheet(*job, "--samples", 3, "--copies", 1, out=tmp_path / "a.png")
    y, rows = TOP, rows_of(out)
    for sample_id in sorted(rows):
        size = (TILE, round(rows[sample_id][0].shape[0] * TILE / 24))  # every photo is 24 wide
        tiles = [
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))
            for image in rows[sample_id].values()
        ]
        y = find(from_data, tiles[0], y)
        assert_array_equal(part(from_data, y, 1, *tiles[1].shape[:2]), tiles[1])
        y += size[1]
    shown = from_output(out, "train", 3, 1)
    assert {row[1].caption for row in shown.rows} == {"GaussianBlur"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--dataset", "photos/l.csv"), "gone.png: cannot be read: No such file or directory"),
        (
            ("--dataset", "photos/bad.csv"),
            "none of its images can be shown: cat/bad.png: not a JPEG",
        ),
        (
            ("--dataset", "photos", "--split", "test"),
            "--split test: .*photos has no image; choose another",
        ),
        (("--dataset", "photos", "--split", "val"), "--split val: .*photos has train, test"),
        (("out", "--split", "test"), "--split test: .*out has train$"),
        (("photos",), "photos: no _manifest.json, so not an output of `pipeline augment`"),
        (
            ("--out", "sheet.jpg"),
            "--out sheet.jpg: expected the name of a file on a disk that ends with .png$",
        ),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    photos = write_photos(tmp_path / "photos", 3)  # by hash none is in the test split
    (photos / "cat" / "bad.png").write_text("no image")
    (photos / "l.csv").write_text("path,label,split\ngone.png,1,train\n")
    (photos / "bad.csv").write_text("path,label,split\ncat/bad.png,1,train\n")
    if arguments[0] == "out":
        (photos / "cat" / "bad.png").unlink()
        run("augment", "--dataset", photos, "--workers", 0, "--out", tmp_path / "out")
    paths = [tmp_path / a if a[0] in "po" else a for a in arguments]
    message = run("preview", "--out", tmp_path / "a.png", *paths, code=2).stderr
    assert len(message.splitlines()) == 1
    assert re.search(expected, message), message
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_shard_with_other_bytes_is_called_damaged(tmp_path: Path, encoding: str) -> None:
    out = tmp_path / "out"
    run("augment", "--limit", 5, "--encoding", encoding, "--workers", 0, "--out", out)
    for shard in out.glob("*.parquet"):
        data = shard.read_bytes()  # all but what says where is what
        shard.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    told = run("preview", out, "--out", tmp_path / "a.png", code=3).stderr
    assert len(told.splitlines()) == 1


def test_a_shard_that_is_gone_is_called_missing(output: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(output, tmp_path / "out")
    shard = next(folder.glob("*.parquet"))
    shard.unlink()
    told = run("preview", folder, "--out", tmp_path / "a.png", code=3).stderr
    assert f"{shard}: missing; write the output again with --overwrite" in told
