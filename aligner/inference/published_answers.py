"""Files of answers as benchmarks publish them, seen as rows with `question` and `answer`.

AlpacaEval's `model_outputs.json`: `instruction`, `output`, `generator`. MT-Bench's question file: `question_id`, `turns`; its
answer files: `question_id`, `model_id`, `choices[].turns`, whose questions stand in `question.jsonl` beside or one folder above.
Every turn of MT-Bench is a row; the question of a second one is the dialogue, as a chat of several turns is shown to an Aligner.
So is that of OpenAI's `messages`, whose last, the assistant's, is the answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

from aligner.chat_api.dialogue import candidate_questions, question_and_answer
from aligner.readers.rows import read_rows
from aligner.records import DataError, Row, UserError

QUESTIONS = "question.jsonl"


def read_answers(path: str | os.PathLike[str], questions: str | None = None) -> Iterator[Row | DataError]:
    """The rows of a path's data files, as `read_rows`; those of a benchmark with `question` and `answer`, their own fields beside.

    `questions`: MT-Bench's question file, for its answers. UserError where it is needed and not found.
    """
    known: dict[Any, dict[str, Any]] | None = None
    for row in read_rows(path):
        if isinstance(row, DataError) or not isinstance(row.value, dict) or "question" in row.value:
            yield row
        elif _is_answered(row.value):
            known = known if known is not None else _questions_of(Path(path), questions)
            yield from _answered(row, known)
        elif "question_id" in row.value and _are_texts(row.value.get("turns")):
            yield Row(row.origin, {**_aside(row.value, "turns"), "question": row.value["turns"][0], "turn": 1})
        elif isinstance(row.value.get("messages"), list):
            yield _chat(row)
        elif isinstance(row.value.get("instruction"), str):
            yield Row(row.origin, _alpaca(row.value))
        else:
            yield row


def _chat(row: Row) -> Row | DataError:
    """A chat that ends with the assistant's answer; the question is the dialogue before it."""
    try:
        questions, answer = question_and_answer(row.value["messages"])
    except ValueError as error:
        return DataError(*row.origin, f"'messages': {error}", "Write the chat up to the answer that is to be corrected")
    return Row(row.origin, {**row.value, "question": questions[0], "answer": answer})


def _alpaca(fields: dict[str, Any]) -> dict[str, Any]:
    """A row of AlpacaEval; an `input` is part of the question, as in Alpaca's own data."""
    more = f"\n\n{fields['input']}" if isinstance(fields.get("input"), str) and fields["input"].strip() else ""
    answer = {"answer": fields["output"]} if fields.get("output") is not None and "answer" not in fields else {}
    return {**fields, "question": fields["instruction"] + more, **answer}


def _is_answered(fields: dict[str, Any]) -> bool:
    choices = fields.get("choices")
    return (
        "question_id" in fields
        and isinstance(choices, list)
        and all(isinstance(c, dict) and "turns" in c for c in choices)
    )


def _are_texts(turns: Any) -> bool:
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


def _questions_of(answers: Path, given: str | None) -> dict[Any, dict[str, Any]]:
    """MT-Bench's questions by their id."""
    places = [Path(given)] if given else [answers.parent / QUESTIONS, answers.parent.parent / QUESTIONS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        where = given or " or ".join(map(str, places))
        raise UserError(
            f"{answers}: is MT-Bench's answers, and there is no {where}. Put its question file there, or give it to "
            "'aligner correct' with --questions."
        )
    rows = [row.value for row in read_rows(file) if isinstance(row, Row) and isinstance(row.value, dict)]
    return {row["question_id"]: row for row in rows if "question_id" in row and _are_texts(row.get("turns"))}


def _answered(row: Row, questions: dict[Any, dict[str, Any]]) -> Iterator[Row | DataError]:
    """A row for each turn of each choice."""
    fields: dict[str, Any] = row.value
    entry = questions.get(fields["question_id"])
    if entry is None:
        yield DataError(
            *row.origin,
            f"question_id {fields['question_id']} is not in the question file",
            "Give the one of these answers",
        )
        return
    for choice in fields["choices"]:
        turns = choice["turns"]
        if not _are_texts(turns) or len(turns) > len(entry["turns"]):
            yield DataError(*row.origin, "its turns are not those of its question", "Correct the file there")
            continue
        for place, answer in enumerate(turns):
            more = {"upstream": fields["model_id"]} if isinstance(fields.get("model_id"), str) else {}
            category = {"category": entry["category"]} if "category" in entry else {}
            numbers = {"turn": place + 1, "choice": choice.get("index", 0)}
            question = _dialogue(entry["turns"][: place + 1], turns[:place])
            yield Row(
                row.origin,
                {**_aside(fields, "choices"), **category, **more, **numbers, "question": question, "answer": answer},
            )


def _dialogue(questions: list[str], answers: list[str]) -> str:
    """The question of a turn: the dialogue before its answer."""
    texts = [text for pair in zip_longest(questions, answers, fillvalue="") for text in pair]
    roles = cycle(("user", "assistant"))
    return candidate_questions([{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)])[0]


def _aside(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}
