"""What `pipeline augment` will write: its options, resolved against the source into a job."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import storage
from datasets.blocks import limited
from datasets.catalog import open_source, whereabouts
from datasets.commit import partial_folder, unfinished_runs
from datasets.data_dir import DATA_DIR
from datasets.errors import UserError
from datasets.fingerprint import Scan, fingerprint
from datasets.source import Listing, Samples, Source, listing_of
from datasets.versions import latest, version_name
from pipeline.bad_inputs import refuse_unreadable
from pipeline.base import Base, read_base, read_unfinished
from pipeline.job import Job, version_of
from pipeline.output_place import output_folder
from pipeline.policy import Policy, resolve_policy
from pipeline.reading import scan_all
from pipeline.repeats import tell_repeats
from pipeline.report import Report
from pipeline.rng import MAX_COPY
from pipeline.task import (
    Tasks,
    common_shape,
    extreme_shapes,
    plan_splits,
    resolve_block_samples,
    resolve_encoding,
)
from pipeline.trial import try_out

if TYPE_CHECKING:
    from concurrent.futures import Future

    from distributed import Client

QUALITY = 95  # of JPEG
MAX_BAD = 0.01  # share of inputs that may be unusable, unless told otherwise


@dataclass(frozen=True)
class AugmentConfig:
    """The options of `pipeline augment`, as the command line gives them.

    image_size: (height, width) in pixels to which every image is fitted; None: as they are.
    Raises: UserError for values that cannot be, alone or together.
    """

    dataset: str
    data_dir: Path = DATA_DIR
    out: Path | None = None
    split: str = "train"
    eval_splits: bool = True
    policy: str | None = None
    copies: int = 4
    original: bool = True
    format: str = "parquet"
    encoding: str = "auto"
    quality: int | None = None
    compression: str = "none"
    image_size: tuple[int, int] | None = None
    seed: int = 0
    block_samples: int | None = None
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    scheduler: str | None = None
    limit: int | None = None
    max_bad: float = MAX_BAD
    overwrite: bool = False
    publish: bool = False
    keep: int | None = None

    def __post_init__(self) -> None:
        # What a program may give in another form, and would hear of in the midst of the work.
        for name, is_right, example in (
            ("dataset", isinstance(self.dataset, str), "a name, path or URL as text"),
            ("data_dir", not isinstance(self.data_dir, str), 'Path("folder")'),
            ("out", not isinstance(self.out, str), 'Path("folder") or UPath("s3://...")'),
            ("image_size", not isinstance(self.image_size, int), "(height, width)"),
        ):
            if not is_right:
                raise UserError(f"{name}: expected {example}, got {getattr(self, name)!r}")
        if not self.dataset:
            raise UserError("--dataset: expected a name or a path, got nothing")
        if not 0 <= self.copies <= MAX_COPY:
            raise UserError(f"--copies: expected 0 to {MAX_COPY:,}, got {self.copies:,}")
        if self.copies == 0 and not self.original:
            raise UserError(
                "--copies 0 --no-original: nothing to write; give --copies 1 or more, or --original"
            )
        if not 0 <= self.seed < 2**64:
            raise UserError(f"--seed: expected 0 to 2**64 - 1, got {self.seed}")
        if self.format == "tfrecord" and self.compression != "none":
            raise UserError(
                f"--compression {self.compression}: TensorFlow Datasets reads no compressed "
                "TFRecord; leave it out, or use --format parquet"
            )
        is_object = self.out is not None and storage.is_object(self.out)
        if self.keep is not None and not (self.publish or is_object):
            raise UserError(f"--keep {self.keep}: is about published versions; give --publish too")


@dataclass(frozen=True)
class Plan:
    """A job, and everything that is needed to run it.

    out: As the user gave it. folder: Where the output will stand: `out`, or a version in it.
    """

    job: Job
    classes: tuple[str, ...]
    source: Source
    samples: dict[str, Samples]
    scans: dict[str, Scan]
    out: Path
    ignored: tuple[str, ...]
    is_published: bool
    dataset: str  # where the source lies, as `whereabouts` says it
    # The output that stood in its place, the version before it or else an unfinished run.
    base: Base | None = None

    @cached_property
    def job_sha256(self) -> str:
        return self.job.sha256()

    @property
    def version(self) -> str:
        return version_name(self.job_sha256)

    @property
    def folder(self) -> Path:
        return self.out / self.version if self.is_published else self.out

    @property
    def partial(self) -> Path:
        return partial_folder(self.folder, self.job_sha256)

    @property
    def n_samples(self) -> int:
        return sum(map(len, self.samples.values()))

    @property
    def n_images(self) -> int:
        return sum(len(s) * len(self.job.copies(split)) for split, s in self.samples.items())

    def tasks(self, without: Collection[str] = (), base: Base | None = None) -> Tasks:
        """A task for each shard that is not in `without`, largest first; each takes over from the
        base what it can."""
        job, folder = self.job, self.partial
        return Tasks(
            job, self.classes, self.source, self.samples, self.scans, folder, without, base
        )


def policy_of(config: AugmentConfig) -> Policy:
    """The policy that the options give, or the one that suits their data set.

    Raises: PolicyError, or SourceError if there is no such data set.
    """
    return resolve_policy(config.policy, open_source(config.dataset, config.data_dir).name)


def choose_splits(config: AugmentConfig, listing: Listing) -> dict[str, int]:
    """Split -> augmented copies: the asked split's, and none for the others."""
    if config.split != "all" and config.split not in listing.splits:
        raise UserError(
            f"--split {config.split}: {config.dataset} has {', '.join(listing.splits)}; "
            "choose one of these, or all"
        )
    chosen = {
        split: config.copies if config.split in (split, "all") else 0
        for split in sorted(listing.splits)  # whatever the order of the listing
    }
    if not config.eval_splits and config.split != "all":
        chosen = {config.split: config.copies}
    if not any(len(listing.splits[s]) for s in chosen if config.split in (s, "all")):
        others = ", ".join(f"{len(part):,} in {s}" for s, part in listing.splits.items())
        raise UserError(
            f"--split {config.split}: {config.dataset} has no image in it ({others}); add some, or "
            "choose another split, or all"
        )
    return chosen


def choose_samples(
    listing: Listing, splits: Iterable[str], limit: int | None
) -> dict[str, Samples]:
    """The samples of those splits that a job with that --limit uses."""
    wanted = {split: listing.splits[split] for split in splits}
    return {split: part.take(limited(part.ids, limit)) for split, part in wanted.items()}


def make_plan(
    config: AugmentConfig,
    report: Report,
    begin: Callable[[int, int], Future[Client] | None] = lambda n_samples, n_new: None,
) -> Plan:
    """Reads the source once (every byte is hashed, but of files that are known to be what they
    were when `out` was written) and fixes all that the output depends on.

    begin: Told how many samples there are, and once more when it is known how many are new; gives
      the client of the workers to come, who read them too, or None.
    Raises: UserError for anything in the configuration or the source that cannot work.
    """
    out = output_folder(config)
    source = open_source(config.dataset, config.data_dir)
    policy = resolve_policy(config.policy, source.name)
    listing = listing_of(config.dataset, source, report)
    tell_listing(config.dataset, listing, report)
    copies = choose_splits(config, listing)
    samples = choose_samples(listing, copies, config.limit)
    n_samples = sum(map(len, samples.values()))
    coming = begin(n_samples, 0)
    is_published = config.publish or storage.is_object(out)
    base = standing_base(out, is_published)
    with report.progress(n_samples, "reading") as progress:
        scans = scan_all(
            source,
            samples,
            base.entries if base else {},
            progress.advance,
            config.workers,
            config.scheduler,
            lambda n_new: coming or begin(n_samples, n_new),
            report.say,
        )
    refuse_unreadable(config.dataset, samples, scans)
    tell_repeats(config.dataset, listing.classes, samples, scans, report)
    return Plan(
        job=make_job(config, policy, source.name, listing.classes, samples, copies, scans),
        classes=listing.classes,
        source=source,
        samples=samples,
        scans=scans,
        out=out,
        ignored=listing.ignored,
        is_published=is_published,
        dataset=whereabouts(config.dataset),
        base=base,
    )


def standing_base(out: Path, is_published: bool) -> Base | None:
    """What the output in its place, or else an unfinished run, was made of."""
    version = latest(out) if is_published else None
    found = read_base(out if version is None else out / version)
    return found or read_unfinished(unfinished_runs(out, is_published))


def make_job(
    config: AugmentConfig,
    policy: Policy,
    dataset: str,
    classes: tuple[str, ...],
    samples: dict[str, Samples],
    copies: dict[str, int],
    scans: dict[str, Scan],
) -> Job:
    """The job that writes so many copies of the samples of each split.

    dataset: The source's own name.
    Raises: UserError for options, or a policy, that these images do not allow.
    """
    shape = common_shape(scans, config.image_size)
    encoding = resolve_encoding(config.encoding, shape)
    if config.quality is not None and encoding != "jpeg":
        raise UserError(
            f"--quality {config.quality}: the images are stored as {encoding}; leave it out, or "
            "use --encoding jpeg"
        )
    if policy.library:
        try_out(policy.library, extreme_shapes(scans, shape))
    block_samples = resolve_block_samples(config.block_samples, scans, shape)
    return Job(
        dataset=dataset,
        source=fingerprint(classes, samples, scans),
        splits=plan_splits(samples, copies, block_samples),
        policy=str(policy),
        seed=config.seed,
        original=config.original,
        format=config.format,
        encoding=encoding,
        quality=(config.quality or QUALITY) if encoding == "jpeg" else None,
        compression=config.compression,
        image_size=config.image_size,
        shape=shape,
        block_samples=block_samples,
        limit=config.limit,
        version=version_of(str(policy)),
    )


def tell_listing(dataset: str, listing: Listing, report: Report) -> None:
    """Says what was passed over, and which classes have no image: a folder that is none would be
    one without a word."""
    if ignored := listing.ignored:
        more = f" and {len(ignored) - 3:,} more" if len(ignored) > 3 else ""
        told = f"passed over: {', '.join(ignored[:3])}{more}"
        report.say(told, event="ignored", files=list(ignored))
    if empty := listing.empty_classes:
        shown = ", ".join(map(repr, empty[:5])) + (" and more" if len(empty) > 5 else "")
        report.say(
            f"{dataset}: no image is of the class {shown}, which has a number all the same; remove "
            "the folder, or the name, if it is not a class",
            event="empty_classes",
            classes=empty,
        )
