"""Counter-based random numbers: every draw is a function of seed, sample, copy and op alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any  # NumPy's or TensorFlow's
RightShift = Callable[[Array, Any], Array]
Use = tuple[int, int, int]  # op number, occurrence, draws
MAX_COPY = 65_535  # 16 bits of the counter
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox4x32(
    counter: Array, key: tuple[int, int], shift: RightShift = np.right_shift
) -> list[Array]:
    """Four (n,) uint64 counters holding 32-bit words, two 32-bit key words -> four (n,) uint64.

    Ten rounds, which pass BigCrush; held in uint64 so that a product keeps its high half. Arrays of
    NumPy or TensorFlow; `shift` is its shift to the right, the one step that no operator does.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            shift(product1, HALF) ^ x1 ^ np.uint64(k0),
            product1 & LOW,
            shift(product0, HALF) ^ x3 ^ np.uint64(k1),
            product0 & LOW,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return [x0, x1, x2, x3]


def split_seed(seed: int) -> tuple[int, int]:
    """A 64-bit seed as the two words of the key, the low one first."""
    return seed & 0xFFFFFFFF, seed >> 32


def op_number(name: str) -> int:
    """An op's own 16-bit number, from its name and not from its place in the policy."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=2).digest(), "little")


def words_of(seed: int, keys: np.ndarray, copy: int, uses: Sequence[Use]) -> list[np.ndarray]:
    """(B,) uint64 sample keys -> for each use (B, n) uint64 holding 32 random bits each.

    All uses at once: four times as many words cost a third more time.
    Args:
      seed: Augmentation seed, 0 <= seed < 2**64; the Philox key.
      keys: (B,) uint64, from `sample_keys`.
      copy: 1..65,535; online, the epoch plus one.
      uses: (op, occurrence, n): the op from `op_number`, so that removing one leaves the draws of
        the others alone; 0 for its first use in the policy, 1 for its second; words per sample.
    Raises: ValueError if an argument is out of its range.
    """
    if keys.ndim != 1 or keys.dtype != np.uint64:
        raise ValueError(f"keys: expected (B,) uint64, got {keys.shape} {keys.dtype}")
    blocks = [-(-n // 4) for _, _, n in uses]
    counter = np.empty((4, sum(blocks), len(keys)), np.uint64)
    counter[2] = keys & LOW
    counter[3] = keys >> HALF
    ends = np.cumsum([0, *blocks])
    for (op, occurrence, _), start, end in zip(uses, ends[:-1], ends[1:], strict=True):
        if not (0 <= seed < 2**64 and 1 <= copy <= MAX_COPY and 0 <= op < 2**16 > occurrence):
            raise ValueError(f"out of range: {seed=} {copy=} {op=} {occurrence=}")
        numbers = np.arange(end - start, dtype=np.uint64) | np.uint64(occurrence << 16)
        counter[0, start:end] = numbers[:, None]
        counter[1, start:end] = op << 16 | copy
    drawn = np.stack(philox4x32(counter.reshape(4, -1), split_seed(seed)))
    by_sample = drawn.reshape(4, sum(blocks), len(keys)).transpose(2, 1, 0)
    return [
        by_sample[:, start:end].reshape(len(keys), 4 * (end - start))[:, :n]
        for (_, _, n), start, end in zip(uses, ends[:-1], ends[1:], strict=True)
    ]


def uniforms_of(seed: int, keys: np.ndarray, copy: int, uses: Sequence[Use]) -> list[np.ndarray]:
    """For each use (B, n) float32 in [0, 1), multiples of 2**-24: exact on any backend."""
    return [
        (bits >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
        for bits in words_of(seed, keys, copy, uses)
    ]
