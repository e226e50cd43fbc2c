"""The paper's prompt sets, from the hub or from a file: rows with `question`, and `category` where they have one.

The paper draws 700 of HarmfulQA's 1,960 questions with `random.seed(42); random.sample(data, 700)`, in file order (paper, B.1); of
BeaverTails-Evaluation it takes all 700, of TruthfulQA all 817. How it wraps dialogues for DialogSum and Empathetic Dialogues is not
published: here the question is the dialogue with an instruction, or the situation's first turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.files import write_lines
from aligner.hub import is_hub_address, parse_address, read_hub
from aligner.readers.rows import read_rows
from aligner.records import DataError, Row, UserError
from aligner.texts import text_fault

Question = dict[str, str]


@dataclass(frozen=True)
class PromptSet:
    """Where the questions lie by default, how one is made of a row (None leaves it out), and how many are drawn with seed 42."""

    path: str
    question: Callable[[Mapping[str, Any]], Question | None]
    sample: int | None = None


def _plain(row: Mapping[str, Any]) -> Question | None:
    text = row.get("question") or row.get("prompt")
    return {"question": text, "category": str(row.get("category") or row.get("topic") or "")} if text else None


def _first_turn(row: Mapping[str, Any]) -> Question | None:
    if int(row.get("utterance_idx") or 1) != 1:
        return None
    text = str(row.get("utterance") or row.get("question") or "").replace("_comma_", ",")
    return {"question": text, "category": str(row.get("context") or "")} if text else None


def _summary(row: Mapping[str, Any]) -> Question | None:
    text = row.get("dialogue")
    return (
        {"question": f"Summarise this dialogue.\n\n{text}", "category": str(row.get("topic") or "")}
        if text
        else _plain(row)
    )


SETS = {
    "beavertails": PromptSet("hub:PKU-Alignment/BeaverTails-Evaluation/test", _plain),
    "harmfulqa": PromptSet("hub:declare-lab/HarmfulQA", _plain, 700),
    "truthfulqa": PromptSet("hub:truthfulqa/truthful_qa#generation/validation", _plain),
    "empathetic-dialogues": PromptSet("hub:facebook/empathetic_dialogues/test", _first_turn),
    "dialogsum": PromptSet("hub:knkarthick/dialogsum/test", _summary),
    "questions": PromptSet("", _plain),
}


def questions_of(name: str, path: str | None = None) -> Iterator[Question]:
    """The questions of a set, in order or as drawn. UserError where the set or its rows cannot be read."""
    if name not in SETS:
        raise UserError(f"there is no prompt set '{name}': there are {', '.join(SETS)}.")
    known = SETS[name]
    place = path or known.path
    if not place:
        raise UserError(f"the prompt set '{name}' needs a path.")
    questions = []
    for row in _rows(place, known.path):
        if question := known.question(row.value):
            if fault := text_fault(row.origin, "question", question["question"]):
                raise fault
            questions.append(question)
    if not questions:
        raise UserError(f"{place}: has no questions of '{name}'.")
    if known.sample and len(questions) > known.sample:
        questions = random.Random(42).sample(questions, known.sample)
    yield from questions


def _rows(place: str, default: str) -> Iterator[Row]:
    for row in read_hub(parse_address(place, default)) if is_hub_address(place) else read_rows(place):
        if isinstance(row, DataError):
            raise row
        if not isinstance(row.value, Mapping):
            raise DataError(*row.origin, "is no object", "Write an object with 'question'")
        yield row


def write_questions(file: Path, name: str, path: str | None = None) -> None:
    """Write a set's questions as JSON lines, whole or not at all."""
    write_lines(file, questions_of(name, path))
