"""Models behind OpenAI-compatible servers, through the official client: an upstream that answers, an Aligner that corrects.

The client itself waits and tries again where a server is busy, fails or cannot be reached, and as long as the server asks
(Retry-After). What is left after that is of two kinds: a request that the server refuses, which concerns one row; and a server
that is not there, refuses the key or does not know the model, which ends the work (`ServerGone`); run again, it goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import openai

from aligner.encoder import Encoder
from aligner.inference.corrector import Corrected, Outcome, Request, Settings, check_feedback
from aligner.prompts import PromptTemplate
from aligner.quality.edits import edits
from aligner.records import UserError

RETRIES = 12  # with the client's waits of 0.5, 1, 2, 4, 8, 8, ... seconds: more than a minute
NO_KEY = "none"  # the client insists on one
ROW_REFUSED = (400, 413, 422)  # the request itself; any other status speaks of the server


class ServerGone(UserError):
    """A server that cannot be used now, by any row."""


@dataclass(frozen=True)
class Server:
    """Where a model is served. `key`: the environment variable that holds the key, never the key itself.

    `concurrency`: requests under way at once. `timeout`: seconds that one may take.
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 600

    def client(self) -> openai.OpenAI:
        """The official client for it."""
        key = os.environ.get(self.key) or NO_KEY
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=RETRIES, timeout=self.timeout)

    def each(self, call: Callable[[openai.OpenAI, Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the place and result of `call(client, item)` as each is there; a refused row's is its UserError.

        Raises ServerGone after what was under way has ended and was yielded.
        """
        client, gone = self.client(), None
        with ThreadPoolExecutor(self.concurrency) as pool:
            running: dict[Future[Any], int] = {}
            left = iter(range(len(items)))
            try:
                while True:
                    while gone is None and len(running) < self.concurrency and (place := next(left, None)) is not None:
                        running[pool.submit(self._call, call, client, items[place])] = place
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        place, result = running.pop(future), future.result()
                        if isinstance(result, ServerGone):
                            gone = result
                        else:
                            yield place, result
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                client.close()
        if gone:
            raise gone

    def _call(self, call: Callable[[openai.OpenAI, Any], Any], client: openai.OpenAI, item: Any) -> Any:
        """The result, or what went wrong in one line."""
        try:
            return call(client, item)
        except openai.APIStatusError as error:
            said = f"status {error.status_code}: {' '.join(str(error.message).split())[:200]}"
            if error.status_code in ROW_REFUSED:
                return UserError(f"{self.url} refuses it ({said}).")
            hint = f" Put a key into the variable {self.key}." if error.status_code in (401, 403) else ""
            return ServerGone(f"{self.url} cannot be used ({said}).{hint}")
        except openai.APIConnectionError as error:
            why = " ".join(str(error.__cause__ or error).split())[:200]
            return ServerGone(f"{self.url} cannot be reached ({why}). Start it, and run this again to go on.")


@dataclass(frozen=True)
class Upstream:
    """A model that answers questions."""

    server: Server
    max_tokens: int | None = None
    temperature: float | None = None

    def stream(self, questions: Sequence[str]) -> Iterator[tuple[int, str | UserError]]:
        """Yield each question's place and answer as it is there."""
        yield from self.server.each(self._ask, questions)

    def _ask(self, client: openai.OpenAI, question: str) -> str | UserError:
        given: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        answer = client.chat.completions.create(
            model=self.server.model,
            messages=[{"role": "user", "content": question}],
            **{name: value for name, value in given.items() if value is not None},
        )
        text = answer.choices[0].message.content if answer.choices else None
        return text if text else UserError(f"{self.server.url} gave no text for it.")


@dataclass(frozen=True)
class ServedAligner:
    """An Aligner behind a server (`vllm serve FOLDER`): the prompt is made here, and completed there.

    With `encoder`, the Aligner's own tokenizer, a prompt is sent as text only where the server will see the ids of training
    in it; one that holds a special token's string is sent as ids.
    """

    server: Server
    template: PromptTemplate
    encoder: Encoder | None
    settings: Settings = Settings()

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        """Yield each request's place and outcome as it is known."""
        check_feedback(self.template, requests)
        yield from self.server.each(self._correct, requests)

    def _prompt(self, request: Request) -> str | list[int]:
        text = self.template.render(*request)
        if self.encoder is None:
            return text
        ids = self.encoder.prompts([text])[0]
        return text if self.encoder.tokenizer(text)["input_ids"] == ids else ids

    def _correct(self, client: openai.OpenAI, request: Request) -> Corrected | UserError:
        drawn = self.settings.sampling
        more: dict[str, Any] = {"temperature": 0}
        if drawn:
            more = {"temperature": drawn.temperature, "top_p": drawn.top_p, "seed": drawn.seed}
            more["extra_body"] = {"top_k": drawn.top_k}
        made = client.completions.create(
            model=self.server.model, prompt=self._prompt(request), max_tokens=self.settings.max_new_tokens, **more
        )
        choice = made.choices[0]
        text = choice.text or ""
        return Corrected(text, choice.finish_reason == "stop", edits(request.answer, text))
