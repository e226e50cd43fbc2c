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
    input: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if sum((self.train, self.question is not None, self.input is not None)) != 1:
            raise UserError("give one of --train, --question TEXT and --input FILE.")


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
        print_lines(choice_line(router.choose([config.question])[0]))
        return 0
    questions, faults = _questions(str(config.input))
    print_lines(*table(routes, router.choose(questions)), *(f"left out: {fault}" for fault in faults[:5]))
    return 1 if faults else 0


def _questions(file: str) -> tuple[list[str], list[DataError]]:
    questions, faults = [], []
    for row in read_rows(file):
        text = row.value.get("question") if not isinstance(row, DataError) and isinstance(row.value, dict) else None
        if isinstance(row, DataError):
            faults.append(row)
        elif isinstance(text, str):
            questions.append(text)
        else:
            faults.append(DataError(*row.origin, "has no question", "Write one"))
    if not questions:
        raise next(iter(faults), None) or UserError(f"{file}: has no rows. Check the path.")
    return questions, faults


def table(routes: Routes, choices: list[Choice]) -> list[str]:
    """How many questions each choice has, and by what."""
    counts = Counter((choice.aligner, choice.by) for choice in choices)
    width = max(map(len, [*routes.aligners, NONE]))
    return [
        f"{name:<{width}}  {counts[name, by]:>7,}  by {by}"
        for name in (*routes.aligners, NONE)
        for by in sorted(by for own, by in counts if own == name)
    ]
