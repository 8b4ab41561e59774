"""Blocks are a fair mix of samples that depends on nothing but their ids and the seed."""

from __future__ import annotations

import random
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.blocks import (
    MAX_BLOCK_SAMPLES,
    block_of,
    count_blocks,
    default_block_samples,
    limited,
    place,
)
from datasets.source import Samples, sample_keys

IDS = st.lists(st.text(max_size=8), max_size=60, unique=True)
SEEDS = st.integers(0, 2**64 - 1)
BLOCKS = st.sampled_from([1, 2, 8, 64])


def samples_of(ids: list[str]) -> Samples:
    return Samples(ids, np.zeros(len(ids), np.int64), ids)


def named(ids: list[str], seed: int, n_blocks: int) -> list[list[str]]:
    """The ids of each block, in the order in which they are written."""
    return [[ids[i] for i in block] for block in place(samples_of(ids), seed, n_blocks)]


@given(IDS, SEEDS, BLOCKS)
def test_every_sample_is_in_exactly_one_block(ids: list[str], seed: int, n_blocks: int) -> None:
    blocks = place(samples_of(ids), seed, n_blocks)
    assert len(blocks) == n_blocks
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(ids)))


def test_of_samples_with_one_hash_the_ids_decide() -> None:
    for ids in permutations("abc"):
        samples = samples_of(list(ids))
        keys = {"a": 5, "b": 5, "c": 7}  # no two ids are known to have one: 64 bits of BLAKE2b
        vars(samples)["keys"] = np.array([keys[name] for name in ids], np.uint64)
        (block,) = place(samples, 0, 1)
        order = [ids[i] for i in block]
        assert order.index("b") == order.index("a") + 1


@given(IDS, SEEDS, BLOCKS)
def test_the_block_of_a_sample_is_known_from_its_key_alone(
    ids: list[str], seed: int, n_blocks: int
) -> None:
    for number, block in enumerate(named(ids, seed, n_blocks)):
        assert set(block_of(sample_keys(block), seed, n_blocks).tolist()) <= {number}


@given(IDS, SEEDS, BLOCKS, st.randoms(use_true_random=False))
def test_the_order_of_the_ids_does_not_matter(
    ids: list[str], seed: int, n_blocks: int, rng: random.Random
) -> None:
    shuffled = rng.sample(ids, len(ids))
    assert named(shuffled, seed, n_blocks) == named(ids, seed, n_blocks)


@given(IDS.filter(bool), SEEDS, BLOCKS, st.data())
def test_taking_a_sample_out_changes_its_own_block_and_no_other(
    ids: list[str], seed: int, n_blocks: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(ids))
    whole = named(ids, seed, n_blocks)
    less = named([i for i in ids if i != gone], seed, n_blocks)
    assert [[i for i in block if i != gone] for block in whole] == less
    assert sum(a != b for a, b in zip(whole, less, strict=True)) == 1


@given(st.integers(0, 10**9), st.integers(1, 10**5))
def test_the_number_of_blocks_is_the_least_power_of_two_that_keeps_the_mean_size(
    n_samples: int, block_samples: int
) -> None:
    n_blocks = count_blocks(n_samples, block_samples)
    least = 8 if n_samples >= 256 else 1
    assert n_blocks.bit_count() == 1
    assert n_blocks >= least
    assert n_samples / n_blocks <= block_samples
    assert n_blocks == least or n_samples / (n_blocks / 2) > block_samples


def test_small_data_sets_have_one_block_and_others_at_least_eight() -> None:
    assert [count_blocks(n, 4096) for n in (0, 255, 256)] == [1, 1, 8]
    assert [count_blocks(n, 4096) for n in (32_768, 32_769)] == [8, 16]


@pytest.mark.parametrize(
    ("image_bytes", "expected"),
    [
        (0, MAX_BLOCK_SAMPLES),
        (32 * 32 * 3, MAX_BLOCK_SAMPLES),
        (224 * 224 * 3, 64),  # 111 would fit; a power of two does not change with one more image
        (10**9, 1),
    ],
)
def test_a_default_block_is_16_mb_decoded_and_at_most_4096_samples(
    image_bytes: int, expected: int
) -> None:
    assert default_block_samples(image_bytes) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_blocks_are_a_fair_mix(seed: int) -> None:
    # Ids of one class follow each other in a listing; 64 blocks of 20,000 ids, 63 degrees of
    # freedom: a chi-square beyond 63 ± 5 standard deviations has odds of less than one in 10^5.
    ids = [f"class_{i // 1000:02d}/{i:05d}.jpg" for i in range(20_000)]
    blocks = place(samples_of(ids), seed, 64)
    sizes = np.array([len(block) for block in blocks])
    expected = len(ids) / 64
    assert abs(((sizes - expected) ** 2 / expected).sum() - 63) < 5 * np.sqrt(2 * 63)
    classes = np.array([np.bincount(block // 1000, minlength=20) for block in blocks])
    freedom = 63 * 19
    mean = sizes[:, None] / 20
    assert abs(((classes - mean) ** 2 / mean).sum() - freedom) < 5 * np.sqrt(2 * freedom)


def test_blocks_of_two_seeds_have_nothing_to_do_with_each_other() -> None:
    keys = sample_keys([str(i) for i in range(20_000)])
    both = block_of(keys, 0, 8) * np.uint64(8) + block_of(keys, 1, 8)
    pairs = np.bincount(both.astype(np.int64), minlength=64)
    expected = len(keys) / 64
    assert abs(((pairs - expected) ** 2 / expected).sum() - 63) < 5 * np.sqrt(2 * 63)


@given(IDS, st.integers(0, 70), st.randoms(use_true_random=False))
def test_a_limit_picks_the_same_samples_whatever_their_order(
    ids: list[str], limit: int, rng: random.Random
) -> None:
    shuffled = rng.sample(ids, len(ids))
    chosen = {ids[i] for i in limited(ids, limit)}
    assert {shuffled[i] for i in limited(shuffled, limit)} == chosen
    assert len(chosen) == min(limit, len(ids))


@given(IDS, st.integers(0, 70))
def test_a_higher_limit_only_adds_samples(ids: list[str], limit: int) -> None:
    assert set(limited(ids, limit)) <= set(limited(ids, limit + 1))


def test_without_a_limit_every_sample_is_taken_in_its_order() -> None:
    assert limited(["b", "a", "c"], None).tolist() == [0, 1, 2]
    assert limited([], None).tolist() == []
