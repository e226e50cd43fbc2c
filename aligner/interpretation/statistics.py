"""Shares and straight lines with 95 % intervals. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aligner.evaluation.rates import Estimate

DRAWN = 2_000  # resamples of a bootstrap
Z = 1.96


@dataclass(frozen=True)
class Line:
    """A straight line through the means over rows at several alphas: slope, intercept, R2 (its interval is a bootstrap over
    rows), and whether the means never fall."""

    slope: float
    intercept: float
    r2: Estimate
    monotone: bool


def share(right: Sequence[bool]) -> Estimate:
    """The share that is right, with Wilson's interval, which holds at 0 and 1 too."""
    count, value = len(right), sum(right) / len(right)
    middle = (value + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * np.sqrt(value * (1 - value) / count + Z**2 / (4 * count**2))
    return Estimate(value, float(middle - half), float(middle + half))


def line(alphas: Sequence[float], values_NA: np.ndarray, seed: int = 0) -> Line:
    """The line through the means of `values_NA`, rows by alphas."""
    drawn = np.random.default_rng(seed).integers(len(values_NA), size=(DRAWN, len(values_NA)))
    low, high = np.percentile([_r2(alphas, values_NA[rows].mean(0)) for rows in drawn], [2.5, 97.5])
    means_A = values_NA.mean(0)
    slope, intercept = np.polyfit(alphas, means_A, 1)
    r2 = Estimate(_r2(alphas, means_A), float(low), float(high))
    return Line(float(slope), float(intercept), r2, bool((np.diff(means_A) >= 0).all()))


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """A mean with its interval, a bootstrap."""
    array = np.asarray(values, float)
    drawn = np.random.default_rng(seed).integers(len(array), size=(DRAWN, len(array)))
    low, high = np.percentile(array[drawn].mean(1), [2.5, 97.5])
    return Estimate(float(array.mean()), float(low), float(high))


def _r2(alphas: Sequence[float], means_A: np.ndarray) -> float:
    """The share of the means' variance that a line explains; 0 where they do not vary."""
    if np.ptp(means_A) == 0:
        return 0.0
    return float(np.corrcoef(alphas, means_A)[0, 1] ** 2)
