"""What a training sees: augmented batches, and originals for validation and test."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import UserError
from datasets.manifest import read_manifest
from datasets.source import is_held_out
from datasets.versions import reading
from pipeline.online import augmented, open_listing, open_split, tell_online_repeats
from pipeline.plan import AugmentConfig, policy_of, tell_listing
from pipeline.policy import parse_policy, refuse_library_ops
from pipeline.report import Report
from pipeline.shard_images import AllCopies, ShardImages
from pipeline.stream import Images, Stream

COPY_SUFFIX = re.compile(r"(@\d+)+$")  # a copy of a copy has two


@dataclass(frozen=True)
class DataConfig:
    """Where batches come from: a data set that is augmented online, or the shards in `offline`.

    augment: What a data set is augmented with; its seed is that of the augmentation.
    per_epoch: `one-copy`: another copy of each sample in each epoch. `all-copies`, from shards:
      every stored copy, the original too, in each.
    """

    augment: AugmentConfig
    offline: Path | None = None
    per_epoch: str = "one-copy"
    engine: str = "opencv"
    cache: str = "memory"
    verify: bool = False
    val_fraction: float = 0.1
    batch_size: int = 128
    order_seed: int = 0


@dataclass(frozen=True)
class Data:
    """One data set. No sample of `validation` is in `train`, in any copy.

    validation, test: The images, and the positions of the samples.
    fold: Of a cross-validation: its number and that of all; it is what tests.
    """

    train: Stream
    validation: tuple[Images, np.ndarray]
    test: tuple[Images, np.ndarray] | None
    classes: tuple[str, ...]
    engine: str
    policy: str
    augment_seed: int
    fold: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.train.source.shape

    def batches(self, start: int, stop: int) -> Any:
        """Training batches start to stop - 1, as a `tf.data.Dataset`."""
        return augmented(self.train, start, stop, self.engine)

    @property
    def evaluated(self) -> str:
        """The split that tells in the end what a model is worth."""
        return "val" if self.test is None else "test"

    def ordered_by(self, seed: int) -> Data:
        """The same data, in another order."""
        old = self.train
        return replace(self, train=Stream(old.source, old.shown, old.batch_size, seed))

    def content(self) -> list[str]:
        """What images, labels and classes all parts are made from, as hashes."""
        return [self.train.source.content, "" if self.test is None else self.test[0].content]


def open_data(config: DataConfig, report: Report, with_test: bool = True) -> Data:
    """Raises: UserError for data that cannot be trained on."""
    source, test = (open_shards if config.offline else open_online)(config, report, with_test)
    if test is not None and test.shape != source.shape:
        raise UserError(
            f"the test images are {test.shape[1]}x{test.shape[0]} pixels, those to train on "
            f"{source.shape[1]}x{source.shape[0]}; give --image-size"
        )
    tested = None if test is None else (test, test.usable)
    return parted(config, source, source.usable, tested, report)


def origins_of(source: Images) -> list[str]:
    """The sample that each position is of: shards without originals, read as a data set, give
    copies, all of which belong together."""
    return [COPY_SUFFIX.sub("", name) for name in source.ids]


def parted(
    config: DataConfig,
    source: Images,
    positions: np.ndarray,
    test: tuple[Images, np.ndarray] | None,
    report: Report,
) -> Data:
    """Samples at these positions to train on and, held out by hash, to validate with. Says which
    classes are left without an image to train on.

    Raises: UserError if nothing is left of one of them, or if there is but one class to learn.
    """
    held_out = is_held_out(origins_of(source), config.val_fraction, "validation")[positions]
    shown, kept = positions[~held_out], positions[held_out]
    if not len(shown) or not len(kept):
        raise UserError(
            f"--val-fraction {config.val_fraction:g}: leaves {len(shown)} samples to train on and "
            f"{len(kept)} to validate with; each needs some"
        )
    learned = np.unique(source.labels[shown])
    if len(learned) < 2:
        raise UserError(
            f"{config.offline or config.augment.dataset}: all images to train on are of one class, "
            "and there is nothing to learn; expected a folder, or a label, for each class"
        )
    untrained = np.setdiff1d(source.labels[positions], learned).tolist()
    if untrained:
        names = ", ".join(repr(source.classes[label]) for label in untrained[:5])
        report.say(
            f"no image to train on is of the class {names}{' and more' if untrained[5:] else ''}: "
            "all that it has are held out; add some, or choose another --val-fraction",
            event="untrained_classes",
            classes=[source.classes[label] for label in untrained],
        )
    images: Images = source
    if config.per_epoch == "all-copies" and isinstance(source, ShardImages):
        images = AllCopies(source)
        shown = images.rows(shown)
    return Data(
        train=Stream(images, shown, config.batch_size, config.order_seed),
        validation=(source, in_blocks(source, kept)),
        test=None if test is None else (test[0], in_blocks(*test)),
        classes=source.classes,
        engine=config.engine,
        policy=source.policy,
        augment_seed=source.seed,
    )


def in_blocks(source: Images, positions: np.ndarray) -> np.ndarray:
    """The positions in an order that is the same online and from shards, and reads one shard after
    another: sums over them are equal to the last bit."""
    return positions[np.lexsort((source.keys[positions], source.blocks[positions]))]


def open_online(
    config: DataConfig, report: Report, with_test: bool
) -> tuple[Images, Images | None]:
    """The images of the data set's train, augmented as they are read, and those of its test.

    Raises: UserError, as `open_split` does, and where there is no train.
    """
    augment = config.augment
    if config.engine == "tensorflow":
        refuse_library_ops(policy_of(augment))
    source, listing = open_listing(augment, report)
    tell_listing(augment.dataset, listing, report)
    if "train" not in listing.splits:
        raise UserError(
            f"{augment.dataset}: has no split train to learn from, but {', '.join(listing.splits)}"
            "; add a folder train, or name a data set that has one"
        )
    tell_unused(listing.splits, with_test, report)
    used = ["train", *(["test"] if with_test and len(listing.splits.get("test", ())) else [])]
    opened = {
        split: open_split(source, listing, replace(augment, split=split), config.cache, report)
        for split in used
    }
    tell_online_repeats(augment.dataset, opened, report)
    return opened["train"], opened.get("test")


def tell_unused(splits: Iterable[str], with_test: bool, report: Report) -> None:
    """Says which splits neither train nor test: validation is held out of train."""
    unused = sorted(set(splits) - {"train", *(["test"] if with_test else [])})
    if unused:
        names = ", ".join(unused)
        report.say(
            f"not used: the split {names}; validation is held out of train (--val-fraction)",
            event="unused",
        )


def open_shards(
    config: DataConfig, report: Report, with_test: bool
) -> tuple[Images, Images | None]:
    """The same from an output, or its latest version, which is held open.

    Raises: UserError for another policy than it was written with, for features, and where copies
      or originals are missing.
    """
    with reading(config.offline or Path()) as folder:
        return open_version_of_shards(config, folder, report, with_test)


def open_version_of_shards(
    config: DataConfig, folder: Path, report: Report, with_test: bool
) -> tuple[Images, Images | None]:
    job = read_manifest(folder).job
    asked = config.augment.policy
    if asked is not None and str(parse_policy(asked)) != job["policy"]:
        raise UserError(
            f"--policy {asked}: {folder} was written with {job['policy']}; leave it out, or write "
            "shards with the other policy"
        )
    train = ShardImages(folder, "train", config.verify)
    if train.job.network:
        raise UserError(
            f"{folder}: holds features of {train.job.network['name']}; name the shards of images "
            "that they were made from"
        )
    if not job["splits"]["train"]["copies"] or not job["original"]:
        raise UserError(
            f"{folder}: has no augmented copies or no originals, which validation needs; write it "
            "with --copies 1 or more and --original"
        )
    tell_unused(job["splits"], with_test, report)
    test = ShardImages(folder, "test") if with_test and "test" in job["splits"] else None
    return train, test if test is not None and len(test.usable) else None
