"""The policy on pixels with OpenCV: one warp, one multiplication, then the library's ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from pipeline.geometry import matrices
from pipeline.library_ops import LibraryStage
from pipeline.memory import aligned
from pipeline.ops import Brightness, Op
from pipeline.policy import Fill, Policy

BORDERS = {
    "reflect": cv2.BORDER_REFLECT,
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "wrap": cv2.BORDER_WRAP,
}
MAX_PADDED_SIDE = 64  # pixels
CACHED_BYTES = 2**18  # of images that go through all ops together
FLAGS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def margin(height: int, width: int) -> int:
    """Pixels of border that `prepare` puts on each side, in images of this size.

    Where all four neighbours of a pixel lie inside, OpenCV takes its fast path: 3.7 instead of
    6.9 µs at 32 px. Above 64 px the larger images cost more cache than that is worth.
    """
    side = max(height, width)
    return side // 4 if side <= MAX_PADDED_SIDE else 0


def prepare(images: np.ndarray, fill: Fill) -> np.ndarray | None:
    """(B, H, W, C) uint8, C 1 or 3 -> what `warp` wants of small images: (B, H + 2m, W + 2m, 4), or
    without the last axis where C is 1, with m = `margin(H, W)` pixels of border on each side.
    None for images without a margin, which are made ready one by one.

    OpenCV warps four channels in 2.9 ns a pixel and three in 7.3, to the same values.
    """
    n, height, width, channels = images.shape
    m = margin(height, width)
    if not m:
        return None
    shape: tuple[int, ...] = (n, height, width)
    if channels == 3:
        images = cv2.cvtColor(images.reshape(n * height, width, 3), cv2.COLOR_RGB2RGBA)
        shape = (*shape, 4)
    border, value = BORDERS[fill.mode], (float(fill.value),) * 4
    out = np.empty((n, height + 2 * m, width + 2 * m, *shape[3:]), np.uint8)
    for image, result in zip(images.reshape(shape), out, strict=True):
        cv2.copyMakeBorder(image, m, m, m, m, border, result, value)
    return out


def warp(
    images: Sequence[np.ndarray] | np.ndarray,
    prepared: Sequence[np.ndarray] | np.ndarray | None,
    inverse: np.ndarray,
    fill: Fill,
    out: np.ndarray,
) -> None:
    """Images, with `prepare` of them, through (B, 3, 3) output-to-input matrices into `out`,
    (B, H, W, 3) or (B, H, W, 1): bilinear, rounded, borders as the fill says."""
    n, height, width, channels = out.shape
    border, value = BORDERS[fill.mode], (float(fill.value),) * 4
    size = (width, height)  # cv2 wants (width, height), NumPy (height, width)
    warp_affine, convert = cv2.warpAffine, cv2.cvtColor
    if prepared is None:
        wide, warped = np.empty((2, height, width, 4), np.uint8)
        for image, matrix, result in zip(images, inverse[:, :2], out, strict=True):
            if channels == 1:
                warp_affine(image, matrix, size, result, FLAGS, border, value)
                continue
            convert(image, cv2.COLOR_RGB2RGBA, wide)
            warp_affine(wide, matrix, size, warped, FLAGS, border, value)
            convert(warped, cv2.COLOR_RGBA2RGB, result)
        return
    m = margin(height, width)
    is_near = reach(inverse, height, width) < m  # all that is read lies within the margin
    placed = inverse[:, :2] + is_near[:, None, None] * np.array([[0, 0, m], [0, 0, m]])
    goal = (
        out.reshape(n, height, width)
        if channels == 1
        else np.empty((n, height, width, 4), np.uint8)
    )
    for image, near, matrix, result in zip(prepared, is_near.tolist(), placed, goal, strict=True):
        seen = image if near else image[m : m + height, m : m + width]
        warp_affine(seen, matrix, size, result, FLAGS, border, value)
    if channels == 3:
        convert(goal.reshape(-1, width, 4), cv2.COLOR_RGBA2RGB, out.reshape(-1, width, 3))


def reach(inverse: np.ndarray, height: int, width: int) -> np.ndarray:
    """(B,) how many pixels beyond the image's edge the matrices take a value from at most, with
    the next pixel that bilinear interpolation reads."""
    x, y = np.meshgrid([0, width - 1], [0, height - 1])
    corners = np.stack([x.ravel(), y.ravel(), np.ones(4)])
    read = inverse[:, :2] @ corners
    last = np.array([[width - 1], [height - 1]])
    return np.maximum(-read, read - last).max((1, 2)) + 1


def brighten(images: np.ndarray, params: tuple[np.ndarray, ...]) -> None:
    """(B, H, W, C) uint8 times (B,) float32 in place, rounded half to even, clipped to 0..255."""
    convert = cv2.convertScaleAbs
    for image, factor in zip(images, params[0].tolist(), strict=True):
        convert(image, image, factor)


# What is applied after the one warp, in which geometric ops act through their matrices.
POINTWISE: dict[type[Op], Callable[[np.ndarray, tuple[np.ndarray, ...]], None]] = {
    Brightness: brighten,
}


def augment_batch(
    policy: Policy,
    images: Sequence[np.ndarray] | np.ndarray,
    prepared: Sequence[np.ndarray] | np.ndarray | None,
    keys: np.ndarray,
    copy: int,
    seed: int,
    library: LibraryStage | None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray], list[str] | None]:
    """The policy on one batch: what both the offline and the online path call.

    Args:
      images: (B, H, W, C) uint8, C 1 or 3, or a sequence of B images.
      prepared: `prepare` of them with the policy's fill, made once for all copies.
      keys: (B,) uint64, from `sample_keys`.
      copy: 0 (returned as it is) or 1..65,535.
      library: The policy's library ops, built; None where it has none.
      out: Memory of the images' shape that may be used for the result.
    Returns: images of the same shape, (B,) float32 for each parameter, and the library ops' JSON.
    """
    n, (height, width, channels) = len(images), images[0].shape
    params = policy.params(seed, keys, copy, height, width)
    if copy == 0:
        return np.asarray(images), params, ["[]"] * n if library else None
    inverse = matrices(policy, params, height, width)
    if out is None:
        out = aligned((n, height, width, channels))
    # A large image goes all the way before the next one, while it is in the processor's cache.
    step = n if prepared is not None else max(1, CACHED_BYTES // (height * width * channels))
    for part in (slice(i, i + step) for i in range(0, n, step)):
        if inverse is None:
            out[part] = np.asarray(images[part])
        else:
            ready = None if prepared is None else prepared[part]
            warp(images[part], ready, inverse[part], policy.fill, out[part])
        for op, columns in zip(policy.ops, policy.columns, strict=True):
            if kernel := POINTWISE.get(type(op)):
                kernel(out[part], tuple(params[name][part] for name in columns))
    if library is None:
        return out, params, None
    grey = channels == 1
    results, done = library.apply([i[..., 0] if grey else i for i in out], seed, keys, copy)
    return np.stack(results).reshape(out.shape), params, done
