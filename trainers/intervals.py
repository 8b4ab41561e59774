"""Means of a few trainings, with what they may be off by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95


def spread(values: Sequence[float], overlap: float = 0.0) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval, by Student's t distribution; of one value neither
    of the latter.

    overlap: Of cross-validation: test samples to training samples of a fold. Trainings that share
      most of their samples are not independent, and the usual interval would be too narrow.
    Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
    """
    each, n = [float(value) for value in values], len(values)
    mean = float(np.mean(each))
    if n < 2:
        return {"each": each, "mean": mean, "std": None, "low": None, "high": None}
    from scipy.stats import t

    std = float(np.std(each, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std * math.sqrt(1 / n + overlap)
    return {"each": each, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def in_percent(found: dict[str, Any], sign: str = "") -> str:
    """`93.1 (92.4 to 93.8)`, or `93.1` of one value; with a sign wherever that is `+`."""
    mean, low, high = (found[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"{100 * mean:{sign}.1f}"
    return f"{100 * mean:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
