"""Warp, flip and brightness against SciPy, albumentations and arrays worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage

from datasets.source import sample_keys
from pipeline.geometry import MATRICES, matrices
from pipeline.library_ops import import_albumentations
from pipeline.opencv_kernel import (
    POINTWISE,
    augment_batch,
    brighten,
    margin,
    prepare,
    reach,
    warp,
)
from pipeline.ops import GEOMETRIC, OPS
from pipeline.policy import parse_policy

SCIPY_MODES = {
    "reflect": "reflect",
    "edge": "nearest",
    "wrap": "grid-wrap",
    "constant": "grid-constant",
}
SIZES = [(32, 32, 3), (32, 32, 1), (24, 50, 3), (51, 23, 1), (1, 1, 3), (1, 7, 1), (7, 1, 3)]
SIZES += [(66, 20, 3), (20, 66, 1)]  # too large for a margin


def images_of(n: int, size: tuple[int, int, int], seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *size), np.uint8)


def apply(text: str, image: np.ndarray, **params: float) -> np.ndarray:
    """One (H, W, C) image through the policy's warp with the parameters given in words."""
    policy = parse_policy(text)
    columns = {name: np.array([params.get(name, 0)], np.float32) for name in policy.param_names}
    inverse = matrices(policy, columns, *image.shape[:2])
    out = np.empty_like(image[None])
    warp(image[None], prepare(image[None], policy.fill), inverse, policy.fill, out)
    return out[0]


def by_scipy(image: np.ndarray, inverse: np.ndarray, mode: str, value: float = 0) -> np.ndarray:
    """The same warp by `ndimage.affine_transform`, order 1, which works on (y, x)."""
    swap = np.array([[0, 1], [1, 0]])
    planes = [
        ndimage.affine_transform(
            plane.astype(np.float64),
            swap @ inverse[:2, :2] @ swap,
            swap @ inverse[:2, 2],
            order=1,
            mode=SCIPY_MODES[mode],
            cval=value,
        )
        for plane in image.transpose(2, 0, 1)
    ]
    return np.rint(np.stack(planes, -1))


def test_every_op_is_applied() -> None:
    assert {*MATRICES, *POINTWISE} == set(OPS.values())
    assert set(MATRICES) == set(GEOMETRIC)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", SCIPY_MODES)
def test_recorded_parameters_give_the_same_pixels_by_scipy(
    mode: str, size: tuple[int, int, int]
) -> None:
    fill = f"fill(mode='{mode}'" + (", value=99)" if mode == "constant" else ")")
    policy = parse_policy(f"shift(x=0.2, y=0.3)|rotate(degrees=40)|flip(vertical=0.5)|{fill}")
    images, keys = images_of(60, size), sample_keys([str(i) for i in range(60)])
    out, params, _ = augment_batch(policy, images, prepare(images, policy.fill), keys, 1, 5, None)
    inverse = matrices(policy, params, *size[:2])
    want = np.stack([by_scipy(i, m, mode, 99) for i, m in zip(images, inverse, strict=True)])
    apart = np.abs(out - want)
    # Both are bilinear in their own order of operations, so ties of rounding may differ by 1.
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("mode", SCIPY_MODES)
@pytest.mark.parametrize("shift", [-1.0, 1.0])
@pytest.mark.parametrize("degrees", [-180.0, 180.0])
def test_shift_and_rotation_at_their_limits(mode: str, shift: float, degrees: float) -> None:
    policy = parse_policy(f"shift(x=1, y=1)|rotate(degrees=180)|fill(mode='{mode}')")
    image = images_of(1, (12, 17, 3))[0]
    params = {"shift_x_px": 17 * shift, "shift_y_px": 12 * shift, "angle_deg": degrees}
    columns = {name: np.array([value], np.float32) for name, value in params.items()}
    inverse = matrices(policy, columns, 12, 17)
    got = apply(str(policy), image, **params)
    assert np.abs(got - by_scipy(image, inverse[0], mode)).max() <= 1


@pytest.mark.parametrize("size", [(32, 32, 3), (9, 40, 1)], ids=str)
def test_reach_is_how_far_beyond_the_edge_a_warp_reads(size: tuple[int, int, int]) -> None:
    policy = parse_policy("shift(x=0.3, y=0.3)|rotate(degrees=90)|flip(vertical=0.5)")
    keys, (height, width) = sample_keys([str(i) for i in range(200)]), size[:2]
    inverse = matrices(policy, policy.params(0, keys, 1, height, width), height, width)
    y, x = np.mgrid[:height, :width]
    read = np.floor(inverse[:, :2] @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)]))
    last = np.array([[width - 1], [height - 1]])
    needed = np.maximum(-read, read + 1 - last).max((1, 2))
    found = reach(inverse, height, width)
    assert (found >= needed - 1e-9).all()
    assert (found <= needed + 1 + 1e-9).all()
    m = margin(height, width)
    assert 0.1 < (found < m).mean() < 0.9  # so other tests see both ways


def test_a_shift_by_whole_pixels_moves_right_and_down_and_reflects() -> None:
    image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3, 1)  # 1 2 3 / 4 5 6
    right = apply("shift()", image, shift_x_px=1)
    assert right[..., 0].tolist() == [[1, 1, 2], [4, 4, 5]]
    down = apply("shift()", image, shift_y_px=1)
    assert down[..., 0].tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    ("mode", "row"),
    # a b c d shifted right by 2: what comes in from the left.
    [("reflect", "baab"), ("edge", "aaab"), ("wrap", "cdab"), ("constant", "..ab")],
)
def test_fills_are_what_their_names_say(mode: str, row: str) -> None:
    image = np.frombuffer(b"abcd", np.uint8).reshape(1, 4, 1)
    fill = f"fill(mode='{mode}'" + (f", value={ord('.')})" if mode == "constant" else ")")
    assert apply(f"shift()|{fill}", image, shift_x_px=2).tobytes().decode() == row


def test_half_a_pixel_is_the_mean_of_two() -> None:
    image = np.array([[[10], [20], [40]]], np.uint8)
    assert apply("shift()", image, shift_x_px=0.5)[0, :, 0].tolist() == [10, 15, 30]


def test_turns_and_flips_are_numpys() -> None:
    image = images_of(1, (9, 9, 3))[0]
    assert_array_equal(apply("rotate()", image, angle_deg=90), np.rot90(image))
    assert_array_equal(apply("rotate()", image, angle_deg=180), image[::-1, ::-1])
    wide = images_of(1, (5, 8, 3))[0]
    assert_array_equal(apply("flip()", wide, flipped=1), wide[:, ::-1])
    assert_array_equal(apply("flip()", wide, flipped_vertically=1), wide[::-1])
    assert_array_equal(apply("rotate()", wide, angle_deg=180), wide[::-1, ::-1])


def test_four_channels_and_three_give_the_same_pixels() -> None:
    import cv2

    image = images_of(1, (40, 40, 3))[0]
    policy = parse_policy("rotate()")
    inverse = matrices(policy, {"angle_deg": np.array([11.5], np.float32)}, 40, 40)
    direct = cv2.warpAffine(
        image,
        inverse[0, :2],
        (40, 40),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    assert_array_equal(apply("rotate()", image, angle_deg=11.5), direct)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("angle", "x", "y"), [(0, 3, -2), (17, 0, 0), (-90, 0, 0), (33.3, 2, 5), (180, -4, 1)]
)
def test_albumentations_affine_gives_the_same_pixels(
    channels: int, angle: float, x: int, y: int
) -> None:
    import cv2

    albumentations = import_albumentations()
    image = images_of(1, (30, 44, channels))[0]
    transform = albumentations.Affine(
        rotate=(angle, angle),
        translate_px={"x": (x, x), "y": (y, y)},
        border_mode=cv2.BORDER_REFLECT,
        p=1,
    )
    want = transform(image=image)["image"].reshape(image.shape)
    # It rotates first and shifts then; positive is counter-clockwise, right and down there too.
    got = apply("rotate()|shift()", image, angle_deg=angle, shift_x_px=x, shift_y_px=y)
    apart = np.abs(got.astype(int) - want)
    assert apart.max() <= 1  # it rounds its matrix to float32
    assert (apart > 0).mean() < 5e-3


def test_brightness_is_a_float32_product_rounded_half_to_even_and_clipped() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    factors = np.random.default_rng(1).uniform(0, 2, 300).astype(np.float32)
    factors = np.concatenate([factors, np.array([0, 0.5, 1, 1.5, 2], np.float32)])
    images = np.repeat(ramp, len(factors), 0)
    brighten(images, (factors,))
    product = ramp.astype(np.float32) * factors[:, None, None, None]
    assert_array_equal(images, np.clip(np.rint(product), 0, 255))
    # By hand: 0.5 * 1 and 0.5 * 3 are ties; they go to 0 and 2.
    half = images[-4].ravel()
    assert half[[1, 2, 3]].tolist() == [0, 1, 2]


def test_albumentations_brightness_gives_the_same_pixels() -> None:
    albumentations = import_albumentations()
    image = images_of(1, (30, 44, 3))[0]
    for factor in (0.6, 0.9, 1.25):
        out = image[None].copy()
        brighten(out, (np.array([factor], np.float32),))
        want = albumentations.MultiplicativeNoise(multiplier=(factor, factor), p=1)
        apart = np.abs(out[0].astype(int) - want(image=image)["image"])
        assert apart.max() <= 1  # it cuts the fraction off where this rounds


def test_a_batch_is_its_images_one_by_one() -> None:
    policy = parse_policy("strong")
    images, keys = images_of(50, (33, 21, 3)), sample_keys([str(i) for i in range(50)])
    whole, params, _ = augment_batch(policy, images, prepare(images, policy.fill), keys, 4, 9, None)
    for i in range(50):
        one = images[i : i + 1]
        alone, own, _ = augment_batch(
            policy, one, prepare(one, policy.fill), keys[i : i + 1], 4, 9, None
        )
        assert_array_equal(alone[0], whole[i])
        assert {k: v[0] for k, v in own.items()} == {k: v[i] for k, v in params.items()}


def test_copy_0_is_untouched_and_inputs_stay_as_they_are() -> None:
    policy = parse_policy("strong")
    images, keys = images_of(5, (8, 8, 1)), sample_keys(list("abcde"))
    before = images.copy()
    out, params, _ = augment_batch(policy, images, prepare(images, policy.fill), keys, 0, 9, None)
    assert_array_equal(out, before)
    augment_batch(policy, images, prepare(images, policy.fill), keys, 1, 9, None)
    assert_array_equal(images, before)
    assert math.isclose(params["brightness"].max(), 1)
