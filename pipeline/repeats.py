"""Images that a data set holds more than once. They are used as they are, and told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datasets.fingerprint import Scan
from datasets.source import Samples
from pipeline.report import Report


class Place(NamedTuple):
    """Where an image is."""

    split: str
    sample: str
    label: int


def repeats(samples: dict[str, Samples], scans: dict[str, Scan]) -> list[list[Place]]:
    """The places of each image that is in several: of equal bytes or pixels, and an equal box."""
    heads = b"".join(digest[:8] for scan in scans.values() for digest in scan.digests)
    ordered = np.sort(np.frombuffer(heads, np.uint64))  # 8 bytes a sample, for any number of them
    again = {head.tobytes() for head in ordered[1:][ordered[1:] == ordered[:-1]]}
    if not again:
        return []
    found: dict[tuple[bytes, tuple[int, ...]], list[Place]] = defaultdict(list)
    for split, part in samples.items():
        for i, digest in enumerate(scans[split].digests):
            if digest[:8] in again and i not in scans[split].errors:
                place = Place(split, part.ids[i], int(part.labels[i]))
                found[digest, tuple(part.box(i) or ())].append(place)
    return [places for places in found.values() if len(places) > 1]


def tell_repeats(
    dataset: str,
    classes: Sequence[str],
    samples: dict[str, Samples],
    scans: dict[str, Scan],
    report: Report,
) -> None:
    """Says which images are in several splits, have several labels, or are twice in one split, each
    with an example: they make results look better than they are, or contradict each other."""
    told: dict[tuple[str, str], list[tuple[Place, Place]]] = defaultdict(list)
    for first, *others in repeats(samples, scans):
        for other in others:
            pair = (first, other) if other.split == "train" else (other, first)
            here, there = pair[0].split, pair[1].split
            if first.label != other.label:
                told["with several labels", "remove the wrong ones"].append(pair)
            if here != there:
                advice = f"results on {here} look better than they are: remove them from one"
                told[f"of {here} that are also in {there}", advice].append(pair)
            elif first.label == other.label:
                advice = "results on it count them more than once"
                if here == "train":
                    advice = "validation that is held out of it may hold the same"
                told[f"that are in {here} more than once", advice].append(pair)
    for (which, advice), pairs in told.items():
        (one, two), n = pairs[0], len({one.sample for one, _ in pairs})
        labels = f" ({classes[one.label]}, {classes[two.label]})" if one.label != two.label else ""
        report.say(
            f"{dataset}: images {which}: {n:,}, such as {one.sample} = {two.sample}"
            f"{labels}; {advice}",
            event="repeats",
            samples=[[one.sample, two.sample] for one, two in pairs],
        )
