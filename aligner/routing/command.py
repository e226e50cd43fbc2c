"""`aligner route`: train the classifier of a routes.yaml, or show which Aligner it chooses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from aligner.console import setup_logging
from aligner.models import quiet_libraries
from aligner.readers.rows import read_rows
from aligner.records import DataError, UserError
from aligner.routing.config import NONE, Routes, read_routes
from aligner.routing.router import Choice, choice_line, open_router
from aligner.routing.train import card_lines, train
from aligner.terminal import print_lines


@dataclass(frozen=True)
class RouteConfig:
    """The settings of `aligner route`, a field for each flag. UserError unless one thing is asked for."""

    routes: str
    train: bool = False
    question: str | None = None
    answer: str | None = None
    input: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if sum((self.train, self.question is not None, self.input is not None)) != 1:
            raise UserError("give one of --train, --question TEXT and --input FILE.")
        if self.answer is not None and self.question is None:
            raise UserError("--answer is of --question: give both.")


def route(config: RouteConfig) -> int:
    """Do what the settings say; returns the exit status: 1 where rows have no question."""
    quiet_libraries()
    setup_logging()
    routes = read_routes(config.routes)
    if config.train:
        if not routes.rows:
            raise UserError(
                f"{routes.file}: nothing has rows, so there is no classifier to train. Rules hold as they are."
            )
        print_lines(*card_lines(train(routes, config.trust_remote_code), routes.classifier))
        return 0
    router = open_router(routes, config.trust_remote_code)
    if config.question is not None:
        if routes.with_answer and not config.answer:
            raise UserError(f"--answer is missing: the classifier of {routes.file} reads it too.")
        print_lines(choice_line(router.choose([config.question], [config.answer or ""])[0]))
        return 0
    questions, answers, faults = _questions(str(config.input), routes.with_answer)
    print_lines(*table(routes, router.choose(questions, answers)), *(f"left out: {fault}" for fault in faults[:5]))
    return 1 if faults else 0


def _questions(file: str, with_answer: bool) -> tuple[list[str], list[str], list[DataError]]:
    """The questions and answers of a file, and the rows that lack what is needed."""
    questions, answers, faults = [], [], []
    for row in read_rows(file):
        if isinstance(row, DataError):
            faults.append(row)
            continue
        fields = row.value if isinstance(row.value, dict) else {}
        question, answer = fields.get("question"), fields.get("answer")
        if isinstance(question, str) and (isinstance(answer, str) or not with_answer):
            questions.append(question)
            answers.append(answer if isinstance(answer, str) else "")
        else:
            lacks = "answer" if isinstance(question, str) else "question"
            faults.append(DataError(*row.origin, f"has no {lacks}", "Write one"))
    if not questions:
        raise next(iter(faults), None) or UserError(f"{file}: has no rows. Check the path.")
    return questions, answers, faults


def table(routes: Routes, choices: list[Choice]) -> list[str]:
    """How many questions each choice has, and by what."""
    counts = Counter((choice.aligner, choice.by) for choice in choices)
    width = max(map(len, [*routes.aligners, NONE]))
    return [
        f"{name:<{width}}  {counts[name, by]:>7,}  by {by}"
        for name in (*routes.aligners, NONE)
        for by in sorted(by for own, by in counts if own == name)
    ]
