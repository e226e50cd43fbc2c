"""The figures: the paper's rate with an interval, controlled for length; order bias, agreement, Elo. Pure functions of verdicts.

An outcome is 1 where the corrected answer won, -1 where it lost, 0 for a tie. What was unreadable is no outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 10_000  # of the bootstrap
NEWTON = 50  # iterations at most
FEW = 3  # corrections on either side of their answers' lengths, for the rate at equal lengths to be known


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """Wins, losses, ties; the rate (wins - losses) / judged, -1 to 1 (paper, equation 5), with its 95 % interval."""

    wins: int
    losses: int
    ties: int
    rate: float
    low: float
    high: float

    @property
    def judged(self) -> int:
        """How many were judged and read."""
        return self.wins + self.losses + self.ties


def rate(outcomes: Sequence[int], questions: Sequence[str] | None = None, seed: int = 0) -> Rate | None:
    """The rate of outcomes, and a percentile bootstrap over their questions: several answers to one question are drawn together
    (without `questions` each outcome is one). None where nothing was judged.

    Where all questions have the same rate there is nothing to draw: the interval has room for as many others as may have been
    missed (the exact binomial bound, 1 - 0.025^(1 / questions)).
    """
    values = np.asarray(outcomes, float)
    if not len(values):
        return None
    _, group = np.unique(
        range(len(values)) if questions is None else np.asarray(questions, object), return_inverse=True
    )
    each = np.column_stack([np.bincount(group, values), np.bincount(group)])  # of a question: wins less losses, judged
    mean, question_count = float(values.mean()), len(each)
    if len(np.unique(each[:, 0] / each[:, 1])) > 1:
        drawn = resampled(each, seed)
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    else:
        missed = 1 - 0.025 ** (1 / question_count)
        low, high = mean - missed * (mean + 1), mean + missed * (1 - mean)
    wins, losses, ties = (int((values == kind).sum()) for kind in (1, -1, 0))
    return Rate(wins, losses, ties, mean, float(low), float(high))


def resampled(each: np.ndarray, seed: int = 0) -> np.ndarray:
    """The sums over questions drawn anew, with replacement. each: a row of numbers for every question; returns SAMPLES rows.

    Resampling questions is drawing how many there are of each kind.
    """
    kinds, counts = np.unique(each, axis=0, return_counts=True)
    return np.random.default_rng(seed).multinomial(len(each), counts / len(each), SAMPLES) @ kinds


def length_controlled(outcomes: Sequence[int], before: Sequence[int], after: Sequence[int]) -> float | None:
    """The rate that would be seen if corrections were as long as answers, -1 to 1.

    As AlpacaEval 2 does for win rates: logistic regression of the outcome (win 1, tie 0.5, loss 0) on a constant and
    tanh(difference of lengths / its standard deviation); the constant alone gives the rate, 2 sigmoid(b) - 1. A weak pull towards
    zero (as one more tied pair at each end of lengths) keeps it finite where every pair was won. None below ten outcomes, and
    where fewer than FEW corrections are no longer, or no shorter, than their answers: then it would be a guess.
    """
    difference = np.asarray(after, float) - np.asarray(before, float)
    if len(outcomes) < 10 or min((difference <= 0).sum(), (difference >= 0).sum()) < FEW:
        return None
    spread = difference.std()
    length = np.tanh(difference / spread) if spread > 0 else np.zeros(len(difference))
    design = np.column_stack([np.ones(len(length) + 2), np.append(length, [1.0, -1.0])])
    target = np.append((np.asarray(outcomes, float) + 1) / 2, [0.5, 0.5])
    weights = np.zeros(2)
    for _ in range(NEWTON):
        expected = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (target - expected)
        curvature = (design * (expected * (1 - expected))[:, None]).T @ design + 1e-9 * np.eye(2)
        change = np.linalg.solve(curvature, slope)
        weights += np.clip(change, -2, 2)
        if np.abs(change).max() < 1e-10:
            break
    return float(np.tanh(weights[0] / 2))


def order_bias(first_chosen: int, second_chosen: int) -> float | None:
    """How much more often the response that stood first was chosen, -1 to 1; 0 is fair. None where none was chosen."""
    chosen = first_chosen + second_chosen
    return (first_chosen - second_chosen) / chosen if chosen else None


@dataclass(frozen=True)
class Agreement:
    """With human labels: the share of equal outcomes, and Cohen's kappa, which takes away what chance would give; None where all
    outcomes are of one kind, of which chance would give as much."""

    rows: int
    share: float
    kappa: float | None


def agreement(judged: Sequence[int], human: Sequence[int]) -> Agreement | None:
    """How far a judge's outcomes are the human ones. None where no row has both."""
    ours, theirs = np.asarray(judged), np.asarray(human)
    if not len(ours):
        return None
    share = float((ours == theirs).mean())
    chance = sum(float((ours == kind).mean() * (theirs == kind).mean()) for kind in np.union1d(ours, theirs))
    return Agreement(len(ours), share, (share - chance) / (1 - chance) if chance < 1 else None)


def elo(results: Mapping[tuple[str, str], tuple[float, float]], anchor: str, at: float = 1500.0) -> dict[str, float]:
    """Ratings of systems from pairwise results, the anchor's at 1500.

    `results[a, b]`: points of a and of b, a tie being half a point for each. Ratings are the maximum-likelihood ones of
    P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400)) (Bradley and Terry); of two systems that is the paper's
    1500 + 400 log10((1 + d) / (1 - d)) with d its rate. A system that never scored, or always, has half a point added on each side.
    """
    names = sorted({name for pair in results for name in pair})
    points = np.zeros((len(names), len(names)))
    for (one, other), (mine, theirs) in results.items():
        i, j = names.index(one), names.index(other)
        if not mine or not theirs:
            mine, theirs = mine + 0.5, theirs + 0.5
        points[i, j] += mine
        points[j, i] += theirs
    games = points + points.T
    strength = np.ones(len(names))
    for _ in range(10_000):  # the minorisation-maximisation of Hunter (2004)
        met = games / (strength[:, None] + strength[None, :])
        new = points.sum(1) / met.sum(1)
        new /= np.exp(np.log(new).mean())
        if np.abs(new - strength).max() < 1e-12:
            break
        strength = new
    ratings = 400 * np.log10(strength)
    return {name: float(at + ratings[i] - ratings[names.index(anchor)]) for i, name in enumerate(names)}
