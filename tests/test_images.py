"""Image files are decoded as a viewer would show them, or refused with a reason."""

from __future__ import annotations

import csv
import io
import os
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets import images
from datasets.errors import ImageError
from tests.running import run

# A folder of difficult files with an INDEX.tsv of what Pillow makes of each.
BROKEN = os.environ.get("PIPELINE_BROKEN_IMAGES")


def corners() -> np.ndarray:
    """(6, 10, 3): red, green, blue and white corners on grey, so that every turn shows."""
    image = np.full((6, 10, 3), 128, np.uint8)
    image[:3, :5], image[:3, 5:], image[3:, :5] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return image


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_give_their_pixels(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(corners()), format, **options)
    assert_array_equal(images.decode(data), corners())
    assert images.size(data) == (6, 10)


def test_gif_gives_its_first_frame() -> None:
    first = Image.fromarray(corners()).quantize(4)
    data = saved(first, "GIF", save_all=True, append_images=[Image.new("P", (10, 6), 1)])
    assert_array_equal(images.decode(data), np.asarray(first.convert("RGB")))


def test_jpeg_is_opencvs_jpeg() -> None:
    smooth = cv2.GaussianBlur(
        np.random.default_rng(1).integers(0, 256, (64, 48, 3), np.uint8), (9, 9), 3
    )
    data = saved(Image.fromarray(smooth), "JPEG", quality=95)
    want = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)
    # Two builds of libjpeg-turbo, whose upsampling of colour may differ by a few levels.
    assert np.abs(images.decode(data).astype(int) - want).max() <= 6


def jpeg_files() -> list[bytes]:
    """One of each kind: colour and grey, its colours thinned out or not, in one pass or several."""
    rng = np.random.default_rng(3)
    noisy = rng.integers(0, 256, (37, 51, 3), np.uint8)
    pixels = Image.fromarray(cv2.GaussianBlur(noisy, (5, 5), 1))
    kinds: list[dict[str, object]] = [{"subsampling": n} for n in range(3)]
    kinds += [{"progressive": True}, {"restart_marker_blocks": 2}, {"keep_rgb": True}]
    return [
        *(saved(pixels, "JPEG", **kind) for kind in kinds),
        saved(pixels.convert("L"), "JPEG"),
        saved(pixels.convert("CMYK"), "JPEG"),
    ]


def by_pillow(data: bytes, mode: str) -> np.ndarray | None:
    """What Pillow alone makes of a file, None where it refuses it."""
    try:
        with Image.open(io.BytesIO(data), formats=images.formats()) as image:
            image.load()
            return np.asarray(image.convert(mode))
    except Exception:
        return None


def test_files_that_are_read_side_by_side_leave_warnings_as_they_were() -> None:
    data = saved(Image.fromarray(corners()), "PNG")
    one, other = images.opened(data), images.opened(data)
    for step in (one.__enter__, other.__enter__):
        step()
    for reader in (one, other):
        reader.__exit__(None, None, None)
    with pytest.raises(UserWarning):  # which the tests make an error of
        warnings.warn("of somebody else", stacklevel=1)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_a_jpeg_file_gives_pillows_pixels(mode: str, channels: int) -> None:
    for data in jpeg_files():
        want = by_pillow(data, mode)
        assert_array_equal(images.decode(data, channels), want.reshape(37, 51, channels))


@settings(max_examples=300)
@given(
    data=st.sampled_from(jpeg_files()),
    patches=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
    kept=st.floats(0.5, 1) | st.just(1.0),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_a_damaged_jpeg_file_gives_what_pillow_makes_of_it(
    data: bytes, patches: list[tuple[float, int]], kept: float, mode: str
) -> None:
    damaged = bytearray(data)
    start = data.index(b"\xff\xda")  # behind the size, which could be one that takes all memory
    for place, value in patches:
        damaged[start + int(place * (len(data) - start - 1))] = value
    damaged = damaged[: max(start, int(kept * len(data)))]
    want = by_pillow(bytes(damaged), mode)
    try:
        found = images.decode(bytes(damaged), 3 if mode == "RGB" else 1)
    except ImageError:
        assert want is None
    else:
        assert_array_equal(found, want.reshape(found.shape))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    a = corners()
    turned = {  # what a viewer shows, by the meaning of each value in the EXIF standard
        1: a,
        2: a[:, ::-1],
        3: a[::-1, ::-1],
        4: a[::-1],
        5: a.transpose(1, 0, 2),
        6: np.rot90(a, -1),
        7: a[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    options |= {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(a), format, exif=exif, **options)
    assert images.size(data) == turned.shape[:2]
    apart = np.abs(images.decode(data).astype(int) - turned)
    assert apart.mean() < (8 if format == "JPEG" else 1e-9)


@pytest.mark.parametrize("kind", ["raw profile", "xmp"])
def test_the_size_of_a_png_is_that_of_its_pixels_whatever_turns_it(kind: str) -> None:
    text = PngInfo()
    if kind == "xmp":
        xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
        text.add_itxt("XML:com.adobe.xmp", xmp)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        found = exif.tobytes()
        text.add_text("Raw profile type exif", f"\nexif\n{len(found):8}\n{found.hex()}\n", zip=True)
    data = saved(Image.fromarray(corners()), "PNG", pnginfo=text)
    assert_array_equal(images.decode(data), np.rot90(corners(), -1))
    assert images.size(data) == np.rot90(corners()).shape[:2]


def test_alpha_is_shown_over_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (255, 0, 0, 0)
    rgba[1, 0] = (0, 0, 0, 128)
    shown = images.decode(saved(Image.fromarray(rgba), "PNG"))
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[0, 1].tolist() == [255, 255, 255]
    assert shown[1, 0].tolist() == [127, 127, 127]


def test_palettes_with_and_without_transparency() -> None:
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    opaque = images.decode(saved(palette, "PNG"))
    assert opaque[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    clear = images.decode(saved(palette, "PNG", transparency=0))
    assert clear[0].tolist() == [[255, 255, 255], [200, 100, 50]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(format: str) -> None:
    values = np.array([[0, 255, 256], [0x1234, 0xFF00, 0xFFFF]], np.uint16)
    shown = images.decode(saved(Image.fromarray(values), format))
    assert shown[..., 0].tolist() == [[0, 0, 1], [0x12, 0xFF, 0xFF]]
    assert_array_equal(shown[..., 0], shown[..., 2])


def tiff_of(pixels: bytes, width: int, bits: int, photometric: int, more: list[int]) -> bytes:
    """A TIFF of one row of grey, by hand: Pillow writes neither 12 bits nor white as zero."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 0)]
    tags += [*([(274, more[0])] if more else []), (277, 1), (278, 1), (279, len(pixels))]
    start = 8 + 2 + 12 * len(tags) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, start if tag == 273 else v) for tag, v in tags]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + b"".join(rows) + bytes(4) + pixels


@pytest.mark.parametrize("turned", [[], [3]])
def test_grey_tiff_is_as_bright_as_its_bits_and_its_zero_say(turned: list[int]) -> None:
    high = np.array([0, 0x12, 0xFF])
    whole = (high << 8).astype("<u2").tobytes()
    twelve = bytes.fromhex("000120ff0000")  # 0x000, 0x120, 0xff0, and a rest
    for data, bits, photometric, want in (
        (whole, 16, 1, high),
        (whole, 16, 0, 255 - high),
        (twelve, 12, 1, high),
    ):
        shown = images.decode(tiff_of(data, 3, bits, photometric, turned), channels=1)
        assert shown.ravel().tolist() == want[:: -1 if turned else 1].tolist()


def test_transparent_16_bit_grey_is_shown_over_white() -> None:
    values = np.array([[0, 0x1234, 0x1235]], np.uint16)
    shown = images.decode(saved(Image.fromarray(values), "PNG", transparency=0x1234))
    assert shown[0, :, 0].tolist() == [0, 255, 0x12]


def test_pixels_of_32_bits_are_refused_whatever_their_values() -> None:
    for value in (200, 70_000):
        data = saved(Image.fromarray(np.full((2, 2), value, np.int32)), "TIFF")
        with pytest.raises(ImageError, match="has 32-bit or signed pixels"):
            images.decode(data)


def test_cmyk_is_shown_in_colour() -> None:
    cmyk = Image.fromarray(corners()).convert("CMYK")
    shown = images.decode(saved(cmyk, "TIFF"))
    assert np.abs(shown.astype(int) - corners()).max() <= 2


def test_one_bit_and_grey_become_three_equal_channels_or_one() -> None:
    grey = np.arange(60, dtype=np.uint8).reshape(6, 10)
    data = saved(Image.fromarray(grey), "PNG")
    assert_array_equal(images.decode(data), np.repeat(grey[..., None], 3, -1))
    assert_array_equal(images.decode(data, channels=1), grey[..., None])
    bits = images.decode(saved(Image.fromarray(grey > 30), "PNG"))
    assert_array_equal(bits[..., 0], np.where(grey > 30, 255, 0))


def png_that_declares(width: int, height: int) -> bytes:
    import zlib

    data = saved(Image.new("RGB", (1, 1)), "PNG")
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


WHOLE = saved(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)), "JPEG"
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"GIF89a", "not a JPEG, PNG"),
        (b"<svg/>", "not a JPEG, PNG"),
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (png_that_declares(60_000, 60_000), "declares more than 100,000,000 pixels"),
        (png_that_declares(11_000, 11_000), "declares 11000x11000 pixels"),
        (saved(Image.fromarray(np.full((3, 3), 1.5, np.float32)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG, PNG"),
    ],
    ids=["empty", "cut header", "svg", "truncated", "bomb", "too large", "float", "postscript"],
)
def test_what_cannot_be_used_says_why_and_always_the_same(data: bytes, reason: str) -> None:
    for _ in range(2):
        with pytest.raises(ImageError) as caught:
            images.decode(data)
        assert reason in str(caught.value)
        assert " at 0x" not in str(caught.value)  # no addresses: reasons are in the manifest


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(Image.fromarray(corners()), "PNG"))
    assert_array_equal(images.decode(path.read_bytes()), corners())


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_encoded_decodes(encoding: str, channels: int) -> None:
    image = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (1, 48, channels))
    data = images.encode(image, encoding, 95)
    back = images.decode(data, channels)
    assert np.abs(back.astype(int) - image).max() <= (0 if encoding == "png" else 4)


def test_fit_crops_the_centre_and_averages_areas() -> None:
    image = np.zeros((4, 12, 1), np.uint8)
    image[:, 4:8] = np.array([[0, 100, 200, 60]] * 4)[..., None]
    # The middle 4x4 of 4x12; each output pixel is the mean of 2x2.
    assert images.fit(image, 2, 2)[..., 0].tolist() == [[50, 130], [50, 130]]


def test_fit_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None]
    small = images.fit(stripes, 16, 16)
    assert np.abs(small.astype(int) - 127.5).max() <= 1


def test_fit_is_close_to_pillows_box_filter() -> None:
    rng = np.random.default_rng(4)
    image = cv2.GaussianBlur(rng.integers(0, 256, (300, 300, 3), np.uint8), (15, 15), 4)
    want = Image.fromarray(image).resize((100, 100), Image.Resampling.BOX)
    assert np.abs(images.fit(image, 100, 100).astype(int) - np.asarray(want)).max() <= 1


def test_crop_takes_the_part_that_lies_inside() -> None:
    image = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
    assert images.crop(image, (1, 2, 2, 1))[..., 0].tolist() == [[11, 12]]
    assert images.crop(image, (-3, 3, 5, 9))[..., 0].tolist() == [[15, 16]]
    with pytest.raises(ImageError, match="lies outside"):
        images.crop(image, (5, 0, 3, 3))


@pytest.mark.skipif(BROKEN is None, reason="PIPELINE_BROKEN_IMAGES names no folder")
def test_every_difficult_file_is_converted_or_named_with_a_reason(tmp_path: Path) -> None:
    folder = Path(BROKEN or "")
    with (folder / "INDEX.tsv").open() as file:
        index = list(csv.DictReader(file, delimiter="\t"))
    rows = "".join(f"{folder / row['name']},{i % 2}\n" for i, row in enumerate(index))
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    out = tmp_path / "out"
    result = run(
        *("augment", "--dataset", tmp_path / "list.csv", "--image-size", 48, "--encoding", "png"),
        *("--copies", 1, "--max-bad", 1, "--out", out),
    )
    import pyarrow.parquet as pq

    from datasets.manifest import read_manifest

    used = {
        Path(sample_id).name
        for path in out.glob("*.parquet")
        for sample_id in pq.read_table(path)["sample_id"].to_pylist()
    }
    named = {Path(sample_id).name: why for sample_id, why in read_manifest(out).quarantined}
    assert used.isdisjoint(named)
    assert used | set(named) == {row["name"] for row in index}
    for row in index:
        if row["pillow"] == "ok":
            # A broken data stream shows only where the pixels are decoded.
            assert row["name"] in used or "broken_data_stream" in row["name"], named
        elif "UserWarning" not in row["pillow"]:
            assert row["name"] in named
    for name, why in named.items():
        assert f"{name}: {why}" in result.stderr
