"""Matrices go from output to input pixels; directions and units, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pipeline.geometry import MATRICES, matrices
from pipeline.ops import GEOMETRIC
from pipeline.policy import parse_policy


def origin_of(text: str, point: tuple[float, float], **params: float) -> list[float]:
    """The input pixel (x, y) whose value the output pixel takes, in a 5 high, 9 wide image."""
    policy = parse_policy(text)
    columns = {name: np.array([params.get(name, 0)], np.float32) for name in policy.param_names}
    inverse = matrices(policy, columns, height=5, width=9)
    assert inverse is not None
    x, y, one = inverse[0] @ (*point, 1.0)
    assert one == 1
    return [x, y]


def test_every_geometric_op_has_a_matrix() -> None:
    assert set(MATRICES) == set(GEOMETRIC)


def test_a_positive_shift_moves_right_and_down() -> None:
    assert origin_of("shift()", (4, 3), shift_x_px=3, shift_y_px=1) == [1, 2]


def test_a_quarter_turn_is_counter_clockwise_about_the_centre() -> None:
    # Centre (4, 2). Seen counter-clockwise, what was to the right of it comes to be above it.
    assert_allclose(origin_of("rotate()", (4, 1), angle_deg=90), [5, 2], atol=1e-12)
    assert_allclose(origin_of("rotate()", (4, 2), angle_deg=90), [4, 2], atol=1e-12)
    assert_allclose(origin_of("rotate()", (4, 1), angle_deg=-90), [3, 2], atol=1e-12)


def test_flips_mirror_about_the_middle() -> None:
    assert origin_of("flip()", (1, 1), flipped=1) == [7, 1]
    assert origin_of("flip()", (1, 1), flipped_vertically=1) == [1, 3]
    assert origin_of("flip()", (1, 1)) == [1, 1]


def test_ops_act_in_the_written_order() -> None:
    # Shifted right by 3, then mirrored: input 1 -> 4 -> 8 - 4; mirrored first: 1 -> 7 -> 10.
    assert origin_of("shift()|flip()", (4, 0), shift_x_px=3, flipped=1) == [1, 0]
    assert origin_of("flip()|shift()", (10, 0), shift_x_px=3, flipped=1) == [1, 0]


def test_a_policy_that_moves_nothing_has_no_matrix() -> None:
    policy = parse_policy("brightness()")
    assert matrices(policy, {"brightness": np.ones(2, np.float32)}, 5, 9) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_the_neutral_parameters_are_the_identity(size: tuple[int, int]) -> None:
    policy = parse_policy("shift()|rotate()|flip()")
    zeros = {name: np.zeros(3, np.float32) for name in policy.param_names}
    assert_array_equal(matrices(policy, zeros, *size), np.tile(np.eye(3), (3, 1, 1)))
