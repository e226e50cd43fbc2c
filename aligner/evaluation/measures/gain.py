"""What a system gains over leaving the answers alone, balanced over answers that needed help and answers that did not.

Pure functions of scores; a higher score is better. Intervals are a paired bootstrap over questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligner.evaluation.rates import Estimate, resampled


def balanced_mean(values: Sequence[float], needed: Sequence[bool], questions: Sequence[str]) -> Estimate:
    """The mean of the means over answers that needed help and over those that did not; where one kind is missing, of the other.

    values: of an answer each, mostly differences of two systems' scores on it, so that the bootstrap is paired. Several answers
    to one question are drawn together.
    """
    return _estimate(_by_question(values, needed, questions))


def share_gone(before: Sequence[float], after: Sequence[float], questions: Sequence[str]) -> Estimate:
    """One less the error after over the error before, each summed over answers: how much of an error is gone, 1 being all."""
    _, group = np.unique(np.asarray(questions, object), return_inverse=True)
    each = np.column_stack([np.bincount(group, before), np.bincount(group, after)])
    drawn = resampled(each)
    shares = 1 - drawn[:, 1] / np.maximum(drawn[:, 0], 1e-12)
    low, high = np.percentile(shares, [2.5, 97.5])
    return Estimate(float(1 - sum(after) / max(sum(before), 1e-12)), float(low), float(high))


def _by_question(values: Sequence[float], needed: Sequence[bool], questions: Sequence[str]) -> np.ndarray:
    """For every question: the sum over answers that needed help, their number, and the same of the others."""
    _, group = np.unique(np.asarray(questions, object), return_inverse=True)
    value, need = np.asarray(values, float), np.asarray(needed, float)
    columns = (value * need, need, value * (1 - need), 1 - need)
    return np.column_stack([np.bincount(group, column) for column in columns])


def _estimate(each: np.ndarray) -> Estimate:
    low, high = np.percentile(_balanced(resampled(each)), [2.5, 97.5])
    return Estimate(float(_balanced(each.sum(0, keepdims=True))[0]), float(low), float(high))


def _balanced(sums: np.ndarray) -> np.ndarray:
    """The balanced mean of each row of sums."""
    needed = sums[:, 0] / np.maximum(sums[:, 1], 1)
    others = sums[:, 2] / np.maximum(sums[:, 3], 1)
    kinds = (sums[:, 1] > 0).astype(float) + (sums[:, 3] > 0)
    return (needed + others) / np.maximum(kinds, 1)
