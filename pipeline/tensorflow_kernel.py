"""The policy on pixels as TensorFlow graph ops: the same draws and parameters, one warp a batch.

For accelerators, the `tf.data` service and saved graphs; on a CPU the OpenCV kernel is quicker.
Parameters are equal bit for bit. The warp works in float32 throughout, so that a few pixels are
rounded to the other side: when noise, which shows it most, is rotated, 0.01 % of them at 32 px,
0.04 % at 224 and 0.4 % at 1,500 are 1 apart. Brightness may double that, each further one again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.ops import Brightness, Flip, Op, Rotate, Shift, occurrences
from pipeline.policy import Policy, refuse_library_ops
from pipeline.rng import op_number, philox4x32, split_seed

Tensor = Any  # TensorFlow has no types of its own that a checker could use
FILL_MODES = {"reflect": "REFLECT", "constant": "CONSTANT", "edge": "NEAREST"}


def uniforms(seed: int, keys: Tensor, copy: Tensor, op: int, occurrence: int, n: int) -> Tensor:
    """(B,) uint64 keys, copy a scalar -> (B, n) float32, bit for bit those of
    `pipeline.rng.uniforms_of`."""
    shift = tf.bitwise.right_shift
    zeros = tf.zeros_like(keys)
    low, high = keys & np.uint64(0xFFFFFFFF), shift(keys, np.uint64(32))
    second = zeros + (tf.cast(copy, tf.uint64) | np.uint64(op << 16))
    words: list[Tensor] = []
    for block in range(-(-n // 4)):
        counter = (zeros + np.uint64(block | occurrence << 16), second, low, high)
        words += philox4x32(counter, split_seed(seed), shift)
    bits = shift(tf.stack(words[:n], axis=1), np.uint64(8))
    return tf.cast(bits, tf.float32) * np.float32(2.0**-24)


def parameters(
    policy: Policy, seed: int, keys: Tensor, copy: Tensor, height: int, width: int
) -> dict[str, Tensor]:
    """(B,) float32 for each of the policy's parameters; neutral where copy is 0."""
    out: dict[str, Tensor] = {}
    seen = occurrences([op.name for op in policy.ops])
    for op, columns, occurrence in zip(policy.ops, policy.columns, seen, strict=True):
        u = uniforms(seed, keys, copy, op_number(op.name), occurrence, 1 + op.n_draws)
        applied = (u[:, 0] < op.p) & (copy > 0)
        values = op.params(u[:, 1:], height, width)
        for name, value, neutral in zip(columns, values, op.neutral, strict=True):
            out[name] = tf.where(applied, tf.cast(value, tf.float32), np.float32(neutral))
    return out


# The matrices of `pipeline.geometry`, from output to input pixels.


def stack(rows: list[list[Tensor]]) -> Tensor:
    """Three rows of three (B,) float64 -> (B, 3, 3) float64."""
    return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=-2)


def shift(params: tuple[Tensor, ...], height: int, width: int) -> Tensor:
    """x and y in pixels, each (B,) float32 -> (B, 3, 3) float64: to the right and downwards."""
    x, y = (tf.cast(p, tf.float64) for p in params)
    zero, one = tf.zeros_like(x), tf.ones_like(x)
    return stack([[one, zero, -x], [zero, one, -y], [zero, zero, one]])


def rotate(params: tuple[Tensor, ...], height: int, width: int) -> Tensor:
    """Degrees, (B,) float32 -> (B, 3, 3) float64: about the centre, counter-clockwise."""
    angle = tf.cast(params[0], tf.float64) * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    zero, one = tf.zeros_like(cos), tf.ones_like(cos)
    return stack(
        [
            [cos, -sin, cx - cos * cx + sin * cy],
            [sin, cos, cy - sin * cx - cos * cy],
            [zero, zero, one],
        ]
    )


def flip(params: tuple[Tensor, ...], height: int, width: int) -> Tensor:
    """0 or 1 for left to right and for top to bottom, each (B,) float32 -> (B, 3, 3) float64."""
    x, y = (tf.cast(p, tf.float64) for p in params)
    zero, one = tf.zeros_like(x), tf.ones_like(x)
    return stack(
        [
            [1 - 2 * x, zero, x * (width - 1)],
            [zero, 1 - 2 * y, y * (height - 1)],
            [zero, zero, one],
        ]
    )


MATRICES: dict[type[Op], Callable[[tuple[Tensor, ...], int, int], Tensor]] = {
    Shift: shift,
    Rotate: rotate,
    Flip: flip,
}


def warp(images: Tensor, policy: Policy, params: dict[str, Tensor]) -> Tensor:
    """(B, H, W, C) float32 with whole values -> the same, through all geometric ops at once."""
    height, width = images.shape[1], images.shape[2]
    total: Tensor = None
    for i, op in policy.geometric:
        columns = tuple(params[name] for name in policy.columns[i])
        one = MATRICES[type(op)](columns, height, width)
        total = one if total is None else tf.matmul(total, one)
    if total is None:
        return images
    if policy.fill.mode == "wrap":
        return tf.round(periodic(images, total))
    warped = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.cast(tf.reshape(total, (-1, 9))[:, :8], tf.float32),
        output_shape=(height, width),
        interpolation="BILINEAR",
        fill_mode=FILL_MODES[policy.fill.mode],
        fill_value=float(policy.fill.value),
    )
    return tf.round(warped)


def periodic(images: Tensor, matrices: Tensor) -> Tensor:
    """(B, H, W, C) float32 at the places to which (B, 3, 3) float64 matrices map each pixel, with
    the opposite side beyond the border. TensorFlow's own mode `WRAP` has a seam there, across which
    nothing is interpolated, and another period."""
    height, width = images.shape[1], images.shape[2]
    x, y = tf.meshgrid(tf.range(width, dtype=tf.float64), tf.range(height, dtype=tf.float64))
    pixels = tf.reshape(tf.stack([x, y, tf.ones_like(x)]), (3, -1))
    places = tf.matmul(matrices[:, :2], pixels[None])  # (B, 2, H * W): x and y
    corners = tf.floor(places)
    right, below = tf.unstack(tf.cast(places - corners, tf.float32)[..., None], axis=1)
    x, y = tf.unstack(tf.cast(corners, tf.int32), axis=1)
    flat = tf.reshape(images, (-1, height * width, images.shape[3]))

    def at(y: Tensor, x: Tensor) -> Tensor:
        index = tf.math.floormod(y, height) * width + tf.math.floormod(x, width)
        return tf.gather(flat, index, batch_dims=1)

    upper = at(y, x) * (1 - right) + at(y, x + 1) * right
    lower = at(y + 1, x) * (1 - right) + at(y + 1, x + 1) * right
    return tf.reshape(upper * (1 - below) + lower * below, tf.shape(images))


def brighten(images: Tensor, params: tuple[Tensor, ...]) -> Tensor:
    """(B, H, W, C) float32 times (B,) float32, rounded half to even, clipped to 0..255."""
    product = images * params[0][:, None, None, None]
    return tf.clip_by_value(tf.round(product), 0.0, 255.0)


# What is applied after the one warp.
POINTWISE: dict[type[Op], Callable[[Tensor, tuple[Tensor, ...]], Tensor]] = {Brightness: brighten}


def augment_batch(policy: Policy, images: Tensor, keys: Tensor, copy: Tensor, seed: int) -> Tensor:
    """The policy on one batch, as graph ops alone.

    Args:
      images: (B, H, W, C) uint8 with H, W and C known when the graph is made.
      keys: (B,) uint64, from `sample_keys`.
      copy: Integer scalar: 0 (returned as it is) or 1..65,535; online, the epoch plus one.
    Returns: (B, H, W, C) uint8.
    Raises: PolicyError if the policy has library ops, which are no graph ops.
    """
    refuse_library_ops(policy)
    params = parameters(policy, seed, keys, copy, images.shape[1], images.shape[2])
    out = warp(tf.cast(images, tf.float32), policy, params)
    for op, columns in zip(policy.ops, policy.columns, strict=True):
        if kernel := POINTWISE.get(type(op)):
            out = kernel(out, tuple(params[name] for name in columns))
    return tf.cast(out, tf.uint8)
