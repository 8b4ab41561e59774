"""Which sample is in which block: a fair mix that depends on nothing but its id and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from datasets.source import Samples, mix, sample_keys

BLOCK_BYTES = 16 * 2**20  # decoded; a worker holds one block, and a change in it writes it again
MAX_BLOCK_SAMPLES = 4096
MIN_BLOCKS = 8  # small data sets with many copies still run in parallel
SMALL = 256  # samples; below it one block is enough
GROUP_BYTES = 256 * 2**20  # decoded; as many blocks are permuted together in an epoch


def default_block_samples(image_bytes: int) -> int:
    """Samples a block by default, from the mean bytes of a decoded image: a power of two, so that
    one more image does not change it."""
    fit = max(1, min(MAX_BLOCK_SAMPLES, BLOCK_BYTES // max(1, image_bytes)))
    return 1 << (fit.bit_length() - 1)


def count_blocks(n_samples: int, block_samples: int) -> int:
    """The smallest power of two that keeps the mean block at or under `block_samples`, and at
    least 8 from 256 samples on. Never looks at copies or workers."""
    blocks = MIN_BLOCKS if n_samples >= SMALL else 1
    while n_samples > blocks * block_samples:
        blocks *= 2
    return blocks


def block_of(keys: np.ndarray, seed: int, n_blocks: int) -> np.ndarray:
    """(n,) uint64 sample keys -> (n,) block numbers in [0, n_blocks), n_blocks a power of two."""
    if n_blocks == 1:  # a shift by all 64 bits is not defined
        return np.zeros(len(keys), np.uint64)
    return mix(keys, seed, "block") >> np.uint64(64 - n_blocks.bit_length() + 1)


def place(samples: Samples, seed: int, n_blocks: int) -> list[np.ndarray]:
    """For each block the positions of its samples, ordered by hash (then id), so that the order of
    the samples does not matter."""
    hashes = mix(samples.keys, seed, "block")
    order = np.argsort(hashes, kind="stable")
    if (np.diff(hashes[order]) == 0).any():  # sorting strings takes longer than all the rest
        by_id = np.array(sorted(range(len(samples)), key=samples.ids.__getitem__), np.int64)
        order = by_id[np.argsort(hashes[by_id], kind="stable")]
    blocks = block_of(samples.keys[order], seed, n_blocks)
    bounds = np.searchsorted(blocks, np.arange(n_blocks + 1, dtype=np.uint64))
    return [order[a:b] for a, b in pairwise(bounds)]


def limited(ids: Sequence[str], limit: int | None) -> np.ndarray:
    """Positions of the `limit` samples that come first by hash of their ids: the same ones for
    every seed and listing order. All positions where limit is None."""
    if limit is None or limit >= len(ids):
        return np.arange(len(ids))
    ranks = mix(sample_keys(ids), 0, "limit")
    return np.sort(np.argsort(ranks, kind="stable")[:limit])


def blocks_per_group(n_samples: int, n_blocks: int, image_bytes: int) -> int:
    """How many of a split's blocks are permuted together in an epoch: as many as decode to 256 MB,
    and at least one. Small data sets are permuted as a whole."""
    return max(1, GROUP_BYTES * n_blocks // max(1, n_samples * image_bytes))


def epoch_order(
    keys: np.ndarray, blocks: np.ndarray, n_blocks: int, per_group: int, seed: int, epoch: int
) -> np.ndarray:
    """(n,) positions of samples in the order in which an epoch shows them.

    The blocks come in a random order, and the samples of each `per_group` of them in a random order
    together. Which of two samples comes first depends on no third: who reads some blocks at a time,
    or leaves samples out, sees the same order.
    Args:
      keys: (n,) uint64, from `sample_keys`. blocks: (n,) uint64 block numbers, from `block_of`.
      seed: Of the order, which need not be that of the augmentation. epoch: 0, 1, ...
    """
    ranks = mix(np.arange(n_blocks, dtype=np.uint64), seed, f"blocks of epoch {epoch}")
    turn = np.argsort(np.argsort(ranks, kind="stable"), kind="stable")  # block -> its place
    group = turn[blocks.astype(np.int64)] // per_group
    # Equal hashes of two samples, one in 2**64, are told apart by their keys.
    return np.lexsort((keys, mix(keys, seed, f"samples of epoch {epoch}"), group))
