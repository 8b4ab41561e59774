"""Means of a few trainings, with what they may be off by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
ROUNDING = 1e-12  # of differences of shares that are equal


def spread(values: Sequence[float], overlap: float = 0.0, is_share: bool = False) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval, by Student's t distribution. Of one value there
    is neither of the latter; of equal ones, which say nothing of how far others would be, no
    interval.

    overlap: Of cross-validation: test samples to training samples of a fold. Trainings that share
      most of their samples are not independent, and the usual interval would be too narrow.
    is_share: Whether the values are from 0 to 1; the interval is cut there.
    Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
    """
    each, n = [float(value) for value in values], len(values)
    mean = float(np.mean(each))
    if n < 2:
        return {"each": each, "mean": mean, "std": None, "low": None, "high": None}
    from scipy.stats import t

    std = float(np.std(each, ddof=1))
    if std < ROUNDING:
        return {"each": each, "mean": mean, "std": 0.0, "low": None, "high": None}
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std * math.sqrt(1 / n + overlap)
    low, high = mean - half, mean + half
    if is_share:
        low, high = max(0.0, low), min(1.0, high)
    return {"each": each, "mean": mean, "std": std, "low": low, "high": high}


def in_points(found: dict[str, Any]) -> str:
    """`+1.5 (+0.8 to +2.2)`, or `+1.5` of one value."""
    if found["low"] is None:
        return points(found["mean"])
    mean, low, high = (points(found[name]) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, `+1.5`; what is nearly 0 has no minus."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"
