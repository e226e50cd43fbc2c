"""Corrections: an annotator criticises an answer by the principles, then corrects it; what it cannot be read as is said."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from aligner.baselines.converse import Conversation
from aligner.baselines.protocol import Outcome, Steps
from aligner.building.asking import LETTERS_A_TOKEN, Question, request_of
from aligner.building.config import BuildConfig, ModelConfig
from aligner.building.principles import SCHEMA, Principles, Reading, read_reply
from aligner.building.stage import Row, Sieve, weighted_choice
from aligner.records import UserError

CRITIQUE = 80  # tokens of a critique and the frame of a reply, about, for the estimate
LONGEST_FAULT = "x" * 200  # as long as what is wrong with a reply may be, for the same


def drawn_annotator(row: Row, config: BuildConfig) -> str:
    """The annotator of a pair, drawn by their shares."""
    weights = [(each.name, each.share) for each in config.corrections.annotators]
    return weighted_choice(weights, 1, config.seed, "annotator", row["id"])[0]


def correction_questions(rows: Sequence[Row], model: ModelConfig, principles: Principles, seed: int) -> list[Question]:
    """What an annotator is asked."""
    questions = []
    for row in rows:
        prompt = principles.ask(row["question"], row["answer"])
        begin = partial(_conversation, prompt, model, principles, seed)
        key = ("correction", str(seed if model.temperature else 0), prompt)
        expected = CRITIQUE + len(row["answer"]) // LETTERS_A_TOKEN
        again = _request(model, principles.ask_again(prompt, LONGEST_FAULT), seed)
        questions.append(Question(key, _request(model, prompt, seed), (again,), expected, begin))
    return questions


def _request(model: ModelConfig, prompt: str, seed: int) -> Any:
    return request_of(model, prompt, seed, {"response_format": SCHEMA})


def _conversation(prompt: str, model: ModelConfig, principles: Principles, seed: int, number: int) -> Conversation:
    return Conversation(number, annotate(prompt, model, principles, seed))


def annotate(prompt: str, model: ModelConfig, principles: Principles, seed: int = 0) -> Steps:
    """Critique and correction in one structured reply. One that cannot be read is asked for once more, with what was wrong."""
    [reply] = yield [_request(model, prompt, seed)]
    reading, again = read_reply(reply.text, reply.finished), False
    if isinstance(reading, str):
        [reply] = yield [_request(model, principles.ask_again(prompt, reading), seed)]
        reading, again = read_reply(reply.text, reply.finished), True
    if isinstance(reading, str):
        return Outcome(None, False, reading, shown={"reply": reply.text})
    return Outcome(reading.correction, True, shown={"reading": reading, "again": again})


def collect_corrections(rows: Sequence[Row], outcomes: dict[str, Any], config: BuildConfig) -> Sieve:
    """The rows with their corrections. outcomes: by row id, an outcome or an error; none of rows that people correct."""
    models, sieve, again = {each.name: each for each in config.corrections.annotators}, Sieve(len(rows)), 0
    for row in rows:
        name = drawn_annotator(row, config)
        model = models[name]
        about = {"annotator": name, "annotator_model": model.model or model.folder or name}
        if model.is_people:
            sieve.keep(row | about | {"correction": None, "critique": ""})
            continue
        outcome = outcomes[row["id"]]
        if isinstance(outcome, UserError):
            sieve.drop(row | about, "refused by the annotator's server", str(outcome))
            continue
        reading = outcome.shown.get("reading")
        if not isinstance(reading, Reading):
            sieve.drop(row | about | {"reply": outcome.shown["reply"]}, "unreadable reply", outcome.failure or "")
            continue
        again += outcome.shown["again"]
        correction = row["answer"] if reading.correction is None else reading.correction
        fields = {"critique": reading.critique, "harmful": reading.harmful, "correction": correction}
        sieve.keep(row | about | fields)
    sieve.notes = {"read at the second try": again}
    return sieve
