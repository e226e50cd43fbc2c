"""A chat's messages -> the question that the Aligner's prompt takes.

An Aligner learns one question and one answer. A chat of one user turn is just that. Of a longer one the question is the dialogue
before the answer, turn by turn as `hh-rlhf --multi_turn` trains it: "Human: ...", "Assistant: ...", "Human: ...". System and tool
messages are instructions to the upstream and are not shown; of a message with parts its text is, and no thought of any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from aligner.chat_api.thoughts import split_message

T = TypeVar("T")
SPEAKERS = {"user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True)
class CandidateQuestions:
    """The question with the whole dialogue, then with ever later beginnings: where the model has no room for all of it, the
    oldest turns are left out. Each text is built when it is read, for together they are long.

    `starts`: the user's turns.
    """

    turns: Sequence[tuple[str, str]]
    starts: Sequence[int]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: int) -> str:
        turns = self.turns[self.starts[place] :]
        return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{SPEAKERS[role]}: {text}" for role, text in turns)


def candidate_questions(messages: Sequence[Mapping[str, Any]]) -> CandidateQuestions:
    """The candidates for the question of a chat, the longest first.

    No answer goes back uncorrected for lack of a question: where the last turn is the assistant's, it is part of the dialogue, and
    without a user's turn the text of the other messages is the question, or nothing.
    """
    turns = [(message["role"], split_message(message).text) for message in messages if message["role"] in SPEAKERS]
    turns = [turn for turn in turns if turn[1].strip()]
    starts = [place for place, (role, _) in enumerate(turns) if role == "user"]
    if not starts:
        return CandidateQuestions([("user", "\n".join(split_message(message).text for message in messages))], [0])
    return CandidateQuestions(turns, starts)


def longest_with_room(questions: CandidateQuestions, make: Callable[[str], T], fits: Callable[[T], bool]) -> T:
    """What is made of the longest question with which it fits; of the shortest where it fits with none.

    As few are made as finding a place in a list takes, for each is tokenised.
    """
    made: dict[int, T] = {}

    def fits_at(place: int) -> bool:
        made[place] = make(questions[place])
        return fits(made[place])

    last = len(questions) - 1
    place = 0 if fits_at(0) else bisect_left(range(last), True, lo=min(1, last), key=fits_at)
    return made[place] if place in made else make(questions[place])


def question_and_answer(messages: Any) -> tuple[CandidateQuestions, str]:
    """The question and the answer of a chat that ends with the assistant's answer, as a file holds it.

    ValueError where it is no list of messages with roles, or ends otherwise, or nobody asks.
    """
    if not isinstance(messages, list) or not all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages
    ):
        raise ValueError("no list of messages with role and content")
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("its last message is not the assistant's")
    *before, last = messages
    if not any(message["role"] == "user" for message in before):
        raise ValueError("it has no message of the user's before the answer")
    return candidate_questions(before), split_message(last).text
