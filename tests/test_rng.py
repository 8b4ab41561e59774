"""Draws are the published generator's and depend on nothing but their arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from datasets.source import sample_keys
from pipeline.ops import OPS
from pipeline.rng import op_number, philox4x32, uniforms_of, words_of

SEEDS = st.integers(0, 2**64 - 1)
COPIES = st.integers(1, 65_535)
IDS = st.lists(st.text(max_size=8), min_size=1, max_size=20, unique=True)


def uniforms(
    seed: int, keys: np.ndarray, copy: int, op: int, occurrence: int, n: int
) -> np.ndarray:
    return uniforms_of(seed, keys, copy, [(op, occurrence, n)])[0]


@given(SEEDS, COPIES, st.lists(st.tuples(*[st.integers(0, 2**16 - 1)] * 2, st.integers(1, 9))))
def test_all_uses_at_once_draw_what_each_draws_alone(seed, copy, uses) -> None:
    keys = sample_keys(list("abc"))
    together = words_of(seed, keys, copy, uses) if uses else []
    for got, (op, occurrence, n) in zip(together, uses, strict=True):
        (alone,) = words_of(seed, keys, copy, [(op, occurrence, n)])
        assert_array_equal(got, alone)


def hexadecimal(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


# Random123, tests/kat_vectors, "philox4x32 10": counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter: str, key: str, want: str) -> None:
    column = np.array(hexadecimal(counter), np.uint64)[:, None]
    k0, k1 = hexadecimal(key)
    assert [int(w[0]) for w in philox4x32(column, (k0, k1))] == hexadecimal(want)


def test_the_counter_holds_block_occurrence_op_copy_and_key() -> None:
    # Low word first: block and occurrence, copy and op, the low and the high half of the key.
    keys = sample_keys(["a", "b"])
    (got,) = words_of(0x123456789, keys, 7, [(0xBEEF, 2, 6)])
    for row, key in zip(got, keys.tolist(), strict=True):
        by_hand = []
        for block in range(2):
            counter = [block | 2 << 16, 0xBEEF << 16 | 7, key & 0xFFFFFFFF, key >> 32]
            out = philox4x32(np.array(counter, np.uint64)[:, None], (0x23456789, 0x1))
            by_hand += [int(word[0]) for word in out]
        assert row.tolist() == by_hand[:6]


@given(SEEDS, COPIES, IDS, st.randoms())
def test_draws_do_not_depend_on_order_or_batch(seed, copy, ids, random) -> None:
    whole = dict(zip(ids, uniforms(seed, sample_keys(ids), copy, 5, 0, 6).tolist(), strict=True))
    shuffled = random.sample(ids, len(ids))
    for part in (shuffled[: len(ids) // 2], shuffled[len(ids) // 2 :]):
        got = uniforms(seed, sample_keys(part), copy, 5, 0, 6).tolist()
        assert got == [whole[i] for i in part]


@given(SEEDS, COPIES, st.integers(1, 40), st.integers(1, 40))
def test_more_draws_start_with_the_fewer(seed, copy, few, more) -> None:
    keys = sample_keys(["x"])
    few, more = sorted((few, more))
    assert_array_equal(
        uniforms(seed, keys, copy, 1, 0, more)[:, :few], uniforms(seed, keys, copy, 1, 0, few)
    )


def test_uniforms_are_float32_multiples_of_2_to_the_minus_24_below_one() -> None:
    u = uniforms(3, sample_keys([str(i) for i in range(5000)]), 1, 9, 0, 4)
    assert u.dtype == np.float32
    scaled = u.astype(np.float64) * 2**24
    assert_array_equal(scaled, np.floor(scaled))
    assert u.min() >= 0
    assert u.max() < 1


def test_uniforms_are_uniform_and_independent_between_copies_ops_and_seeds() -> None:
    from scipy.stats import kstest

    keys = sample_keys([str(i) for i in range(20_000)])
    columns = [
        uniforms(seed, keys, copy, op, occurrence, 2)
        for seed, copy, op, occurrence in [(0, 1, 1, 0), (1, 1, 1, 0), (0, 2, 1, 0), (0, 1, 2, 0)]
    ] + [uniforms(0, keys, 1, 1, 1, 2)]
    flat = np.concatenate(columns, axis=1)
    for column in flat.T:
        assert kstest(column, "uniform").pvalue > 1e-4
    correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(len(keys))


def test_every_op_has_a_number_of_its_own() -> None:
    assert len({op_number(name) for name in OPS}) == len(OPS)
    # Recorded: outputs made with other numbers would differ from these.
    assert {name: op_number(name) for name in OPS} == {
        "shift": 43878,
        "rotate": 45700,
        "flip": 19009,
        "brightness": 62969,
    }


@pytest.mark.parametrize(
    ("change", "value"),
    [("copy", 0), ("copy", 65_536), ("seed", -1), ("seed", 2**64), ("op", 2**16)],
)
def test_arguments_out_of_range_are_refused(change: str, value: int) -> None:
    used = {"seed": 0, "copy": 1, "op": 1, **{change: value}}
    with pytest.raises(ValueError, match="out of range"):
        words_of(used["seed"], sample_keys(["a"]), used["copy"], [(used["op"], 0, 1)])


def test_keys_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="uint64"):
        words_of(0, np.zeros(3, np.int64), 1, [(1, 0, 1)])
