"""What is no chat: `/v1/completions` and `/v1/responses`, corrected where they carry one text, and the rest, which passes through.

What is not corrected comes back byte for byte, and the header `x-aligner` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from aligner.chat_api.replies import error_in
from aligner.keys import without_keys
from aligner.serving.exchange import Exchange
from aligner.serving.protocol import Refused, object_in
from aligner.serving.untouched import passing
from aligner.serving.upstream import returned

PATHS = ("/completions", "/responses")


@dataclass(frozen=True)
class OneText:
    """A reply that carries one text, seen as a chat and its choice. `put` writes the choice back into the reply."""

    chat: dict[str, Any]
    choice: dict[str, Any]
    put: Callable[[dict[str, Any]], None]


async def answer(exchange: Exchange, path: str, body: dict[str, Any], caller: Mapping[str, str]) -> ASGIApp:
    """The upstream's reply to a request of PATHS, corrected where it carries one text."""
    if body.get("stream"):
        return await exchange.through(path, body, caller, reason="untouched: a stream of this route is not corrected")
    reply = await exchange.upstream.ask(path, caller, body)
    if reply.status != 200:
        return Response(reply.content, reply.status, reply.headers)
    try:
        value = object_in(reply.content)
    except ValueError:
        return _untouched(reply.content, reply.headers, "it is no JSON object")
    if error := error_in(value):
        return Response(reply.content, error.status, reply.headers)
    single = of_completion(body, value) if path == PATHS[0] else of_response(body, value)
    if isinstance(single, str):
        return _untouched(reply.content, reply.headers, single)
    if refused := await exchange.whole(single.chat, single.choice):
        raise refused
    single.put(single.choice)
    return JSONResponse(value, headers={n: v for n, v in reply.headers.items() if n != "content-type"})


def _untouched(content: bytes, headers: Mapping[str, str], why: str) -> Response:
    reason = without_keys(why).encode("unicode_escape").decode()[:200]  # it may hold a word of the upstream's
    return Response(content, 200, {**headers, "x-aligner": f"untouched: {reason}"})


def of_completion(body: Mapping[str, Any], value: Mapping[str, Any]) -> OneText | str:
    """The one text of a completion, or why it is not corrected."""
    choices, prompt = value.get("choices"), body.get("prompt")
    if not isinstance(prompt, str):
        return "the prompt is not one text"
    if body.get("echo") or body.get("suffix"):
        return "it holds the prompt, or fills a gap"
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return "it has not one choice"
    choice = choices[0]
    if not isinstance(choice.get("text"), str):
        return "it has no text"

    def put(corrected: dict[str, Any]) -> None:
        choice.update(
            {name: v for name, v in corrected.items() if name != "message"}, text=corrected["message"]["content"]
        )

    return OneText(_chat(body, [{"role": "user", "content": prompt}]), _as_choice(choice, choice["text"]), put)


def of_response(body: Mapping[str, Any], value: dict[str, Any]) -> OneText | str:
    """The one text of a response, or why it is not corrected."""
    if value.get("status", "completed") != "completed":
        return f"its status is {value.get('status')}"
    items = [item for item in _listed(value.get("output")) if isinstance(item, dict)]
    if other := [str(item.get("type")) for item in items if item.get("type") not in ("message", "reasoning")]:
        return f"it holds a {other[0]}"
    parts = [part for item in items if item.get("type") == "message" for part in _listed(item.get("content"))]
    if len(parts) != 1 or not isinstance(parts[0], dict) or not isinstance(parts[0].get("text"), str):
        return "it has not one text"
    if parts[0].get("annotations"):
        return "its annotations point into the text"
    part, form = parts[0], (body.get("text") or {}).get("format") if isinstance(body.get("text"), dict) else None

    def put(corrected: dict[str, Any]) -> None:
        part["text"], value["aligner"] = corrected["message"]["content"], corrected["aligner"]
        if isinstance(value.get("output_text"), str):
            value["output_text"] = part["text"]
        if part.get("logprobs") and corrected["aligner"]["action"] == "corrected":
            part["logprobs"] = []

    given = body.get("input")
    listed = given if isinstance(given, list) else [{"role": "user", "content": given}]
    messages = [message for message in listed if isinstance(message, dict) and isinstance(message.get("role"), str)]
    chat = _chat(body, messages or [{"role": "user", "content": ""}])
    return OneText({**chat, "response_format": form}, _as_choice({"finish_reason": "stop"}, part["text"]), put)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _chat(body: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {**body, "messages": messages}


def _as_choice(choice: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**choice, "message": {"role": "assistant", "content": text}}


async def forward(exchange: Exchange, request: Request, content: bytes, caller: Mapping[str, str]) -> ASGIApp:
    """Any other request of /v1/, to the upstream and back as it is."""
    path = request.scope["path"].removeprefix("/v1")
    if {".", ".."} & set(path.replace("\\", "/").split("/")):  # they lead out of the upstream's address
        raise Refused(400, "The path holds a '.' or '..'.")
    async with AsyncExitStack() as opening:
        query = request.scope["query_string"].decode("latin-1")
        raw: dict[str, Any] = {"method": request.method, "query": query, "data": content}
        opened = exchange.upstream.open(quote(path), caller, **raw, content_type=caller.get("content-type"))
        response = await opening.enter_async_context(opened)
        held = opening.pop_all()

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async with held:
            answer = StreamingResponse(passing(response), response.status, returned(response))
            await answer(scope, receive, send)

    return respond
