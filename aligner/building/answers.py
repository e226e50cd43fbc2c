"""Answers: each question to several upstreams, one row an upstream and question, the answering model in the row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from aligner.baselines.converse import Conversation
from aligner.baselines.protocol import ChatRequest, Outcome, Steps
from aligner.building.asking import Question, request_of
from aligner.building.config import BuildConfig, ModelConfig
from aligner.building.stage import Row, Sieve, weighted_choice
from aligner.records import Origin, UserError
from aligner.texts import text_fault

EXPECTED = 300  # tokens of an answer, about, for the estimate


def drawn_upstreams(row: Row, config: BuildConfig) -> list[str]:
    """The upstreams that answer a question: all, or as many as `per_question` says, drawn by their shares."""
    weights = [(each.name, each.share) for each in config.answers.upstreams]
    number = config.answers.per_question
    return weighted_choice(weights, len(weights) if number is None else number, config.seed, "upstream", row["id"])


def answer_questions(rows: Sequence[Row], model: ModelConfig, seed: int) -> list[Question]:
    """What an upstream is asked."""
    questions = []
    for row in rows:
        request = request_of(model, row["question"], seed)
        key = ("answer", str(seed if model.temperature else 0), row["question"])
        questions.append(Question(key, request, (), EXPECTED, partial(_conversation, request)))
    return questions


def _conversation(request: ChatRequest, number: int) -> Conversation:
    return Conversation(number, _one_reply(request))


def _one_reply(request: ChatRequest) -> Steps:
    """One request, whose reply is the outcome."""
    [reply] = yield [request]
    return Outcome(reply.text, reply.finished)


def collect_answers(rows: Sequence[Row], answers: dict[tuple[str, str], Any], config: BuildConfig) -> Sieve:
    """The pairs of question and answer. answers: by question id and upstream, an outcome or an error."""
    models = {each.name: each for each in config.answers.upstreams}
    sieve = Sieve(notes={"questions": len(rows)})
    for row in rows:
        first_by_text: dict[str, str] = {}
        for name in drawn_upstreams(row, config):
            sieve.into += 1
            outcome = answers[row["id"], name]
            place = models[name].model or models[name].folder
            pair = {**row, "id": f"{row['id']}-{name}", "upstream": name, "upstream_model": place}
            text = (outcome.text or "") if isinstance(outcome, Outcome) else ""
            reason, detail = _reason_against(outcome, config, first_by_text)
            if reason:
                sieve.drop(pair | {"answer": text}, reason, detail)
            else:
                first_by_text[" ".join(text.split())] = name
                sieve.keep(pair | {"answer": text})
    return sieve


def _reason_against(
    outcome: Outcome | UserError, config: BuildConfig, first_by_text: dict[str, str]
) -> tuple[str, str]:
    """Why an answer is no row, and what of it says so; two empty texts where it is one."""
    if isinstance(outcome, UserError):
        return "refused by the server", str(outcome)
    text = outcome.text or ""
    if not text.strip():
        return "empty answer", ""
    if fault := text_fault(Origin("answer", 0), "answer", text):
        return "unusable answer", fault.problem
    if not outcome.finished and not config.answers.keep_unfinished:
        return "unfinished answer", ""
    if first := first_by_text.get(" ".join(text.split())):
        return "the same answer as another upstream's", first
    return "", ""
