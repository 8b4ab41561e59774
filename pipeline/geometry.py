"""Parameters -> one 3x3 matrix a sample, from output to input pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.ops import Flip, Op, Rotate, Shift
from pipeline.policy import Policy

# Each matrix maps an output pixel (x, y, 1) to the input pixel whose value it takes: the op's
# inverse. Pixel centres have whole coordinates; height and width are in pixels.


def identity(n: int) -> np.ndarray:
    """(n, 3, 3) float64."""
    return np.tile(np.eye(3), (n, 1, 1))


def shift(params: tuple[np.ndarray, ...], height: int, width: int) -> np.ndarray:
    """(B, 3, 3) float64 matrices that move images by x to the right and y downwards.

    params: x and y in pixels, each (B,) float32.
    """
    out = identity(len(params[0]))
    out[:, 0, 2], out[:, 1, 2] = -params[0].astype(np.float64), -params[1].astype(np.float64)
    return out


def rotate(params: tuple[np.ndarray, ...], height: int, width: int) -> np.ndarray:
    """(B, 3, 3) float64 matrices that turn images about their centre, counter-clockwise.

    params: The angle in degrees, (B,) float32.
    """
    # y points down, so what is seen as counter-clockwise is this matrix: its inverse turns back.
    angle = np.deg2rad(params[0].astype(np.float64))
    cos, sin = np.cos(angle), np.sin(angle)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    out = identity(len(angle))
    out[:, 0, 0], out[:, 0, 1], out[:, 0, 2] = cos, -sin, cx - cos * cx + sin * cy
    out[:, 1, 0], out[:, 1, 1], out[:, 1, 2] = sin, cos, cy - sin * cx - cos * cy
    return out


def flip(params: tuple[np.ndarray, ...], height: int, width: int) -> np.ndarray:
    """(B, 3, 3) float64 matrices that mirror images left to right, top to bottom, or both.

    params: Whether to, 0 or 1, for left to right and for top to bottom, each (B,) float32.
    """
    out = identity(len(params[0]))
    for axis, (flipped, last) in enumerate(zip(params, (width - 1, height - 1), strict=True)):
        out[:, axis, axis] = np.where(flipped > 0, -1.0, 1.0)
        out[:, axis, 2] = np.where(flipped > 0, last, 0.0)
    return out


MATRICES: dict[type[Op], Callable[[tuple[np.ndarray, ...], int, int], np.ndarray]] = {
    Shift: shift,
    Rotate: rotate,
    Flip: flip,
}


def matrices(
    policy: Policy, params: dict[str, np.ndarray], height: int, width: int
) -> np.ndarray | None:
    """(B, 3, 3) float64 from output to input pixels, all geometric ops in one; None without any.

    With ops applied in the order T1, T2 an output pixel goes back through T2, then T1.
    """
    total: np.ndarray | None = None
    for i, op in policy.geometric:
        columns = tuple(params[name] for name in policy.columns[i])
        one = MATRICES[type(op)](columns, height, width)
        total = one if total is None else total @ one
    return total
