"""A job: everything that determines the bytes of an output, and nothing else."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from datasets.errors import EnvironmentFailed
from datasets.manifest import sha256_text
from datasets.schema import Encoding, Schema, canonical_json
from pipeline.policy import Policy, parse_policy

GROUPS = 2  # 1 gave all ops of a group the same numbers


@dataclass(frozen=True)
class Job:
    """What is hashed to tell one job from another. Not in it: workers, scheduler, paths, logging.

    source: Fingerprint of ids, labels and contents.
    splits: Split -> number of its blocks and of its augmented copies.
    shape: (height, width, channels) of every image, or None where they differ; of features their
      number.
    network: What turned images into features, where the rows are those.
    """

    dataset: str
    source: str
    splits: dict[str, dict[str, int]]
    policy: str
    seed: int
    original: bool
    format: str
    encoding: Encoding
    quality: int | None
    compression: str
    image_size: tuple[int, int] | None
    shape: tuple[int, ...] | None
    block_samples: int | None
    limit: int | None
    version: str
    network: dict[str, Any] | None = None

    def sha256(self) -> str:
        body = asdict(self)
        if self.network is None:  # jobs of images are what they were before there were others
            del body["network"]
        return sha256_text(canonical_json(body))

    def copies(self, split: str) -> list[int]:
        """The copies of each sample of a split, in the order in which they are written."""
        n = self.splits[split]["copies"]
        return [*([0] if self.original or not n else []), *range(1, n + 1)]

    def schema(self, classes: tuple[str, ...]) -> Schema:
        policy = parsed_policy(self.policy)
        return Schema(
            encoding=self.encoding,
            shape=self.shape,
            classes=classes,
            params=() if self.network else policy.param_names,
            library=bool(policy.library) and not self.network,
        )


@lru_cache(maxsize=8)
def parsed_policy(text: str) -> Policy:
    """The policy of a job's text, which is parsed once and not for each shard."""
    return parse_policy(text)


def version_of(policy: str) -> str:
    """What a job with that policy records as the version of this package. Of one with groups of
    library ops it says how these are drawn as well: since that has changed, they are other jobs."""
    own = version("augmentation-pipeline")
    has_groups = any(op.is_group for op in parsed_policy(policy).library)
    return f"{own}, groups {GROUPS}" if has_groups else own


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`seed was 0, now 1; policy was ...`, in one line."""
    parts = []
    for name, now in new.items():
        before = old.get(name)
        if canonical_json(before) == canonical_json(now):
            continue
        if name == "source":
            parts.append("the source's content differs")
        elif isinstance(before, dict) and isinstance(now, dict):
            parts.append(f"{name}: {differences(before, now)}")
        else:
            parts.append(f"{name} was {before}, now {now}")
    return "; ".join(parts)


def versions() -> dict[str, str]:
    """Versions of the libraries that make the bytes."""
    arrays = ("albumentations", "numpy", "opencv-python-headless")
    files = ("pillow", "protobuf", "pyarrow", "simplejpeg")
    return {name: version(name) for name in (*arrays, *files)}


@lru_cache(maxsize=1)
def software() -> dict[str, str]:
    """Versions that processes which work on one job must have in common."""
    ours = ("augmentation-pipeline", "dask", "distributed")
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python, **{name: version(name) for name in ours}, **versions()}


def environment() -> dict[str, str]:
    """`software`, and the probe of what it computes on this machine."""
    return {**software(), "probe": probe()}


def check_environment(expected: dict[str, str]) -> None:
    """Checks a worker that may have come after the others were checked.

    Raises: EnvironmentFailed if it has other software than expected, and might write other bytes.
    """
    if environment() != expected:
        raise EnvironmentFailed(
            f"worker {os.uname().nodename}: differs from the machine that planned the job "
            f"({differences(expected, environment())}); use the same versions and processor "
            "features on all"
        )


@lru_cache(maxsize=1)
def probe() -> str:
    """16 hex digits that are equal where this machine computes equal parameters, pixels and files:
    fixed images augmented, resized, encoded and decoded. SIMD levels differ in 0.02 % of pixels."""
    import hashlib

    import cv2
    import numpy as np

    from datasets import images
    from datasets.source import sample_keys
    from pipeline.opencv_kernel import augment_batch, prepare

    cv2.setNumThreads(1)
    policy, keys = parse_policy("strong"), sample_keys([str(i) for i in range(8)])
    digest = hashlib.sha256()
    for side in (32, 72):  # with a margin and without
        y, x = np.mgrid[:side, : side + 9].astype(np.int64)
        start = np.stack([x * y % 251, x * x % 241, (3 * x + 5 * y) % 256], -1).astype(np.uint8)
        batch = np.stack([start] * len(keys))
        out, params, _ = augment_batch(policy, batch, prepare(batch, policy.fill), keys, 1, 0, None)
        digest.update(out.tobytes())
        for values in params.values():
            digest.update(values.tobytes())
    jpeg = images.encode(start, "jpeg", 95)
    digest.update(jpeg)
    digest.update(images.encode(start, "png", 95))
    digest.update(images.fit(images.decode(jpeg), 40, 56).tobytes())
    return digest.hexdigest()[:16]
