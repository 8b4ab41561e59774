"""The online path: batches augmented while they are asked for, the same images as the shards hold.

Epoch e of a sample is copy e + 1 of it. Everything is driven by the number of a batch, so that any
batch can be made at any time: several at once, or from where a run was interrupted.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets.blocks import block_of, blocks_per_group, count_blocks, epoch_order
from datasets.catalog import open_source
from datasets.errors import SourceError, UserError
from datasets.fingerprint import scan
from datasets.source import check_listing, sample_keys
from pipeline.library_ops import LibraryStage, try_out
from pipeline.opencv_kernel import augment_batch, prepare
from pipeline.pixels import Pixels, load_pixels
from pipeline.plan import AugmentConfig, choose_samples, refuse_too_many_bad
from pipeline.policy import DEFAULTS, PRESETS, Policy, parse_policy
from pipeline.report import Report, duration
from pipeline.rng import MAX_COPY
from pipeline.task import common_shape, resolve_block_samples

if TYPE_CHECKING:
    import tensorflow as tf

Tensor = Any  # TensorFlow has no types of its own that a checker could use
BATCH = 256
# OpenCV's calls on small images are so short that two threads spend their time handing Python's
# lock to each other: at 32 px two calls in flight make half of what one makes.
SMALL_SIDE = 64
AHEAD = 4  # batches that wait ready


def import_tensorflow() -> Any:
    """The library, without the lines that it writes to standard error when it is loaded, before any
    setting of its own could silence them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        tf.constant(0)  # what is written when the first device is made
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
    return tf


class Stream:
    """Batches of one split by number: batch b of epoch e is number e * steps_per_epoch + b.

    Args:
      pixels: Of n samples. labels: (n,) int64. keys: (n,) uint64, from `sample_keys`.
      blocks: (n,) block numbers below n_blocks, of which per_group are permuted together.
      usable: (m,) positions of the samples to show; the others are left out.
      seed: Of the augmentation. order_seed: Of the order in an epoch.
    """

    def __init__(
        self,
        policy: Policy,
        pixels: Pixels,
        labels: np.ndarray,
        keys: np.ndarray,
        blocks: np.ndarray,
        n_blocks: int,
        per_group: int,
        usable: np.ndarray,
        batch_size: int,
        seed: int,
        order_seed: int,
    ) -> None:
        self.policy, self.pixels, self.labels, self.keys = policy, pixels, labels, keys
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = -(-len(usable) // batch_size)
        self.n_samples = len(usable)
        self.thread = threading.local()  # a library op's generators are inside it: one a thread

        @lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            found = epoch_order(
                keys[usable], blocks[usable], n_blocks, per_group, order_seed, epoch
            )
            return usable[found]

        self.order = order

    def chosen(self, step: int) -> tuple[int, np.ndarray]:
        """The copy that a batch shows, and the positions of its samples."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        positions = self.order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        return epoch % MAX_COPY + 1, positions

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, H, W, C) uint8 augmented images and (B,) int64 labels; the last batch of an epoch
        holds what is left."""
        copy, positions = self.chosen(step)
        images = self.pixels[positions]
        out, _, _ = augment_batch(
            self.policy,
            images,
            prepare(images, self.policy.fill),
            self.keys[positions],
            copy,
            self.seed,
            self.library(),
        )
        return out, self.labels[positions]

    def library(self) -> LibraryStage | None:
        if self.policy.library and not hasattr(self.thread, "stage"):
            self.thread.stage = LibraryStage(self.policy.library)
        return getattr(self.thread, "stage", None)


def open_stream(
    config: AugmentConfig, batch_size: int, order_seed: int, cache: str, report: Report
) -> Stream:
    """The stream of the config's split; every image is decoded once, so that the unusable ones are
    known, and named, before anything is shown.

    Raises: UserError for a config or a source that cannot work, or with too many bad inputs.
    """
    cv2.setNumThreads(1)  # batches are made in parallel, not the parts of one
    policy = parse_policy(config.policy or DEFAULTS.get(config.dataset) or PRESETS["standard"])
    source = open_source(config.dataset, config.data_dir)
    listing = check_listing(config.dataset, source.listing())
    if config.split not in listing.splits:
        raise UserError(
            f"--split {config.split}: {config.dataset} has {', '.join(listing.splits)}; choose one"
        )
    samples = choose_samples(listing, [config.split], config.limit)[config.split]
    with report.progress(len(samples), "reading") as progress:
        found = scan(source, samples, lambda: progress.advance(1))
    if not found.shapes.any():
        raise SourceError(f"{config.dataset}: not one of its files is an image that can be read")
    shape = common_shape({config.split: found}, config.image_size)
    if shape is None:
        raise UserError(
            f"{config.dataset}: its images have different sizes, and a batch has one; give "
            "--image-size"
        )
    if policy.library:
        try_out(policy.library, [shape])
    n_threads = len(os.sched_getaffinity(0))
    with report.progress(len(samples), "decoding") as progress:
        pixels, bad = load_pixels(
            source, samples, config.image_size, shape, cache, n_threads, progress.advance
        )
    named = sorted((samples.ids[i], why) for i, why in bad.items())
    refuse_too_many_bad(named, len(samples), config.max_bad, "mend or remove them")
    for name, why in named:
        report.say(f"not used: {name}: {why}", event="quarantined", sample=name, reason=why)
    block_samples = resolve_block_samples(config.block_samples, {config.split: found}, shape)
    n_blocks = count_blocks(len(samples), block_samples)
    keys = sample_keys(samples.ids)
    return Stream(
        policy=policy,
        pixels=pixels,
        labels=samples.labels,
        keys=keys,
        blocks=block_of(keys, config.seed, n_blocks),
        n_blocks=n_blocks,
        per_group=blocks_per_group(len(samples), n_blocks, int(np.prod(shape))),
        usable=np.array([i for i in range(len(samples)) if i not in bad], np.int64),
        batch_size=batch_size,
        seed=config.seed,
        order_seed=order_seed,
    )


def as_dataset(stream: Stream, start: int, stop: int, engine: str) -> tf.data.Dataset:
    """Batches start to stop - 1 as a `tf.data.Dataset` of (images, labels), always in that order.

    Args:
      start: Where to begin: epoch * steps_per_epoch + batch, so any state can be restored.
      engine: `opencv`, or `tensorflow` for graph ops.
    Raises: PolicyError if the engine has no such op.
    """
    tf = import_tensorflow()
    height, width, channels = stream.pixels.shape
    n_cores = len(os.sched_getaffinity(0))
    n_calls = 1 if max(height, width) <= SMALL_SIDE else n_cores

    def finished(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images.set_shape((None, height, width, channels))
        labels.set_shape((None,))
        return images, labels

    def by_opencv(step: Tensor) -> tuple[Tensor, Tensor]:
        # Stateless, or op determinism would let only one call run at a time.
        made = tf.numpy_function(stream.batch, [step], [tf.uint8, tf.int64], stateful=False)
        return finished(*made)

    def fetch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.int64]:
        copy, positions = stream.chosen(int(step))
        return (
            stream.pixels[positions],
            stream.labels[positions],
            stream.keys[positions],
            np.int64(copy),
        )

    def fetched(step: Tensor) -> tuple[Tensor, ...]:
        kinds = [tf.uint8, tf.int64, tf.uint64, tf.int64]
        images, labels, keys, copy = tf.numpy_function(fetch, [step], kinds, stateful=False)
        keys.set_shape((None,))
        copy.set_shape(())
        return (*finished(images, labels), keys, copy)

    def by_tensorflow(
        images: Tensor, labels: Tensor, keys: Tensor, copy: Tensor
    ) -> tuple[Tensor, Tensor]:
        from pipeline.tensorflow_kernel import augment_batch

        return augment_batch(stream.policy, images, keys, copy, stream.seed), labels

    steps = tf.data.Dataset.range(start, stop)
    if engine == "opencv":
        batches = steps.map(by_opencv, n_calls, deterministic=True)
    else:
        batches = steps.map(fetched, n_calls, deterministic=True)
        batches = batches.map(by_tensorflow, n_cores, deterministic=True)
    return batches.prefetch(AHEAD)


def stream_through(config: AugmentConfig, engine: str, report: Report) -> str:
    """Makes every image of `--copies` epochs and keeps none; says how many a second that were."""
    stream = open_stream(config, BATCH, config.seed, "memory", report)
    n_epochs = max(1, config.copies)
    dataset = as_dataset(stream, 0, n_epochs * stream.steps_per_epoch, engine)
    total, started = n_epochs * stream.n_samples, 0.0
    with report.progress(total, "augmenting") as progress:
        for n_batches, (images, _) in enumerate(dataset):
            progress.advance(len(images))
            if n_batches == 0:  # making the graph is no work of the stream's
                started, total = time.monotonic(), total - len(images)
    seconds = max(1e-9, time.monotonic() - started)
    return (
        f"{n_epochs} epochs of {stream.n_samples:,} images: {total / seconds:,.0f} images/s with "
        f"--engine {engine}, {duration(seconds)}; nothing was written"
    )
