"""The online path: batches augmented while they are asked for, the same images as the shards hold.

Epoch e of a sample is copy e + 1 of it. Everything is driven by the number of a batch, so that any
batch can be made at any time: several at once, or from where a run was interrupted.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import cv2
import numpy as np

from datasets.blocks import block_of, count_blocks
from datasets.catalog import data_name, open_source
from datasets.errors import EnvironmentFailed, UserError
from datasets.fingerprint import NOT_READ, fingerprint, scan
from datasets.source import Listing, Source, listing_of
from pipeline import preview
from pipeline.bad_inputs import ADVICE, refuse_too_many_bad, refuse_unreadable, unreadable
from pipeline.callbacks import callbacks
from pipeline.default_out import default_out
from pipeline.library_ops import LibraryStage
from pipeline.opencv_kernel import augment_batch, margin, prepare
from pipeline.pixels import Pixels, load_pixels
from pipeline.plan import AugmentConfig, choose_samples, policy_of, tell_listing
from pipeline.policy import Policy, refuse_library_ops, resolve_policy
from pipeline.repeats import tell_repeats
from pipeline.report import Report, counted, duration
from pipeline.rng import MAX_COPY
from pipeline.stream import (
    AHEAD,
    Stream,
    Tensor,
    as_dataset,
    calls_in_flight,
    import_tensorflow,
    own_failures,
    with_shapes,
)
from pipeline.task import common_shape, resolve_block_samples
from pipeline.trial import try_out

if TYPE_CHECKING:
    import tensorflow as tf

BATCH, BATCH_BYTES = 256, 64 * 2**20  # at most, of images that are streamed together
N_SHOWN, N_EPOCHS_SHOWN = 8, 6  # in the contact sheet: samples, and epochs of each


class OnlineImages:
    """Images of one split, augmented whenever they are asked for.

    pixels: Of n samples. labels: (n,) int64. keys: (n,) uint64, from `sample_keys`.
    blocks: (n,) block numbers below n_blocks; n_total: samples of the split with the unusable ones.
    usable: (m,) positions of the samples that can be decoded. content: A hash of all of it.
    """

    def __init__(
        self,
        policy: Policy,
        seed: int,
        pixels: Pixels,
        classes: tuple[str, ...],
        n_blocks: int,
        usable: np.ndarray,
        content: str,
    ) -> None:
        self.policy, self.parsed_policy, self.seed = str(policy), policy, seed
        self.pixels, self.classes = pixels, classes
        self.ids, self.labels = pixels.samples.ids, pixels.samples.labels
        self.shape: tuple[int, ...] = pixels.shape
        self.keys, self.usable, self.n_blocks = pixels.samples.keys, usable, n_blocks
        self.dtype, self.sample_bytes = "uint8", int(np.prod(self.shape))
        self.content = content
        self.blocks = block_of(self.keys, seed, n_blocks)
        self.n_total, self.n_copies = len(self.ids), MAX_COPY
        self.is_in_memory = len(pixels.stored) == len(pixels)
        self.prepared: np.ndarray | None = None
        self.once = threading.Lock()
        self.thread = threading.local()  # a library op's generators are inside it: one a thread

    def images(self, positions: np.ndarray, copy: int) -> np.ndarray:
        """(B, H, W, C) uint8: that copy of the samples at these positions."""
        if copy == 0:
            return self.pixels[positions]
        found, ready = self.pixels.each(positions), self.with_border(positions)
        if ready is None and margin(*self.shape[:2]):
            ready = prepare(np.stack(found), self.parsed_policy.fill)
        keys = self.keys[positions]
        return augment_batch(
            self.parsed_policy, found, ready, keys, copy, self.seed, self.library()
        )[0]

    def with_border(self, positions: np.ndarray) -> list[np.ndarray] | np.ndarray | None:
        """Small images with the border that the warp wants, which is a fifth of the work: kept from
        the first time on, if there is the memory for it."""
        if not self.pixels.is_spacious or not margin(*self.shape[:2]):
            return None
        with self.once:
            if self.prepared is None:
                self.prepared = prepare(self.pixels.stored, self.parsed_policy.fill)
        whole = self.prepared
        return None if whole is None else list(map(whole.__getitem__, positions.tolist()))

    def library(self) -> LibraryStage | None:
        if self.parsed_policy.library and not hasattr(self.thread, "stage"):
            self.thread.stage = LibraryStage(self.parsed_policy.library)
        return getattr(self.thread, "stage", None)


def open_images(config: AugmentConfig, cache: str, report: Report) -> OnlineImages:
    """`open_split` of a data set that is listed for it alone."""
    source, listing = open_listing(config, report)
    tell_listing(config.dataset, listing, report)
    images = open_split(source, listing, config, cache, report)
    tell_online_repeats(config.dataset, {config.split: images}, report)
    return images


def open_listing(config: AugmentConfig, report: Report) -> tuple[Source, Listing]:
    """The config's data set and what it holds.

    Raises: SourceError if it cannot be found or read.
    """
    source = open_source(config.dataset, config.data_dir)
    return source, listing_of(config.dataset, source, report)


def open_split(
    source: Source, listing: Listing, config: AugmentConfig, cache: str, report: Report
) -> OnlineImages:
    """The images of the config's split; every one is decoded once, so that the unusable ones are
    known, and named, before anything is shown.

    Raises: UserError for a config or a source that cannot work, or with too many bad inputs.
    """
    cv2.setNumThreads(1)  # batches are made in parallel, not the parts of one
    policy = resolve_policy(config.policy, source.name)
    if config.split not in listing.splits:
        raise UserError(
            f"--split {config.split}: {config.dataset} has {', '.join(listing.splits)}; choose one"
        )
    samples = choose_samples(listing, [config.split], config.limit)[config.split]
    with report.progress(len(samples), "reading") as progress:
        found = scan(source, samples, progress.advance)
    refuse_unreadable(config.dataset, {config.split: samples}, {config.split: found})
    known = unreadable({config.split: samples}, {config.split: found})
    refuse_too_many_bad(known, len(samples), config.max_bad, ADVICE, report)
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
            source, samples, found, config.image_size, shape, cache, n_threads, progress.advance
        )
    for i, why in bad.items():
        if why.startswith(NOT_READ) and found.digests[i]:  # else this run would be another
            raise EnvironmentFailed(f"{samples.ids[i]}: {why}, but could a moment ago; try again")
    named = sorted((samples.ids[i], why) for i, why in bad.items())
    refuse_too_many_bad(named, len(samples), config.max_bad, ADVICE, report)
    for name, why in named:
        report.say(f"not used: {name}: {why}", event="quarantined", sample=name, reason=why)
    block_samples = resolve_block_samples(config.block_samples, {config.split: found}, shape)
    return OnlineImages(
        policy=policy,
        seed=config.seed,
        pixels=pixels,
        classes=listing.classes,
        n_blocks=count_blocks(len(samples), block_samples),
        usable=np.array([i for i in range(len(samples)) if i not in bad], np.int64),
        content=fingerprint(listing.classes, {config.split: samples}, {config.split: found}),
    )


def tell_online_repeats(dataset: str, splits: dict[str, OnlineImages], report: Report) -> None:
    """`tell_repeats` of the splits that are open."""
    samples = {split: images.pixels.samples for split, images in splits.items()}
    scans = {split: images.pixels.scan for split, images in splits.items()}
    classes = next(iter(splits.values())).classes
    tell_repeats(dataset, classes, samples, scans, report)


def augmented(stream: Stream, start: int, stop: int, engine: str) -> tf.data.Dataset:
    """Batches start to stop - 1 of a stream of `OnlineImages`, as `as_dataset` gives them.

    engine: `opencv`, or `tensorflow` for graph ops.
    Raises: PolicyError if the engine has no such op.
    """
    source = stream.source
    if engine == "opencv" or not isinstance(source, OnlineImages):
        return as_dataset(stream, start, stop)
    refuse_library_ops(source.parsed_policy)
    tf = import_tensorflow()
    from pipeline.tensorflow_kernel import augment_batch

    @callbacks().allow
    def fetch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.int64]:
        copy, positions = stream.chosen(int(step))
        images, labels = stream.fetch(positions, 0)
        return images, labels, source.keys[positions], np.int64(copy)

    def fetched(step: Tensor) -> tuple[Tensor, ...]:
        kinds = [tf.uint8, tf.int64, tf.uint64, tf.int64]
        images, labels, keys, copy = tf.numpy_function(fetch, [step], kinds, stateful=False)
        keys.set_shape((None,))
        copy.set_shape(())
        return (*with_shapes(stream, images, labels), keys, copy)

    def by_graph(images: Tensor, labels: Tensor, keys: Tensor, copy: Tensor) -> tuple[Tensor, ...]:
        return augment_batch(source.parsed_policy, images, keys, copy, source.seed), labels

    n_cores = len(os.sched_getaffinity(0))
    batches = tf.data.Dataset.range(start, stop).map(fetched, calls_in_flight(stream), True)
    return batches.map(by_graph, n_cores, True).prefetch(AHEAD)


def stream_through(config: AugmentConfig, engine: str, report: Report) -> str:
    """Makes every image of `--copies` epochs and keeps none but a few for a contact sheet; says how
    many a second that were.

    Raises: UserError of each kind, before any work for what the options say.
    """
    if engine == "tensorflow":
        refuse_library_ops(policy_of(config))
    n_epochs = config.copies
    if n_epochs < 1:
        raise UserError("--online --copies 0: an epoch shows a copy; give --copies 1 or more")
    out = config.out or default_out("online", data_name(config.dataset))
    preview.refuse_other_names(out)  # before any work
    source = open_images(config, "memory", report)
    size = max(1, min(BATCH, BATCH_BYTES // source.sample_bytes))
    stream = Stream(source, source.usable, size, order_seed=config.seed)
    dataset = augmented(stream, 0, n_epochs * stream.steps_per_epoch, engine)
    total = n_epochs * stream.n_samples
    with own_failures(stream):
        for _ in dataset.take(1):
            pass  # making the graph is no work of the stream's
        started = time.monotonic()
        with report.progress(total, "augmenting") as progress:
            for images, _ in dataset:
                progress.advance(len(images))
    seconds = max(1e-9, time.monotonic() - started)
    drawn = preview.draw(contact_sheet(source, engine, min(n_epochs, N_EPOCHS_SHOWN)), out)
    return (
        f"{counted(n_epochs, 'epoch')} of {counted(stream.n_samples, 'image')}: "
        f"{total / seconds:,.0f} images/s with --engine {engine}, {duration(seconds)}\n{drawn}"
    )


def contact_sheet(source: OnlineImages, engine: str, n_epochs: int) -> preview.Sheet:
    """The first samples of a stream in its first epochs, beside the originals."""
    few = source.usable[np.argsort(source.keys[source.usable])][:N_SHOWN]
    stream = Stream(source, few, len(few), order_seed=None)
    with own_failures(stream):
        epochs = [images.numpy() for images, _ in augmented(stream, 0, n_epochs, engine)]
    columns = [source.images(few, 0), *epochs]
    captions = ["original", *(f"epoch {epoch}" for epoch in range(n_epochs))]
    return preview.Sheet(
        title=f"{engine}: {source.policy}",
        names=[source.classes[label] for label in source.labels[few]],
        copies=list(range(len(columns))),
        rows=[list(map(preview.Tile, row, captions)) for row in zip(*columns, strict=True)],
    )


def dataset(
    config: AugmentConfig,
    *,
    batch_size: int = 128,
    epochs: int = 1,
    order_seed: int = 0,
    engine: str = "opencv",
    cache: str = "memory",
) -> tf.data.Dataset:
    """Batches of augmented images and their labels: `epochs` epochs of the config's split, in which
    epoch e shows copy e + 1 of every sample, the one that `materialize` writes.

    Each batch is ((B, H, W, C) uint8, (B,) int64); the last of an epoch holds what is left, so B is
    at most `batch_size`. Its cardinality is known: epochs x ceil(usable samples / batch_size).
    Every image is decoded once before this returns, and those that cannot be used are named then.

    Args:
      config: Data set, split, policy, augmentation seed, image size, limit; what is about files is
        not looked at, nor is `copies`.
      order_seed: Of the order of samples in each epoch, which depends on nothing else of this call.
      engine: `opencv`, the same bits as copies stored without loss, or `tensorflow`, graph ops.
      cache: Where decoded images are kept: `memory`, `disk` or `none`.
    Raises: UserError for arguments, a config or a source that cannot work, or with too many bad
      inputs; while iterated, TensorFlow's error if an image can no longer be read.
    """
    for name, number in (("batch_size", batch_size), ("epochs", epochs)):
        if number < 1:
            raise UserError(f"{name}: expected at least 1, got {number}")
    for name, text, known in (
        ("engine", engine, ("opencv", "tensorflow")),
        ("cache", cache, ("memory", "disk", "none")),
    ):
        if text not in known:
            raise UserError(f"{name}: expected one of {', '.join(known)}; got {text!r}")
    if engine == "tensorflow":
        refuse_library_ops(policy_of(config))  # before any work
    images = open_images(config, cache, Report())
    stream = Stream(images, images.usable, batch_size, order_seed)
    return augmented(stream, 0, epochs * stream.steps_per_epoch, engine)
