"""The gate leaves an answer unchanged that the Aligner itself would have written; and the choice of its threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from aligner.inference.likelihood import log_likelihood


def confidence(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """The mean log-probability, in nats a token, of the answer as its own correction, end-of-text with it."""
    return log_likelihood(model, prompt, answer) / len(answer)


@dataclass(frozen=True)
class Point:
    """What a threshold does: the share of all answers that is left alone, and of those that the Aligner would change, the
    share that is left alone with them."""

    threshold: float
    left_alone: float
    missed: float


def curve(confidences: Sequence[float], changed: Sequence[bool]) -> list[Point]:
    """A point for each threshold that tells two answers apart, the highest first, which leaves least alone."""
    values, would_change = np.asarray(confidences, float), np.asarray(changed, bool)
    points = []
    for threshold in sorted(set(values.tolist()), reverse=True):
        alone = values >= threshold
        missed = (alone & would_change).sum() / max(1, would_change.sum())
        points.append(Point(threshold, float(alone.mean()), float(missed)))
    return points


def choose_threshold(points: Sequence[Point], missed: float) -> Point | None:
    """The lowest threshold, which leaves most alone, with at most this share of changes missed; None where there is none."""
    return next((point for point in reversed(points) if point.missed <= missed), None)


def table(points: Sequence[Point], chosen: Point | None) -> list[str]:
    """A table of about ten thresholds and the chosen one."""
    lines = ["  threshold  left alone  changes missed"]
    shown = sorted({round(i) for i in np.linspace(0, len(points) - 1, min(10, len(points)))})
    for place, point in enumerate(points):
        if place in shown or point is chosen:
            mark = "  <- chosen" if point is chosen else ""
            lines.append(f"{point.threshold:>11.3f}{point.left_alone:>12.0%}{point.missed:>16.0%}{mark}")
    if chosen is None:
        return [
            *lines,
            "No threshold misses so few changes: the gate would leave nothing alone. Allow more with --missed.",
        ]
    return [*lines, f"add to 'aligner serve': --mode gate --threshold {_floor(chosen.threshold)}"]


def _floor(value: float) -> float:
    """Rounded down, so that the answer it was taken from is still left alone."""
    return math.floor(value * 1e4) / 1e4
