"""What became of a job's rows: counts, faults, and what each pass changed; and that of several parts together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from aligner.inference.items import Item
from aligner.inference.journal import Journal
from aligner.quality.edits import Edits, edits
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


def pass_kind(number: int) -> str:
    """What the journal calls the rows of a pass, from 0."""
    return f"pass {number + 1}"


def input_of(number: int, row: int, item: Item, journal: Journal) -> str:
    """The text that a pass corrects: the answer, or what the pass before it wrote."""
    text: str = journal.done[pass_kind(number - 1), row]["text"] if number else item.text("answer")
    return text


def _asks(item: Item) -> bool:
    """Whether a row says what its correction is to mind. A field `objectives` of another kind has another meaning."""
    return bool(item.text("feedback") or (isinstance(item.fields.get("objectives"), str | list) and item.objectives()))


def summary_of(
    items: Sequence[Item], journal: Journal, upstream_answers: int, names: Sequence[str], hears: bool
) -> CorrectionSummary:
    """The outcome of a finished job. names: of each pass; hears: whether an Aligner's prompt has a slot for feedback."""
    good = [row for row, item in enumerate(items) if not item.fault]
    drift = []
    for number, name in enumerate(names):
        inputs = [input_of(number, row, items[row], journal) for row in good]
        texts = [journal.done[pass_kind(number), row]["text"] for row in good]
        step = [edits(before, after) for before, after in zip(inputs, texts, strict=True)]
        whole = [edits(items[row].text("answer"), text) for row, text in zip(good, texts, strict=True)]
        endless = _mean(not journal.done[pass_kind(number), row]["finished"] for row in good)
        drift.append(_drift(f"{pass_kind(number)}, {name}", step, whole, endless))
    last = [journal.done[pass_kind(len(names) - 1), row] for row in good]
    faults = [item.fault for item in items if item.fault]
    unread = 0 if hears else sum(_asks(items[row]) for row in good)
    cut = sum("answer_finished" in items[row].fields for row in good)
    empty = sum(not correction["text"].strip() for correction in last)
    unfinished = sum(not correction["finished"] for correction in last)
    alone = sum("kept" in correction and correction["finished"] for correction in last)
    counts = upstream_answers, cut, len(good), empty, unfinished, alone, unread
    return CorrectionSummary(len(items), *counts, faults, drift)


def _drift(name: str, step: Sequence[Edits], whole: Sequence[Edits], endless: float) -> Drift:
    unchanged, to_input = _mean(e.identical for e in step), _mean(e.similarity for e in step)
    to_answer, length = _mean(e.similarity for e in whole), _mean(e.length_ratio for e in whole)
    return Drift(name, unchanged, to_input, to_answer, length, endless)


def _mean(values: Iterable[float]) -> float:
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
