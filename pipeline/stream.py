"""Batches by number, from any source of copies: the same order online and from shards."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datasets.blocks import blocks_per_group, epoch_order
from datasets.errors import EnvironmentFailed, ImageError, SourceError, UserError
from pipeline.callbacks import callbacks
from pipeline.memory import keep_freed_memory

if TYPE_CHECKING:
    import tensorflow as tf

Tensor = Any  # TensorFlow has no types of its own that a checker could use
# OpenCV's calls on small images are so short that two threads spend their time handing Python's
# lock to each other: at 32 px two calls in flight make half of what one makes.
SMALL_SIDE = 64
TOGETHER = 12 * 2**20  # bytes of small images made in one go: 4,096 at 32 px
AHEAD = 4  # batches that wait ready; the next group is made while the last one is cut


class Images(Protocol):
    """Copies of the samples of one split: made when asked for, or read from shards.

    ids, labels (n,) int64, keys (n,) uint64: Of the samples, by position. classes: Their names.
    shape, dtype: Of every image: (height, width, channels) uint8; of features (d,) float32.
    sample_bytes: Of an image, which decides how many blocks are permuted together.
    content: A hash of all that they are made from.
    blocks: (n,) block numbers below n_blocks. n_total: Samples of the split, unusable ones too.
    usable: (m,) positions of the samples that can be shown. n_copies: Copies that there are.
    policy, seed: What the copies are made with; the policy as text.
    is_in_memory: Whether nothing is decoded any more.
    """

    ids: Any
    labels: np.ndarray
    keys: np.ndarray
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    sample_bytes: int
    content: str
    blocks: np.ndarray
    n_blocks: int
    n_total: int
    usable: np.ndarray
    n_copies: int
    policy: str
    seed: int
    is_in_memory: bool

    def images(self, positions: np.ndarray, copy: int) -> np.ndarray:
        """(B, *shape): that copy of the samples at these positions; safe from threads."""
        ...


class Stream:
    """Batches by number: batch b of epoch e is number e * steps_per_epoch + b, and shows copy e + 1
    of its samples; after the last copy the first again.

    Args:
      shown: (m,) positions of the samples to show.
      order_seed: Of the order in an epoch; None for the given order, always.
      copy: The one copy that every epoch shows, instead of another each time.
    """

    def __init__(
        self,
        source: Images,
        shown: np.ndarray,
        batch_size: int,
        order_seed: int | None,
        copy: int | None = None,
    ) -> None:
        self.source, self.shown, self.batch_size = source, shown, batch_size
        self.n_samples = len(shown)
        self.steps_per_epoch = -(-len(shown) // batch_size)
        self.order_seed, self.copy = order_seed, copy
        self.failure: UserError | None = None  # TensorFlow would wrap it beyond recognition
        keep_freed_memory()
        per_group = blocks_per_group(source.n_total, source.n_blocks, source.sample_bytes)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            if order_seed is None:
                return shown
            keys, blocks = source.keys[shown], source.blocks[shown]
            return shown[epoch_order(keys, blocks, source.n_blocks, per_group, order_seed, epoch)]

        self.order = order
        n_bytes = batch_size * source.sample_bytes
        self.n_together = max(1, TOGETHER // n_bytes) if is_short(source) else 1
        self.groups_per_epoch = -(-self.steps_per_epoch // self.n_together)

    def chosen(self, step: int, n_batches: int = 1) -> tuple[int, np.ndarray]:
        """The copy that a batch shows, and (n,) positions of its samples; with `n_batches` also of
        those that follow in the same epoch, as far as it goes."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.batch_size
        positions = self.order(epoch)[start : start + n_batches * self.batch_size]
        copy = epoch % self.source.n_copies + 1 if self.copy is None else self.copy
        return copy, positions

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, *shape) images and (B,) int64 labels; the last batch of an epoch holds what is
        left."""
        copy, positions = self.chosen(step)
        return self.fetch(positions, copy)

    def group_of(self, step: int) -> int:
        """The number of the group that a batch is made in: up to `n_together` of one epoch."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * self.groups_per_epoch + batch // self.n_together

    def first_of(self, group: int) -> int:
        """The number of a group's first batch."""
        epoch, nth = divmod(group, self.groups_per_epoch)
        return epoch * self.steps_per_epoch + nth * self.n_together

    def group(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, *shape) images and (n,) int64 labels of all batches of a group, one batch after the
        other.

        Raises: UserError if an image can no longer be had.
        """
        copy, positions = self.chosen(self.first_of(int(number)), self.n_together)
        return self.fetch(positions, copy)

    def fetch(self, positions: np.ndarray, copy: int) -> tuple[np.ndarray, np.ndarray]:
        """That copy of the samples at these positions, and their labels.

        Raises: UserError if an image can no longer be had.
        """
        try:
            return self.source.images(positions, copy), self.source.labels[positions]
        except ImageError as err:
            self.failure = SourceError(f"an image can no longer be used: {err}")
        except UserError as err:
            self.failure = err
        except OSError as err:
            self.failure = EnvironmentFailed(f"an image can no longer be read: {err}")
        raise self.failure


@contextmanager
def own_failures(stream: Stream) -> Iterator[None]:
    """Within the block, a failure to make a batch is raised as the UserError that it was, not as
    TensorFlow's report of it."""
    try:
        yield
    except Exception:
        if stream.failure is not None:
            raise stream.failure from None
        raise


def import_tensorflow(n_threads: int | None = None, n_gpus: int = 1) -> Any:
    """The library, without the lines that it writes to standard error when it is loaded, before any
    setting of its own could silence them.

    n_threads: Of its ops, for the whole process; sums in other numbers of threads round elsewhere.
    n_gpus: The others are left alone: TensorFlow takes all memory of those that it sees.
    Raises: UserError if there are fewer, unless one is asked for: then the processor will do.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever a user's own keras.json says
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        # Of several networks in one process each has graphs of its own, which it would warn of.
        tf.get_logger().setLevel("ERROR")
        logging.getLogger("absl").setLevel("ERROR")  # Keras calls .h5, which was asked for, legacy
        if n_threads is not None:
            set_threads(tf, n_threads)
        found = tf.config.list_physical_devices("GPU")
        with suppress(RuntimeError):  # TensorFlow runs already: the first call has chosen
            tf.config.set_visible_devices(found[:n_gpus], "GPU")
        tf.constant(0)  # what is written when the first device is made
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
    if n_gpus > max(1, len(found)):
        raise UserError(f"--gpus {n_gpus}: TensorFlow finds {len(found)} here; ask for fewer")
    return tf


def set_threads(tf: Any, n_threads: int) -> None:
    """Raises: UserError if TensorFlow runs here with others already, as in a worker that stays."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(n_threads)
        tf.config.threading.set_inter_op_parallelism_threads(n_threads)
    except RuntimeError as err:
        found = tf.config.threading.get_intra_op_parallelism_threads()
        raise UserError(
            f"--threads {n_threads}: this process runs with {found} already; start the workers "
            f"again, or give --threads {found}"
        ) from err


def as_dataset(stream: Stream, start: int, stop: int) -> tf.data.Dataset:
    """Batches start to stop - 1 as a `tf.data.Dataset` of (images, labels), always in that order.

    start: Where to begin: epoch * steps_per_epoch + batch, so any state can be restored.
    """
    tf = import_tensorflow()
    answer = callbacks().allow(stream.group)

    def made(number: Tensor) -> tuple[Tensor, Tensor]:
        # Stateless, or op determinism would let only one call run at a time.
        kinds = [stream.source.dtype, tf.int64]
        group = tf.numpy_function(answer, [number], kinds, stateful=False)
        return with_shapes(stream, *group)

    def split(images: Tensor, labels: Tensor) -> Any:
        size = stream.batch_size  # parts of the first axis that begin aligned are not copied
        starts = tf.data.Dataset.range(0, tf.size(labels, tf.int64), size)
        return starts.map(lambda i: (images[i : i + size], labels[i : i + size]))

    begin, end = stream.group_of(start), stream.group_of(stop - 1) + 1
    groups = tf.data.Dataset.range(begin, end).map(made, calls_in_flight(stream), True)
    batches = groups.flat_map(split).skip(start - stream.first_of(begin)).take(stop - start)
    counted = batches.apply(tf.data.experimental.assert_cardinality(stop - start))
    return counted.prefetch(AHEAD)


def is_short(source: Images) -> bool:
    """Whether a call for a batch takes no time worth sharing among threads."""
    return max(source.shape[:2]) <= SMALL_SIDE and source.is_in_memory


def calls_in_flight(stream: Stream) -> int:
    return 1 if is_short(stream.source) else len(os.sched_getaffinity(0))


def with_shapes(stream: Stream, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same, with the shapes that TensorFlow cannot know of a Python function's results."""
    images.set_shape((None, *stream.source.shape))
    labels.set_shape((None,))
    return images, labels
