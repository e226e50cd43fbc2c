"""What `aligner serve` asks of whatever corrects its answers: a model in this process, or one behind servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aligner.chat_api.dialogue import CandidateQuestions
from aligner.inference.corrector import Corrected
from aligner.prompts import PromptTemplate
from aligner.records import UserError


class Failed(Exception):
    """The Aligner has no correction for an answer; the text says why."""


class TooLong(Failed):
    """The question and the answer have no room in the model."""


class Unfinished(Failed):
    """There is a text, or would be, that is no correction: it has no room, no end, or the prompt's markers in it."""


@dataclass(frozen=True)
class Done:
    """The result for an answer. `confidence`: its mean log-probability, where there is a gate; `left_alone`: it passes unchanged,
    for the reason in `why`. `waited` and `took`: seconds until its first forward pass, and from there. Where one of several
    corrected it, `about` is what the answer says of that one, and `template` its prompt."""

    corrected: Corrected
    left_alone: bool
    confidence: float | None
    tokens: int
    waited: float
    took: float
    about: Mapping[str, Any] = field(default_factory=dict)
    template: PromptTemplate | None = None
    why: str = "the gate: the Aligner would have written it so"


def too_long(question: str, answer: str, most: int) -> UserError | None:
    """Why so many characters are not even tokenised, which others would wait for."""
    characters = len(question) + len(answer)
    if characters <= most:
        return None
    return UserError(f"it has {characters:,} characters, and at most {most:,} are read: shorten it.")


@dataclass(frozen=True)
class AnswerRequest:
    """An answer to be corrected. `questions`: the longest first, of which the first with room is taken. `threshold`: an answer at
    least as probable is left alone. `prefix`: what was said before, where the answer is the next sentence of one; then an empty
    correction is its end."""

    questions: CandidateQuestions
    answer: str
    feedback: str = ""
    threshold: float | None = None
    prefix: str = ""


class Ticket(Protocol):
    """An answer that waits for its correction; one of the two is called, once."""

    def pieces(self) -> AsyncGenerator[str | Done, None]:
        """The text as it is decoded, piece by piece, then the result. Raises Failed where there is no correction."""

    async def done(self) -> Done:
        """The result alone. Raises Failed where there is no correction."""


class AnswerCorrector(Protocol):
    """An Aligner with a queue. `longest`: characters of a question with its answer; more are refused."""

    longest: int

    @property
    def template(self) -> PromptTemplate:
        """The prompt that it was trained with."""

    @property
    def objectives(self) -> Mapping[str, str]:
        """Those that it can be asked for by name, with their sentences."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What every corrected answer says of it beside its name and prompt: how it is steered, where it is."""

    def start(self) -> None:
        """Begin, in the event loop's thread."""

    def is_alive(self) -> bool:
        """Whether it takes requests."""

    def waiting(self) -> int:
        """How many answers wait or are being corrected."""

    def describe(self) -> dict[str, Any]:
        """The part of /health about it alone."""

    def submit(self, request: AnswerRequest) -> Ticket:
        """Queue an answer for correction, from the event loop."""

    async def stop(self) -> None:
        """Stop: waiting requests fail."""
