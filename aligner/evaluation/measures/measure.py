"""A measure from a file of rows to its figures: the Aligner's corrections, those of every control, and the table.

How a system corrects is a function, so that the same figures come from a command of its own (evaluate) and from a model that is
already open (what a training run shows at its end).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aligner.evaluation.measures.controls import (
    BASE,
    IDENTITY,
    SHUFFLED_ALIGNER,
    SHUFFLED_TEXTS,
    SPELLING,
    TEXT_CONTROLS,
    shuffled,
    spelling_corrector,
)
from aligner.evaluation.measures.items import MeasuredAnswer, TextMeasure
from aligner.evaluation.measures.table import ALIGNER, part_figures


class CorrectedText(NamedTuple):
    """A correction, and whether the system ended it by itself; where it did not, the text is the answer, kept."""

    text: str
    finished: bool


CorrectAnswers = Callable[[Sequence[tuple[str, str]]], Sequence[CorrectedText]]  # of (question, answer) pairs, in order
Texts = dict[int, str]


def text_figures(
    measure: TextMeasure, systems: Mapping[str, CorrectAnswers], control_limit: int
) -> tuple[dict[str, Any], list[str]]:
    """The parts of a measure of texts, and notes on what was left out or did not end.

    systems: ALIGNER, and those of the model controls that there are, which correct `control_limit` answers of each part.
    """
    items, notes = measure.items, []
    texts: dict[str, Texts] = {}
    for name, correct in systems.items():
        places = _places(items, None if name == ALIGNER else control_limit)
        replies = _replies(correct, [items[place] for place in places])
        texts[name] = {place: reply.text for place, reply in zip(places, replies, strict=True)}
        if unfinished := sum(not reply.finished for reply in replies):
            notes.append(f"{name}: {unfinished:,} of {len(replies):,} corrections did not end; the answer was kept")
    rewrites = {**TEXT_CONTROLS, **measure.more}
    if measure.name == "restoration":
        if speller := spelling_corrector():
            rewrites[SPELLING] = speller
        else:
            notes.append(f"{SPELLING}: not measured, the package autocorrect is not installed")
    for name in (BASE, SHUFFLED_ALIGNER):
        if name not in systems:
            notes.append(f"{name}: not measured, none was given")
    for name, rewrite in rewrites.items():
        texts[name] = {place: rewrite(item.question, item.answer) for place, item in enumerate(items)}
    parts = {name: _part(measure, places, texts) for name, places in _parts(items).items()}
    return parts, notes


def _parts(items: Sequence[MeasuredAnswer]) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        parts.setdefault(item.part, []).append(place)
    return parts


def _places(items: Sequence[MeasuredAnswer], limit: int | None) -> list[int]:
    return [place for places in _parts(items).values() for place in places[:limit]]


def _replies(correct: CorrectAnswers, items: Sequence[MeasuredAnswer]) -> list[CorrectedText]:
    """The corrections of the items; an answer that stands in several parts is corrected once."""
    pairs = list(dict.fromkeys((item.question, item.answer) for item in items))
    known = dict(zip(pairs, correct(pairs), strict=True))
    return [known[item.question, item.answer] for item in items]


def _part(measure: TextMeasure, places: Sequence[int], texts: Mapping[str, Texts]) -> dict[str, Any]:
    """The figures of the items in these places. The shuffled corrections are dealt among the part's own questions."""
    items = [measure.items[place] for place in places]
    here = {name: {new: each[old] for new, old in enumerate(places) if old in each} for name, each in texts.items()}
    dealt = shuffled([here[ALIGNER][place] for place in range(len(items))], [item.question for item in items])
    here[SHUFFLED_TEXTS] = dict(enumerate(dealt))
    scores = {
        name: {place: measure.score(items[place], text) for place, text in each.items()} for name, each in here.items()
    }
    ordered = {name: scores[name] for name in (ALIGNER, IDENTITY)}
    return part_figures(items, {**ordered, **scores}, measure.error)
