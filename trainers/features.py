"""Features of a frozen backbone, made once for each sample and copy and kept as shards."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from datasets import parquet
from datasets.catalog import data_name
from datasets.commit import commit, hold, is_empty, is_sealed, partial_folder, read_records
from datasets.errors import Damaged, OutputError
from datasets.manifest import Record, read_manifest
from datasets.schema import Rows, Schema
from pipeline.default_out import FEATURES_FOLDER
from pipeline.job import Job, probe, version_of, versions
from pipeline.output import finish, prepare_partial
from pipeline.report import Progress, Report, counted, duration
from pipeline.shard import HashingFile, finished
from pipeline.shard_images import AllCopies, ShardImages
from pipeline.stream import Images, Stream
from trainers.backbones import FEATURES, NONE, split_at_features, weights_digest
from trainers.config import PACKAGES, TrainConfig, devices, network_probe
from trainers.data import Data, in_blocks
from trainers.transfer import TransferConfig

BATCH = 8
SPLIT = "train"


def as_features(config: TrainConfig, data: Data, model: Any, report: Report) -> Data:
    """The same samples and copies in the same order, as features; written first if need be.

    Its test set is left out: a whole model is tested on images.
    Raises: UserError if the features cannot be written.
    """
    source, kept = data.validation
    folder = write_features(config, source, model, report)
    try:
        features = ShardImages(folder, SPLIT)
    except Damaged as err:
        raise Damaged(f"{folder}: is damaged; remove it, and it is made again ({err})") from err
    where = {name: i for i, name in enumerate(features.ids)}

    def positions(theirs: np.ndarray) -> np.ndarray:
        """Those of the same samples, which lie in another order here."""
        return np.array([where[source.ids[i]] for i in theirs])

    old, images = data.train, cast(Images, features)
    if isinstance(old.source, AllCopies):
        images = all_copies = AllCopies(features)
        shown = all_copies.rows(positions(np.unique(old.shown % len(source.ids))))
    else:
        shown = positions(old.shown)
    return replace(
        data,
        train=Stream(images, shown, old.batch_size, old.order_seed),
        validation=(features, in_blocks(features, positions(kept))),
        test=None,
    )


def feature_job(config: TrainConfig, source: Images, model: Any) -> Job:
    """All that the features depend on."""
    transfer = config.model.transfer or TransferConfig()
    n_copies = source.n_copies if transfer.copies is None else transfer.copies
    data = config.data.offline or config.data.augment.dataset
    return Job(
        dataset=data_name(str(data)),
        source=source.content,
        splits={SPLIT: {"blocks": source.n_blocks, "copies": n_copies}},
        policy=source.policy,
        seed=source.seed,
        original=True,
        format="parquet",
        encoding="float32",
        quality=None,
        compression="none",
        image_size=None,
        shape=(int(model.get_layer(FEATURES).output.shape[-1]),),
        block_samples=None,
        limit=config.data.augment.limit,
        version=version_of(source.policy),
        network={
            "name": config.model.name,
            "alpha": transfer.alpha,
            "weights": weights_digest(transfer.weights),
            # Without weights the seed makes them.
            "seed": config.seed if transfer.weights == NONE else None,
            "shape": list(source.shape),
            "n_total": source.n_total,
            "mixed_precision": config.mixed_precision,
            "threads": config.threads,
            "devices": devices(),
            "probe": network_probe(),
            "images": {"probe": probe(), "versions": versions()},
            "versions": {name: version(name) for name in PACKAGES},
        },
    )


def write_features(config: TrainConfig, source: Images, model: Any, report: Report) -> Path:
    """The committed folder of the features of every usable sample and copy; a shard that is done,
    of this run or an earlier one, is not made again.

    Raises: UserError if something else is there, or it cannot be written.
    """
    transfer = config.model.transfer or TransferConfig()
    job = feature_job(config, source, model)
    name = f"{job.dataset}-{config.model.name}-{job.sha256()[:8]}"
    out = ((transfer.features or FEATURES_FOLDER) / name).expanduser().resolve()
    with hold(out, wait=True):  # another training may want the same, and be making it
        if not is_empty(out):
            if read_manifest(out).job_sha256 != job.sha256():
                raise OutputError(f"{out}: holds something else; choose another --features")
            report.say(f"{out}: made before", event="features", out=str(out))
            return out
        partial, started = partial_folder(out, job.sha256()), time.monotonic()
        if is_sealed(partial):  # a crash just before the end
            commit(partial, out, overwrite=False)
            return out
        prepare_partial(out, job, out)
        shards = write_blocks(partial, job, source, model, report)
        finish(out, job, source.classes, shards, overwrite=False)
    took = duration(time.monotonic() - started)
    n_rows = sum(record.rows for record in shards)
    report.say(
        f"{out}: features of {counted(n_rows, 'image')}, {took}", event="features", out=str(out)
    )
    return out


def write_blocks(
    folder: Path, job: Job, source: Images, model: Any, report: Report
) -> list[Record]:
    """The records of all shards, those that are not there yet having been written."""
    records, extract = read_records(folder), extractor(model, source.shape)
    blocks, n_copies = source.blocks[source.usable], len(job.copies(SPLIT))
    n_done = sum(record.rows for record in records.values())
    with report.progress(len(source.usable) * n_copies - n_done, "features") as progress:
        for i in range(source.n_blocks):
            name = parquet.shard_name(job.dataset, SPLIT, i, source.n_blocks)
            if name not in records:
                here = source.usable[blocks == i]
                records[name] = write_block(folder, name, job, source, here, extract, progress)
    return sorted(records.values(), key=lambda record: record.name)


def extractor(model: Any, shape: tuple[int, ...]) -> Any:
    """A graph from (B, *shape) uint8 images to (B, d) float32 features."""
    import tensorflow as tf

    body, _ = split_at_features(model)
    return tf.function(
        lambda images: tf.cast(body(images, training=False), tf.float32),
        input_signature=[tf.TensorSpec((None, *shape), tf.uint8)],
    )


def write_block(
    folder: Path,
    name: str,
    job: Job,
    source: Images,
    positions: np.ndarray,
    extract: Any,
    progress: Progress,
) -> Record:
    """Writes one shard: of each copy, the features of the samples at these (n,) positions.

    extract: From `extractor`. Raises: UserError if an image can no longer be had.
    """
    copies = job.copies(SPLIT)
    batches = [(copy, start) for copy in copies for start in range(0, len(positions), BATCH)]

    def made(batch: tuple[int, int]) -> Rows:
        copy, start = batch
        here = positions[start : start + BATCH]
        images, labels = Stream(source, here, BATCH, order_seed=None).fetch(here, copy)
        return Rows(extract(images).numpy(), labels, [source.ids[i] for i in here], copy, {})

    def fill(file: BinaryIO) -> Record:
        hashing = HashingFile(file)
        schema: Schema = job.schema(source.classes)
        writer = parquet.Writer(hashing, schema, job.compression)
        # Several at a time: not every op of a network has work for all cores.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for rows in pool.map(made, batches):
                writer.write(rows)
                progress.advance(len(rows))
        writer.close()
        labels = Counter(source.labels[positions].tolist())
        return Record(
            name=name,
            split=SPLIT,
            rows=len(positions) * len(copies),
            bytes=hashing.n_bytes,
            sha256=hashing.digest.hexdigest(),
            crc32c=hashing.crc32c,
            labels={str(label): labels[label] for label in sorted(labels)},
            quarantined=[],
        )

    return finished(folder, name, fill)
