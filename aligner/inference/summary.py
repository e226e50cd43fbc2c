"""What came of a job, in numbers, and of several parts together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from aligner.quality.edits import Edits
from aligner.records import DataError


@dataclass(frozen=True)
class CorrectionSummary:
    """The outcome of a job, in numbers of rows: all, those answered by the upstream, those whose answer was cut off, corrected
    ones, those whose correction is empty or did not end, those left alone on purpose, those whose feedback was ignored; the faults
    in order, and the drift of each pass."""

    rows: int
    upstream_answers: int
    cut: int
    corrected: int
    empty: int
    unfinished: int
    left_alone: int
    unread: int
    faults: list[DataError]
    drift: list[Drift]


@dataclass(frozen=True)
class Drift:
    """What a pass changed, as means over rows: the share left unchanged, similarity to its input and to the first answer,
    characters over the first answer's, the share without a correction (no room, no end). A corrector should reach a fixed point:
    unchanged tends to 1."""

    name: str
    unchanged: float
    to_input: float
    to_answer: float
    length: float
    unfinished: float


def drift_of(name: str, step: Sequence[Edits], whole: Sequence[Edits], endless: float) -> Drift:
    """A pass's drift: `step` has each row's edits against its input, `whole` against the first answer."""
    unchanged, to_input = mean(e.identical for e in step), mean(e.similarity for e in step)
    to_answer, length = mean(e.similarity for e in whole), mean(e.length_ratio for e in whole)
    return Drift(name, unchanged, to_input, to_answer, length, endless)


def mean(values: Iterable[float]) -> float:
    """Their mean; NaN of none."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def combined(parts: Sequence[CorrectionSummary]) -> CorrectionSummary:
    """The summary of all parts, in their order; a part's drift counts by its corrected rows."""
    names = [field.name for field in fields(CorrectionSummary) if field.name not in ("faults", "drift")]
    faults = [fault for part in parts for fault in part.faults]
    corrected = [part for part in parts if part.corrected]
    drift = [_combined_drift([(part.corrected, part.drift[at]) for part in corrected]) for at in _passes(corrected)]
    return CorrectionSummary(
        **{name: sum(getattr(part, name) for part in parts) for name in names}, faults=faults, drift=drift
    )


def _passes(parts: Sequence[CorrectionSummary]) -> range:
    return range(len(parts[0].drift) if parts else 0)


def _combined_drift(parts: Sequence[tuple[int, Drift]]) -> Drift:
    total = sum(count for count, _ in parts)
    names = [field.name for field in fields(Drift) if field.name != "name"]
    means = (math.fsum(count * getattr(drift, name) for count, drift in parts) / total for name in names)
    return Drift(parts[0][1].name, *means)
