"""Is an objective heard: what the measures of a text do when it is asked for, when another is, and when nothing is.

A matrix: a row for what is asked for, a column for each measure. An objective is heard where its own measure moves against asking
for nothing, more than where another objective is asked for, and more than with an Aligner whose objectives were shuffled among its
records. Pure functions of texts; intervals are a paired bootstrap over questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aligner.evaluation.measures.controls import IDENTITY, SHUFFLED_OBJECTIVES
from aligner.evaluation.measures.gain import balanced_mean
from aligner.evaluation.measures.measure import CorrectedText
from aligner.evaluation.measures.table import ALIGNER, HELPS, UNCLEAR, verdict
from aligner.evaluation.measures.text_scores import TextScore, content_kept, script, words
from aligner.evaluation.rates import Estimate
from aligner.refusals import declines

NOTHING = "nothing"  # what is asked for in the row that the others are compared with
OTHERS = "the Aligner, asked for another objective"
HEADS = ("asked for", "nothing asked")
Texts = Mapping[str, Sequence[str]]  # what is asked for -> the correction of each answer, in order
CorrectRows = Callable[[Sequence[Mapping[str, Any]]], Sequence[CorrectedText]]


@dataclass(frozen=True)
class Column:
    """A measure of what became of an answer. change: of the answer and its correction. more, less: as of a TextScore."""

    name: str
    unit: str
    change: Callable[[str, str], float]
    more: str = ""
    less: str = ""


def columns_of(scores: Sequence[TextScore]) -> list[Column]:
    """Length as a ratio, the other scores as differences, and what must not get lost: script, content, an answer at all."""
    columns = [
        Column("length", "words of the correction over the answer's", _length_ratio, each.more, each.less)
        if each.name == "length"
        else Column(each.name, f"{each.unit}, after less before", _difference(each), each.more, each.less)
        for each in scores
    ]
    return [
        *columns,
        Column(
            "script kept", "share in the answer's script", lambda answer, text: float(script(answer) == script(text))
        ),
        Column("content kept", "share of the answer's content words in the correction", content_kept),
        Column(
            "new refusals",
            "share that declines where the answer did not",
            lambda answer, text: float(declines(text) and not declines(answer)),
        ),
        Column("left alone", "share of corrections that are the answer", lambda answer, text: float(answer == text)),
    ]


def _length_ratio(answer: str, text: str) -> float:
    return len(words(text)) / max(1, len(words(answer)))


def _difference(each: TextScore) -> Callable[[str, str], float]:
    return lambda answer, text: each.score(text) - each.score(answer)


def objectives_figures(
    rows: Sequence[Mapping[str, Any]],
    requested: Mapping[str, str],
    systems: Mapping[str, CorrectRows],
    control_limit: int,
    scores: Sequence[TextScore],
) -> dict[str, Any]:
    """The matrix of every system, a part with a verdict for each objective that has a measure, and notes.

    rows: question and answer. requested: the objectives, each with its sentence. systems: ALIGNER and the controls that there are,
    which correct the first `control_limit` answers.
    """
    columns, notes, changes = columns_of(scores), list[str](), dict[str, dict[str, dict[str, list[float]]]]()
    for name, correct in systems.items():
        some = rows[: None if name == ALIGNER else control_limit]
        texts, unfinished = _corrections(some, requested, correct)
        changes[name] = _changes(some, texts, columns)
        if unfinished:
            total = len(some) * len(texts)
            notes.append(f"{name}: {unfinished:,} of {total:,} corrections did not end; the answer was kept")
    changes[IDENTITY] = _changes(
        rows, {what: [row["answer"] for row in rows] for what in (NOTHING, *requested)}, columns
    )
    questions = [row["question"] for row in rows]
    own = [(name, column, sign) for column in columns for name, sign in ((column.more, 1), (column.less, -1))]
    return {
        "columns": [{name: getattr(column, name) for name in ("name", "unit", "more", "less")} for column in columns],
        "matrix": {name: _matrix(each, questions) for name, each in changes.items()},
        "parts": {
            name: _part(changes, questions, name, column, sign)
            for name, column, sign in own
            if name and name in requested
        },
        "notes": notes,
    }


def _corrections(
    rows: Sequence[Mapping[str, Any]], requested: Mapping[str, str], correct: CorrectRows
) -> tuple[Texts, int]:
    """The corrections under no objective and under each, one after another, so that one more asked for costs its own alone; and how
    many did not end."""
    plain = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    texts, unfinished = dict[str, list[str]](), 0
    for name, sentence in {NOTHING: "", **requested}.items():
        replies = correct([{**row, "objectives": [sentence]} if sentence else row for row in plain])
        texts[name] = [reply.text for reply in replies]
        unfinished += sum(not reply.finished for reply in replies)
    return texts, unfinished


def _changes(
    rows: Sequence[Mapping[str, Any]], texts: Texts, columns: Sequence[Column]
) -> dict[str, dict[str, list[float]]]:
    """What is asked for -> column -> the change of each answer."""
    return {
        what: {
            column.name: [column.change(row["answer"], text) for row, text in zip(rows, own, strict=True)]
            for column in columns
        }
        for what, own in texts.items()
    }


def _mean(values: Sequence[float], questions: Sequence[str]) -> Estimate:
    return balanced_mean(values, [True] * len(values), questions[: len(values)])


def _less(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=False)]  # a control has the first answers alone


def _over_others(changes: Mapping[str, Mapping[str, Sequence[float]]], what: str, column: str) -> list[float]:
    """Each answer's mean change over the objectives but this one."""
    others = [own[column] for name, own in changes.items() if name not in (NOTHING, what)]
    return [sum(each) / len(each) for each in zip(*others, strict=True)]


def _matrix(changes: Mapping[str, Mapping[str, Sequence[float]]], questions: Sequence[str]) -> dict[str, Any]:
    """Each row's means, and their differences from asking for nothing and from asking for another objective."""
    rows: dict[str, dict[str, Any]] = {}
    for what, own in changes.items():
        rows[what] = {}
        for column, values in own.items():
            cell: dict[str, Any] = {"mean": asdict(_mean(values, questions))}
            if what != NOTHING:
                cell["against_nothing"] = asdict(_mean(_less(values, changes[NOTHING][column]), questions))
                if others := _over_others(changes, what, column):
                    cell["against_others"] = asdict(_mean(_less(values, others), questions))
            rows[what][column] = cell
    return {"answers": len(next(iter(changes[NOTHING].values()))), "rows": rows}


def _part(
    changes: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    questions: Sequence[str],
    objective: str,
    column: Column,
    sign: int,
) -> dict[str, Any]:
    """An objective by its own measure, beside what cannot have heard it."""
    requested = {name: own[objective][column.name] for name, own in changes.items()}
    nothing = {name: own[NOTHING][column.name] for name, own in changes.items()}
    if others := _over_others(changes[ALIGNER], objective, column.name):
        requested, nothing = {**requested, OTHERS: others}, {**nothing, OTHERS: nothing[ALIGNER]}
    gains = {name: [sign * change for change in _less(requested[name], nothing[name])] for name in requested}
    rows = [
        {
            "system": name,
            "answers": len(gain),
            "needed": _mean(requested[name], questions).value,
            "not_needed": _mean(nothing[name], questions).value,
            "gain": asdict(_mean(gain, questions)),
            "aligner_ahead": None if name == ALIGNER else asdict(_mean(_less(gains[ALIGNER], gain), questions)),
        }
        for name, gain in gains.items()
    ]
    count = len(set(questions))
    follows = verdict(rows, count, "asking for nothing")
    if follows["verdict"] == HELPS and SHUFFLED_OBJECTIVES not in changes:
        says = "above asking for nothing; whether it is the objective that is heard, only an Aligner trained on shuffled ones shows"
        follows |= {"verdict": UNCLEAR, "says": says}
    return {"answers": len(questions), "questions": count, "measure": column.name, "systems": rows, **follows}
