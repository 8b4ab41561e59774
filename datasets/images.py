"""Image files <-> pixels: decoded as a viewer would show them, resized, cropped, encoded."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from datasets.errors import EnvironmentFailed, ImageError
from datasets.quiet import pass_over_warnings

if TYPE_CHECKING:
    from PIL import Image

PLUGINS = {  # Pillow loads the less usual ones only when asked; MPO comes with JPEG
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "GIF": "Gif",
}
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 100_000_000  # of a declared size; 300 MB decoded: a bomb is refused by its header
MAX_JPEG_SIDE = 65_500
ORIENTATION = 0x0112
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second
# Where Pillow looks for one: the chunk, what ImageMagick writes, and XMP.
PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


@cache
def formats() -> list[str]:
    """Names of the formats that Pillow may open, their plugins loaded."""
    for plugin in PLUGINS.values():
        import_module(f"PIL.{plugin}ImagePlugin")
    return list(PLUGINS)


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The file's header, read by Pillow; every failure inside becomes an ImageError.

    Reasons never hold addresses or paths: they go into the manifest, which is equal for equal jobs.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError("empty file")
    pass_over_warnings(r"PIL\.")  # broken metadata does not make pixels unusable
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            check_pixels(image.width, image.height)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as err:
        raise ImageError("not a JPEG, PNG, WebP, BMP, TIFF or GIF image") from err
    except Image.DecompressionBombError as err:
        raise ImageError(f"declares more than {MAX_PIXELS:,} pixels") from err
    except MemoryError as err:  # no fault of the image: elsewhere there may be enough
        raise EnvironmentFailed(
            "not enough memory to decode an image; use fewer --workers or a machine with more"
        ) from err
    except Exception as err:  # Pillow's decoders raise nearly every type there is
        reason = (str(err).splitlines() or [""])[0]
        reason = re.sub(r" ?<[^>]* at 0x[0-9a-f]+>", "", reason)
        raise ImageError(reason or type(err).__name__) from err


def check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"declares {width}x{height} pixels; at most {MAX_PIXELS:,} are read")


def size(data: bytes) -> tuple[int, int]:
    """(height, width) that `decode` would give, from the header alone.

    Raises: ImageError if the header is not that of a usable image.
    """
    with opened(data) as image:
        width, height = image.size
        # Pillow turns TIFF by itself. PNG's orientation may stand behind the pixels: look for it
        # first, since asking for it decodes them.
        may_turn = image.format != "TIFF" and (
            image.format != "PNG" or any(name in data for name in PNG_ORIENTATIONS)
        )
        return (width, height) if may_turn and orientation(image) >= 5 else (height, width)


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where it is absent or cannot be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata, which a viewer passes over too
        return 1
    return found if found in range(1, 9) else 1


def decode(data: bytes, channels: int = 3) -> np.ndarray:
    """(H, W, 3) uint8 RGB, or (H, W, 1) grey with channels=1, as a viewer would show the file.

    First frame; EXIF orientation applied; palette, CMYK and LAB converted; transparency over
    white; 16-bit cut to its high byte. Not so a clear colour (tRNS) in a PNG of 2 or 4 bits of grey
    or 16 of colour: Pillow looks for it among the values of 8 bits. Pillow decodes, since OpenCV
    gives truncated files without a word; flawless JPEG files are left to simplejpeg, which gives
    the same pixels sooner.
    Raises: ImageError with a reason that is the same on every run.
    """
    with opened(data) as image:
        if (plain := decode_plain_jpeg(image, data, channels)) is not None:
            return plain
        image.load()
        shown = flatten(turn(image))
        mode = "RGB" if channels == 3 else "L"
        shown = shown if shown.mode == mode else shown.convert(mode)
        pixels = as_array(shown)
        return pixels.reshape(shown.height, shown.width, channels)


def decode_plain_jpeg(image: Image.Image, data: bytes, channels: int) -> np.ndarray | None:
    """(H, W, channels) uint8, what Pillow makes of a JPEG file in a fifth more time: libjpeg-turbo,
    which both call, writes straight into the array. None where there is more to do than that, or
    anything is wrong with the file: what becomes of it is for Pillow to say.

    image: Its header, not turned. channels: 3 for RGB, 1 for grey.
    """
    import simplejpeg

    color = {("RGB", 3): "RGB", ("L", 3): "RGB", ("L", 1): "GRAY"}.get((image.mode, channels))
    if image.format != "JPEG" or color is None or orientation(image) != 1:
        return None
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    try:
        found: np.ndarray = simplejpeg.decode_jpeg(data, color, buffer=pixels)
    except ValueError:  # a warning of libjpeg's too, or a size that is not the one in Pillow's eyes
        return None
    return found if found.shape == pixels.shape else None


def as_array(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB or L image; of RGB Pillow's own way takes ten times as long, and threads
    wait for it."""
    import cv2
    import pyarrow as pa

    try:
        values = pa.array(image).values.to_numpy() if image.mode == "RGB" else None
    except (ValueError, MemoryError):  # an image of more than 16 MB lies in several pieces
        values = None
    if values is None:
        return np.asarray(image)
    return cv2.cvtColor(values.reshape(image.height, image.width, 4), cv2.COLOR_RGBA2RGB)


def turn(image: Image.Image) -> Image.Image:
    """The image as EXIF says it is to be seen."""
    from PIL.Image import Transpose

    moves = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    move = moves.get(orientation(image))
    return image if move is None else image.transpose(move)


def flatten(image: Image.Image) -> Image.Image:
    """Any mode -> RGB or L without transparency."""
    from PIL import Image

    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image)
        if tags := getattr(image, "tag_v2", None):  # Pillow gives what TIFF stores, as it is stored
            values = values << (16 - tags[BITS][0])
            values = ~values if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else values
        grey = (values >> 8).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return Image.fromarray(grey)
    if image.mode == "I":  # whatever its values, of which nothing says how bright they are
        raise ImageError("has 32-bit or signed pixels; expected 8 or 16 bits a channel, unsigned")
    if image.mode == "F":
        raise ImageError("has floating-point pixels; expected 8 or 16 bits a channel")
    if image.mode == "LAB":
        return lab_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    if image.mode == "RGB":
        return image
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if converted is None:  # only for a conversion in place
        raise ImageError("cannot be converted from LAB")
    return converted


def crop(image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The part of (H, W, C) inside (left, top, width, height) pixels, cut to the image.

    Raises: ImageError if nothing is left.
    """
    left, top, width, height = box
    part = image[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
    if part.size == 0:
        raise ImageError(f"its box {tuple(box)} lies outside of the image {image.shape[1::-1]}")
    return part


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) -> (height, width, C): the largest centred part of that shape, resized.

    Area averaging where it shrinks, so that fine patterns do not alias; bilinear where it grows.
    """
    import cv2

    h, w, channels = image.shape
    part_w, part_h = min(w, round(h * width / height)), min(h, round(w * height / width))
    part_w, part_h = max(1, part_w), max(1, part_h)
    left, top = (w - part_w) // 2, (h - part_h) // 2
    part = image[top : top + part_h, left : left + part_w]
    how = cv2.INTER_AREA if part_h >= height and part_w >= width else cv2.INTER_LINEAR
    return cv2.resize(part, (width, height), interpolation=how).reshape(height, width, channels)


def check_encodable(image: np.ndarray, encoding: str) -> None:
    """Raises: ImageError if the encoding cannot hold an image of that size."""
    height, width = image.shape[:2]
    if encoding == "jpeg" and max(height, width) > MAX_JPEG_SIDE:
        raise ImageError(
            f"has {width}x{height} pixels; a JPEG holds at most {MAX_JPEG_SIDE:,} a side: use "
            "--encoding png, or --image-size"
        )


def encode(image: np.ndarray, encoding: str, quality: int) -> bytes:
    """(H, W, 3) RGB or (H, W, 1) uint8 -> a JPEG of that quality (1 to 100), or a PNG."""
    import cv2

    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if encoding == "jpeg":
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    else:
        _, data = cv2.imencode(".png", image)
    return data.tobytes()
