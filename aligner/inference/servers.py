"""OpenAI-compatible servers, called through the official client by several threads.

The client itself waits and tries again where a server is busy, fails or cannot be reached, and as long as the server asks
(Retry-After, up to two minutes). What is left after that is of two kinds: a row that the server refuses or fails on while it
answers others; and a server that is not there, refuses the key or does not know the model, which ends the job
(`ServerGone`); the same job, run again, continues.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai

from aligner.chat_api.parameters import ModelParameters
from aligner.chat_api.replies import error_in
from aligner.chat_api.streams import EventReader, chunk_in, reply_in
from aligner.keys import read_key, without_keys
from aligner.records import UserError

log = logging.getLogger("aligner")
CONNECT = 15.0  # seconds until a server counts as not there
RETRIES = 12  # with the client's waits of 0.5, 1, 2, 4, 8, 8, ... seconds: more than a minute
SILENCE = 8.0  # seconds without an answer before the first warning
NO_KEY = "none"  # the client insists on one
EVENTS = "text/event-stream"
CONTINUED = {"continue_final_message", "add_generation_prompt"}  # without which an answer would begin anew
REMEDY = (
    "Name the model's folder or hub id (--upstream_folder): then its completions are asked for, with its chat template."
)
FORBIDDEN = 403  # a key that may not, or text that a filter does not let through
REFUSED = (400, 413, 422)  # the request itself; any other status speaks of the server
BROKEN = (
    openai.OpenAIError,
    AttributeError,
    IndexError,
    TypeError,
    ValueError,
)  # an answer that is not of the protocol
Client = openai.OpenAI
Call = Callable[[Client, Any], Any]


class ServerGone(UserError):
    """A server that cannot be used now, by any row."""


@dataclass(frozen=True)
class Server:
    """Where a model is served. `key`: the environment variable that holds the key, never the key itself.

    `concurrency`: requests under way at once. `timeout`: seconds that one may take. UserError where the address or the key
    cannot be one.
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 600
    parameters: ModelParameters = field(init=False, compare=False, repr=False)  # what the model takes, learned from it

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", ModelParameters(f"{self.model} at {_place_of(self.url)}"))
        try:
            parts = urlsplit(self.url)
            _ = parts.port  # it is read, and may be none, only here
        except ValueError as error:
            raise UserError(
                f"'{_place_of(self.url)}' is no address of a server ({error}). Write it as http://HOST:PORT/v1."
            ) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"'{parts.hostname or _place_of(self.url)}' is no address of a server. Write it as http://HOST:PORT/v1."
            )
        if not self.timeout > 0:
            raise UserError(f"--timeout is {self.timeout:g}: it must be above 0.")
        if any(sign in self.url for sign in "@?#"):
            raise UserError(
                f"the address of {parts.hostname} holds a secret. Put the key into the variable {self.key}."
            )

    def client(self) -> Client:
        """The official client for it."""
        key = read_key(self.key) or NO_KEY
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the variable {self.key} holds what cannot be a key.")
        timeout = openai.Timeout(self.timeout, connect=CONNECT)
        caller = openai.DefaultHttpxClient(base_url=self.url, timeout=timeout, event_hooks={"response": [true_status]})
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=RETRIES, timeout=timeout, http_client=caller)

    def complete(self, client: Client, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request (`/chat/completions`, `/completions`), sent as the model takes it.

        What it refuses is learned from its refusal. A reply that comes only as a stream is collected. Raises what the client
        raises.
        """
        sent = self.parameters.adapt({"model": self.model, **request})
        while True:
            try:
                return reply_in(client.post(path, cast_to=httpx.Response, body=sent).content)
            except openai.APIStatusError as error:
                if not self.parameters.learn(error.status_code, error.body or error.message, sent):
                    raise
                sent = self.parameters.adapt(sent)

    def chunks(self, client: Client, path: str, request: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The chunks of a reply as they come, to a request that is sent as the model takes it. Closed early, so is the connection.

        Raises what the client raises; ServerGone where the model refuses to go on with an answer.
        """
        sent = self.parameters.adapt({"model": self.model, **request, "stream": True})
        while True:
            if dropped := CONTINUED & request.keys() - sent.keys():
                raise ServerGone(f"{self.url} takes no '{min(dropped)}': it does not go on with an answer. {REMEDY}")
            try:
                options: openai.RequestOptions = {"headers": {"accept": EVENTS}}
                stream = client.post(
                    path, cast_to=object, body=sent, options=options, stream=True, stream_cls=openai.Stream[Any]
                )
                break
            except openai.APIStatusError as error:
                if not self.parameters.learn(error.status_code, error.body or error.message, sent):
                    raise
                sent = self.parameters.adapt(sent)
        reader = EventReader()
        try:
            for part in stream.response.iter_bytes():
                for data in reader.feed(part):
                    if chunk := chunk_in(data):
                        if fault := error_in(chunk):
                            raise UserError(f"{self.url} fails on it ({_line(fault.message)}).")
                        yield chunk
        except (openai.OpenAIError, UserError):
            raise
        except Exception as broken:  # of the library under the client, whose names change
            raise openai.APIConnectionError(request=stream.response.request) from broken
        finally:
            stream.response.close()

    def each(self, call: Call, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the place and result of `call(client, item)` as each is there; of a row that cannot be had, its UserError.

        Raises ServerGone after what was under way has ended and was yielded. The threads are not waited for when the caller
        stops: Ctrl-C ends at once.
        """
        client, done, gone = self.client(), Queue[tuple[int, Any]](), None
        places, lock = iter(range(len(items))), threading.Lock()
        stopped, answered = threading.Event(), threading.Event()

        def work() -> None:
            while not stopped.is_set():
                with lock:
                    place = next(places, None)
                if place is None:
                    break
                try:
                    result = self._call(call, client, items[place], answered.is_set())
                except Exception as error:  # a fault of this program: for the caller, who would wait for ever
                    result = error
                if not isinstance(result, Exception):
                    answered.set()
                done.put((place, result))
            done.put((-1, None))

        threads = min(self.concurrency, len(items))
        for _ in range(threads):
            threading.Thread(target=work, daemon=True).start()
        try:
            while threads:
                place, result = self._next(done)
                if place < 0:
                    threads -= 1
                elif isinstance(result, ServerGone):
                    gone = result
                    stopped.set()
                elif isinstance(result, Exception) and not isinstance(result, UserError):
                    raise result
                else:
                    yield place, result
        finally:
            stopped.set()
        if gone:
            raise gone

    def _next(self, done: Queue[tuple[int, Any]]) -> tuple[int, Any]:
        """The next result; a long silence is reported, and again when it has lasted twice as long."""
        patience, waited = SILENCE, 0.0
        while True:
            try:
                return done.get(timeout=patience)
            except Empty:
                waited += patience
                patience = waited
                log.warning(
                    "no answer of %s for %.0f seconds: it is busy, or not there; still waiting", self.url, waited
                )

    def _call(self, call: Call, client: Client, item: Any, answered: bool) -> Any:
        """The result, or the error in one line. `answered`: the server has answered other rows, so that the fault is this row's."""
        try:
            return call(client, item)
        except openai.APIStatusError as error:
            status = f"status {error.status_code}: {_line(error.message)}"
            if error.status_code in REFUSED or (error.status_code == FORBIDDEN and answered):
                return UserError(f"{self.url} refuses it ({status}).")
            if error.status_code >= 500 and self._answers(client):
                return UserError(f"{self.url} fails on it ({status}).")
            hint = f" Put a key into the variable {self.key}." if error.status_code in (401, 403) else ""
            return ServerGone(f"{self.url} cannot be used ({status}).{hint}")
        except openai.APIConnectionError as error:
            if isinstance(error, openai.APITimeoutError) and self._answers(client):
                return UserError(f"{self.url} does not answer it within {self.timeout:g} seconds.")
            why = _line(error.__cause__ or error)
            return ServerGone(f"{self.url} cannot be reached ({why}). Start it, and run this again to go on.")
        except BROKEN as error:
            if answered or self._answers(client):
                return UserError(f"{self.url} answers it with something that is no completion.")
            why = _line(error)[:80]
            return ServerGone(
                f"{self.url} does not answer as an OpenAI-compatible server does ({why}). Is this its address, up to /v1?"
            )

    def _answers(self, client: Client) -> bool:
        """Whether the server answers another request, so that the fault is the row's."""
        try:
            return isinstance(client.with_options(max_retries=1, timeout=10).models.list().data, list)
        except BROKEN:
            return False


def _place_of(url: str) -> str:
    """The address of a server for a message: without what could be a secret in it."""
    return url.partition("?")[0].partition("#")[0].rpartition("@")[2].rpartition("://")[2]


def true_status(response: httpx.Response) -> None:
    """Give an error in a body of status 200 the status that it should have had, so that the client waits, tries again and raises
    as for any other."""
    if response.status_code == 200 and response.request.headers.get("accept") != EVENTS:  # a stream is read as it comes
        try:
            error = error_in(reply_in(response.read()))
        except ValueError:
            return
        if error:
            response.status_code = error.status


def _line(error: object) -> str:
    return without_keys(" ".join(str(error).split()))[:200]
