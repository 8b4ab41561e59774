"""A policy is one string: what is read, what is stored, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from datasets.errors import PolicyError
from datasets.source import sample_keys
from pipeline.online import open_images
from pipeline.ops import OPS, Brightness, Flip, Rotate, Shift
from pipeline.plan import AugmentConfig, make_plan, policy_of
from pipeline.policy import DEFAULTS, FILL_MODES, PRESETS, Fill, Policy, parse_policy
from pipeline.preview import from_source
from pipeline.report import Report
from tests.running import write_photos

UNIT = st.floats(0, 1)
BUILT_IN = st.one_of(
    st.builds(Shift, x=UNIT, y=UNIT, p=UNIT),
    st.builds(Rotate, degrees=st.floats(0, 180), p=UNIT),
    st.builds(Flip, horizontal=UNIT, vertical=UNIT, p=UNIT),
    st.builds(Brightness, factor=UNIT, p=UNIT),
)
FILLS = st.one_of(
    st.builds(Fill, mode=st.sampled_from(FILL_MODES)),
    st.builds(Fill, mode=st.just("constant"), value=st.integers(0, 255)),
)
POLICIES = st.builds(Policy, ops=st.lists(BUILT_IN, max_size=5).map(tuple), fill=FILLS)
KEYS = sample_keys([str(i) for i in range(500)])


@given(POLICIES)
def test_what_is_stored_reads_back_as_the_same_policy(policy: Policy) -> None:
    assert parse_policy(str(policy)) == policy


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_names_for_strings(name: str) -> None:
    assert parse_policy(name) == parse_policy(PRESETS[name])


def test_a_policy_may_have_lines_and_a_long_one_is_cut_where_it_cannot_be_read() -> None:
    assert parse_policy("shift(x=0.1)\n|flip()\n") == parse_policy("shift(x=0.1)|flip()")
    with pytest.raises(PolicyError, match=r"^policy '.{100}'\.\.\.: cannot be read at character 1"):
        parse_policy("?" * 5000)
    with pytest.raises(PolicyError, match=r"^policy \.\.\.'.*\?\|flip\(\)': cannot be read at "):
        parse_policy("flip()|" * 700 + "?|flip()")


def test_digits_are_never_flipped_unless_asked_wherever_they_lie(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "digits")
    config = AugmentConfig(str(photos), tmp_path, image_size=(8, 8), workers=0)
    want = str(parse_policy(DEFAULTS["digits"]))
    assert str(policy_of(config)) == want == str(policy_of(replace(config, dataset="digits")))
    assert make_plan(config, Report(quiet=True)).job.policy == want
    assert str(open_images(config, "memory", Report(quiet=True)).policy) == want
    sheet = from_source(str(photos), tmp_path, "train", None, 1, 1, (8, 8), 0, Report())
    assert sheet.title.endswith(want)


def test_a_preset_may_stand_among_ops() -> None:
    longer = parse_policy("light|brightness(factor=0.3)")
    assert str(longer) == str(parse_policy("light")) + "|brightness(factor=0.3)"


def test_spelling_does_not_matter_to_the_canonical_form() -> None:
    spellings = ["rotate(15)", "rotate(degrees=15, p=1)", " rotate( degrees = 15.0 ) "]
    assert {str(parse_policy(s)) for s in spellings} == {"rotate(degrees=15.0)"}
    assert str(parse_policy("none")) == "none"
    assert str(parse_policy("fill(mode='reflect')|flip()")) == "flip(horizontal=0.5, vertical=0.0)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "rotat(degrees=3)",
            "'rotat(degrees=3)' at character 1: no such op; did you mean 'rotate'",
        ),
        ("shift()|rotate(degree=3)", "'rotate(degree=3)' at character 9: no option 'degree'"),
        ("rotate(degrees=181)", "degrees must be a number from 0 to 180, got 181"),
        ("rotate(degrees=float('nan'))", "degrees=float('nan') is not a plain number"),
        ("rotate(degrees=1e999)", "at character 16: a number beyond 2e+308"),
        ("rotate(degrees='3')", "must be a number from 0 to 180, got '3'"),
        ("rotate(True)", "must be a number from 0 to 180, got True"),
        ("rotate(3, degrees=4)", "degrees is given twice"),
        ("rotate(1, 2, 3)", "takes at most 2 arguments"),
        ("rotate(**{'degrees': 3})", "** is not understood"),
        ("rotate", "write rotate()"),
        ("flip()|albumentations.Blur", "write albumentations.Blur()"),
        ("standart", "did you mean 'standard'"),
        ("shift(x=0.1", "cannot be read at character"),
        ("", "cannot be read"),
        ("__import__('os').system('true')", "expected an op such as"),
        ("fill(mode='mirror')", "mode must be one of reflect, constant, edge, wrap"),
        ("fill(mode='constant', value=300)", "value must be a number from 0 to 255"),
        ("fill(value=3)", "value belongs to mode='constant'"),
        ("fill()|fill()", "fill is given twice"),
        ("albumentations.Blur(p=0.5)|flip()", "'flip()' at character 28: stands after albumen"),
        ("albumentations.Blur(p=0.5)|light", "'light' at character 28: stands after albumentati"),
        ("albumentations.Blurr()", "did you mean 'Blur'"),
        ("albumentations.Blur(limit=3)", "albumentations refuses"),
        ("albumentations.Blur(blur_limit=open('x'))", "is not a plain value"),
        ("nowhere.yaml", "nowhere.yaml: No such file"),
        ("|".join(["flip()"] * 2000), "at most 10,000 are read"),
        ("(" * 3000 + ")" * 3000, "cannot be read"),
    ],
)
def test_mistakes_are_told_with_the_offending_part(text: str, expected: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def params_of(text: str, copy: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    return parse_policy(text).params(seed, KEYS, copy, 40, 80)


def test_parameters_have_their_units_and_ranges() -> None:
    params = params_of("shift(x=0.25, y=0.1)|rotate(degrees=30)|flip()|brightness(factor=0.4)")
    limits = {
        "shift_x_px": (-20, 20),
        "shift_y_px": (-4, 4),
        "angle_deg": (-30, 30),
        "brightness": (0.6, 1.4),
    }
    for name, (low, high) in limits.items():
        values = params[name]
        assert values.dtype == np.float32
        assert low <= values.min() < low + (high - low) * 0.02
        assert high - (high - low) * 0.02 < values.max() <= high
    assert set(params["flipped"].tolist()) == {0.0, 1.0}
    assert 0.4 < params["flipped"].mean() < 0.6
    assert not params["flipped_vertically"].any()


def test_copy_0_is_the_original() -> None:
    params = params_of("strong", copy=0)
    for name, values in params.items():
        assert (values == (1.0 if name == "brightness" else 0.0)).all()


def test_p_applies_an_op_to_its_share_and_leaves_the_draws_alone() -> None:
    always, half = params_of("rotate(degrees=30)"), params_of("rotate(degrees=30, p=0.5)")
    applied = half["angle_deg"] != 0
    assert 0.4 < applied.mean() < 0.6
    assert_array_equal(half["angle_deg"][applied], always["angle_deg"][applied])


def test_taking_an_op_out_leaves_the_others_alone() -> None:
    whole = params_of("shift()|rotate()|flip()|brightness()")
    for name in OPS:
        rest = [f"{other}()" for other in OPS if other != name]
        for column, values in params_of("|".join(rest)).items():
            assert_array_equal(values, whole[column])


def test_order_and_options_of_other_ops_do_not_matter() -> None:
    a, b = params_of("shift()|rotate()"), params_of("rotate()|shift(x=0.3, y=0.2)")
    assert_array_equal(a["angle_deg"], b["angle_deg"])


def test_the_second_use_of_an_op_draws_for_itself() -> None:
    twice = params_of("rotate()|rotate()")
    assert_array_equal(twice["angle_deg"], params_of("rotate()")["angle_deg"])
    assert abs(np.corrcoef(twice["angle_deg"], twice["angle_deg_2"])[0, 1]) < 0.2


def test_seeds_and_copies_draw_for_themselves() -> None:
    columns = [params_of("rotate()", c, s)["angle_deg"] for c, s in [(1, 0), (2, 0), (1, 1)]]
    assert np.abs(np.corrcoef(columns) - np.eye(3)).max() < 0.2
