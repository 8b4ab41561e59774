"""Contact sheets of a network: its kernels, its feature maps, and what speaks for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.errors import UserError
from pipeline.preview import Sheet, Tile, enlarged
from trainers.activations import Network, colours_seen, feature_maps, grad_cam, kernels_of

MAX_KERNELS, KERNELS_A_ROW, MAPS_A_ROW = 256, 16, 16
KERNEL_PX, MAP_PX, CAM_PX = 48, 112, 256  # of a tile, about
SHARE_WITHIN = 0.99  # of a layer's weights: what the scale of their colours reaches
BELOW, ABOVE = np.array([33, 102, 172]), np.array([178, 24, 43])  # blue, red
SIGNS = "blue below 0, white 0, red above"


@dataclass(frozen=True)
class Shown:
    """(B, H, W, C) uint8 images, their names, what they show where that is known, and the names of
    the classes that the network tells apart."""

    images: np.ndarray
    names: Sequence[str]
    truths: Sequence[str | None]
    classes: tuple[str, ...]


def kernel_sheet(network: Network, name: str) -> Sheet:
    """The kernels of a convolution, all on one scale: in colour where they see the image's own
    colours, else the mean over their input channels."""
    layer = network.layers[name]
    kernels = checked(kernels_of(layer), name)
    n, height, width, channels = kernels.shape
    order = colours_seen(network, layer) if channels == 3 else None
    values = kernels[..., order] if order else kernels.mean(3)
    # A few large weights would leave all others pale.
    limit = float(np.quantile(np.abs(values), SHARE_WITHIN) or np.abs(values).max() or 1)
    values = np.clip(values / limit, -1, 1)
    few = f"the first {MAX_KERNELS} of {n}" if n > MAX_KERNELS else str(n)
    title = f"{name}: {few} kernels of {width}x{height}"
    if order:
        title += ", in colour"
        note = f"grey is 0, in each colour; the scale ends at ±{limit:.2g}"
        pixels = np.rint(127.5 + 127.5 * values).astype(np.uint8)
    else:
        title += f", mean over {channels} input channels" if channels > 1 else ""
        note, pixels = f"{SIGNS}; the scale ends at ±{limit:.2g}", diverging(values)
    tiles = [Tile(kernel, str(i)) for i, kernel in enumerate(pixels[:MAX_KERNELS])]
    rows = [tiles[i : i + KERNELS_A_ROW] for i in range(0, len(tiles), KERNELS_A_ROW)]
    return sheet(title, note, rows, tile_px(height, width, KERNEL_PX))


def map_sheet(network: Network, name: str, shown: Shown, n_channels: int) -> Sheet:
    """A row an image: the image, and its maps of the channels that are strongest on average; where
    one row would be too long, several that begin with the image."""
    maps = checked(feature_maps(network.model, network.layers[name], shown.images), name)
    height, width, n = maps.shape[1:]
    strongest = np.argsort(-maps.mean((0, 1, 2)), kind="stable")[:n_channels]
    maps = maps[..., strongest]
    limits = np.abs(maps).max((0, 1, 2))
    values, is_signed = maps / np.where(limits == 0, 1, limits), bool((maps < 0).any())
    pixels = diverging(values) if is_signed else colours(values, "viridis")
    rows = []
    for image, truth, image_name, of_image in zip(
        shown.images, shown.truths, shown.names, pixels, strict=True
    ):
        tiles = [
            Tile(of_image[:, :, i], f"channel {channel}") for i, channel in enumerate(strongest)
        ]
        first = Tile(image, image_name if truth is None else f"is {truth}")
        rows += [[first, *tiles[i : i + MAPS_A_ROW]] for i in range(0, len(tiles), MAPS_A_ROW)]
    title = f"{name}: the {len(strongest)} strongest of {n} channels, maps of {width}x{height}"
    note = SIGNS if is_signed else "dark 0, yellow the most"
    note += "; each channel on a scale of its own, which is the same for all images"
    return sheet(title, note, rows, tile_px(height, width, MAP_PX))


def cam_sheet(network: Network, name: str, shown: Shown, chosen: int | None) -> Sheet:
    """A row an image: the image, and over it what speaks for the class `chosen`, or the likeliest
    of each image."""
    import cv2

    heats, probabilities = grad_cam(network.model, network.layers[name], shown.images, chosen)
    rows = []
    for i, image in enumerate(shown.images):
        large = enlarged(image, CAM_PX)
        heat = cv2.resize(heats[i], large.size, interpolation=cv2.INTER_LINEAR)
        # Over grey, since the image's own colours would read as heat; and the ends of the colour
        # map are nearly black, so that over a dark image none could tell them apart.
        grey, tint = np.asarray(large.convert("L")), colours(0.1 + 0.8 * heat, "turbo")
        over = np.rint(0.5 * grey[..., None] + 0.5 * tint).astype(np.uint8)
        words = cam_caption(probabilities[i], chosen, shown.truths[i], shown.classes)
        words += "" if heats[i].any() else "  (nothing speaks for it)"
        rows.append([Tile(np.asarray(large.convert("RGB")), shown.names[i]), Tile(over, words)])
    what = "the likeliest class" if chosen is None else shown.classes[chosen]
    title = f"Grad-CAM for {what}, at {name} ({heats.shape[2]}x{heats.shape[1]})"
    note = "blue: what says nothing for the class, red: the most. Below: class, how likely, truth"
    return sheet(title, note, rows, CAM_PX)


def cam_caption(
    probabilities: np.ndarray, chosen: int | None, truth: str | None, classes: tuple[str, ...]
) -> str:
    """`cat (70%)  is dog`, or, where `dog` was asked for, `dog (20%)  guess cat (70%)  is dog`."""
    guess = int(probabilities.argmax())
    words = [f"{classes[guess]} ({probabilities[guess]:.0%})"]
    if chosen not in (None, guess):
        words = [f"{classes[chosen]} ({probabilities[chosen]:.0%})", f"guess {words[0]}"]
    return "  ".join(words + ([] if truth is None else [f"is {truth}"]))


def sheet(title: str, note: str, rows: list[list[Tile]], tile_px: int) -> Sheet:
    return Sheet(title, [""] * len(rows), [], rows, note=note, tile_px=tile_px)


def tile_px(height: int, width: int, about: int) -> int:
    """The longer side of a tile, of about so many pixels; what is enlarged gets a whole factor, so
    that all its pixels look equally large."""
    side = max(height, width)
    return side * round(about / side) if side <= about else about


def diverging(values: np.ndarray) -> np.ndarray:
    """(...) -1 to 1 -> (..., 3) uint8: blue to white, which is 0, to red."""
    end = np.where(values[..., None] < 0, BELOW, ABOVE)
    return np.rint(255 + np.abs(values)[..., None] * (end - 255)).astype(np.uint8)


def colours(values: np.ndarray, name: str) -> np.ndarray:
    """(...) 0 to 1 -> (..., 3) uint8 of a colour map of Matplotlib's."""
    import matplotlib as mpl

    found: np.ndarray = mpl.colormaps[name](values, bytes=True)[..., :3]
    return found


def checked(values: np.ndarray, name: str) -> np.ndarray:
    """`values`, unchanged. Raises: UserError if some are not finite."""
    if not np.isfinite(values).all():
        raise UserError(
            f"{name}: has values that are not finite; expected numbers: train the model again, "
            "with a lower --lr"
        )
    return values
