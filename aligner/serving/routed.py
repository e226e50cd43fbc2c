"""Several Aligners behind one layer: for each answer the route chooses which of them corrects, or none."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from aligner.inference.corrector import Corrected
from aligner.prompts import PromptTemplate
from aligner.routing.config import NONE
from aligner.routing.router import Choice, Router
from aligner.serving.corrections import AnswerCorrector, AnswerRequest, Done, Failed, Ticket


@dataclass(frozen=True)
class RoutedTicket:
    """An answer that waits for its route, then for its correction."""

    routed: RoutedCorrector
    request: AnswerRequest
    came: float = field(default_factory=time.monotonic)

    async def pieces(self) -> AsyncGenerator[str | Done, None]:
        """The text as it is decoded, piece by piece, then the result. Raises Failed where there is no correction."""
        choice = await self.routed.choose(self.request.questions[0], self.request.answer)
        if choice.leaves_alone:
            yield self.request.answer
            yield self._left_alone(choice)
            return
        async with aclosing(self._submitted(choice).pieces()) as pieces:
            async for piece in pieces:
                yield self.routed.signed(piece, choice) if isinstance(piece, Done) else piece

    async def done(self) -> Done:
        """The result alone. Raises Failed where there is no correction."""
        choice = await self.routed.choose(self.request.questions[0], self.request.answer)
        if choice.leaves_alone:
            return self._left_alone(choice)
        return self.routed.signed(await self._submitted(choice).done(), choice)

    def _submitted(self, choice: Choice) -> Ticket:
        return self.routed.members[choice.aligner].submit(self.request)

    def _left_alone(self, choice: Choice) -> Done:
        about = {"model": None, "prompt": None, "route": choice.about()}
        corrected, waited = Corrected.unchanged(self.request.answer), time.monotonic() - self.came
        return Done(corrected, True, None, 0, waited, 0.0, about, why="the route is to no Aligner")


class RoutedCorrector:
    """The Aligners of a routes.yaml by their names, each with its own queue, and the router before them."""

    def __init__(self, router: Router, members: Mapping[str, AnswerCorrector]) -> None:
        self.router, self.members = router, members
        self.longest = max(member.longest for member in members.values())
        self._chosen = Counter[str]()
        self._one_at_a_time = asyncio.Lock()  # the tokenizer of the features

    @property
    def template(self) -> PromptTemplate:
        """The prompt of an Aligner that can be asked for something, where there is one; else of the first."""
        templates = [member.template for member in self.members.values()]
        return next((template for template in templates if template.takes_feedback), templates[0])

    @property
    def objectives(self) -> Mapping[str, str]:
        """Those that any can be asked for by name; the sentence is the first one's."""
        known: dict[str, str] = {}
        for member in self.members.values():
            known = {**member.objectives, **known}
        return known

    @property
    def about(self) -> Mapping[str, Any]:
        """Nothing of all: each answer says which of them corrected it."""
        return {}

    def start(self) -> None:
        """Start all."""
        for member in self.members.values():
            member.start()

    def is_alive(self) -> bool:
        """Whether all take requests."""
        return all(member.is_alive() for member in self.members.values())

    def waiting(self) -> int:
        """How many answers wait or are being corrected by any."""
        return sum(member.waiting() for member in self.members.values())

    def describe(self) -> dict[str, Any]:
        """By name: how often each was chosen, how many wait there, and what it says of itself."""
        state: dict[str, Any] = {
            name: {"chosen": self._chosen[name], "waiting": member.waiting(), **member.describe()}
            for name, member in self.members.items()
        }
        return {"routes": {**state, NONE: {"chosen": self._chosen[NONE]}}}

    def submit(self, request: AnswerRequest) -> RoutedTicket:
        """An answer to route and correct."""
        return RoutedTicket(self, request)

    async def choose(self, question: str, answer: str) -> Choice:
        """The route of a question, found in a thread. Raises Failed where it cannot be."""
        async with self._one_at_a_time:
            try:
                [choice] = await asyncio.to_thread(self.router.choose, [question], [answer])
            except RuntimeError as error:
                raise Failed(f"no route was found ({' '.join(str(error).split())[:120]}).") from None
        self._chosen[choice.aligner] += 1
        return choice

    def signed(self, done: Done, choice: Choice) -> Done:
        """A result that says who corrected and why."""
        member = self.members[choice.aligner]
        about = {"model": choice.aligner, "prompt": member.template.name, "route": choice.about(), **member.about}
        return replace(done, about=about, template=member.template)

    async def stop(self) -> None:
        """Stop all."""
        await asyncio.gather(*(member.stop() for member in self.members.values()))
