"""Models behind servers: an upstream that answers, an Aligner that corrects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aligner.chat_api.replies import is_whole
from aligner.chat_api.thoughts import split_message
from aligner.encoder import Encoder
from aligner.inference.corrector import Corrected, CorrectionRequest, Outcome, Settings, check_feedback, room_for
from aligner.inference.servers import Client, Server
from aligner.prompts import PromptTemplate
from aligner.quality.edits import edits
from aligner.records import Origin, UserError
from aligner.texts import text_fault


class Answer(NamedTuple):
    """An answer of the upstream. `finished`: it ended by itself and was not cut off at a limit."""

    text: str
    finished: bool


@dataclass(frozen=True)
class UpstreamModel:
    """A model that answers questions."""

    server: Server
    max_tokens: int | None = None
    temperature: float | None = None

    def stream(self, questions: Sequence[str]) -> Iterator[tuple[int, Answer | UserError]]:
        """Yield each question's place and answer as it arrives."""
        yield from self.server.each(self._ask, questions)

    def _ask(self, client: Client, question: str) -> Answer | UserError:
        given: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        request = {
            "messages": [{"role": "user", "content": question}],
            **{name: value for name, value in given.items() if value is not None},
        }
        choice = self.server.complete(client, "/chat/completions", request)["choices"][0]
        text, thought = split_message(choice["message"])
        if not text.strip():
            more = ", only a thought: it may need more --upstream_max_tokens" if thought else ""
            return UserError(f"{self.server.url} gave no text for it{more}.")
        fault = text_fault(Origin(self.server.url, 0), "answer", text)
        if fault:
            return UserError(f"{self.server.url} gave what is no text: {fault.problem}.")
        return Answer(text, is_whole(choice.get("finish_reason")))


@dataclass(frozen=True)
class ServedAligner:
    """An Aligner behind a server (`vllm serve FOLDER`): the prompt is rendered here and completed there.

    A prompt is sent as text where the server will see the ids of training in it; one that holds a special token's string is sent
    as ids. `positions`: how many tokens the model can have in all.
    """

    server: Server
    template: PromptTemplate
    encoder: Encoder
    positions: int
    settings: Settings = Settings()

    def stream(self, requests: Sequence[CorrectionRequest]) -> Iterator[tuple[int, Outcome]]:
        """Yield each request's place and outcome as it arrives."""
        check_feedback(self.template, requests)
        # All in this thread: a tokenizer must not be used by several at once.
        prompts = [(place, *self._prompt(request)) for place, request in enumerate(requests)]
        for place, _, room in prompts:
            if isinstance(room, UserError):
                yield place, room
        prompts = [each for each in prompts if not isinstance(each[2], UserError)]
        for at, outcome in self.server.each(self._complete, prompts):
            place = prompts[at][0]
            if isinstance(outcome, UserError):
                yield place, outcome
            else:
                text, finished = outcome
                yield place, Corrected(text, finished, edits(requests[place].answer, text))

    def _prompt(self, request: CorrectionRequest) -> tuple[str | list[int], int | UserError]:
        """The prompt as it is sent, and the tokens that are left for the correction, or why there are none."""
        sent, length = sent_prompt(self.encoder, self.template, request)
        needed = length_of(self.encoder, request.answer) + 1 if self.settings.whole_only else 0
        return sent, room_for(self.settings, self.positions, length, needed)

    def _complete(self, client: Client, prompt: tuple[int, str | list[int], int]) -> tuple[str, bool]:
        place, sent, most = prompt
        drawn, more = self.settings.sampling, dict[str, Any](temperature=0)
        if drawn:
            more = {
                "temperature": drawn.temperature,
                "top_p": drawn.top_p,
                "top_k": drawn.top_k,
                "seed": drawn.seed + place,
            }
        request = {"prompt": sent, "max_tokens": most, **more}
        choice = self.server.complete(client, "/completions", request)["choices"][0]
        reason = choice.get("finish_reason")
        return choice.get("text") or "", reason is not None and is_whole(reason)


def sent_prompt(encoder: Encoder, template: PromptTemplate, request: CorrectionRequest) -> tuple[str | list[int], int]:
    """A prompt as a server takes it, and its length in tokens: as text where the server will see the ids of training in it, else
    (a special token's string stands in it) as ids."""
    [ids] = encoder.prompts([encoder.render(template, *request)])
    text = template.render(*request)
    return (text if encoder.reads_alike(text, ids) else ids), len(ids)


def length_of(encoder: Encoder, text: str) -> int:
    """How many tokens a text has."""
    return len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
