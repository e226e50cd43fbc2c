"""The HTTP application: a chat request goes to the upstream, its answer through the Aligner, and back as the upstream would answer.

It refuses a wrong key, a body that is too large or no request, and more requests than it may hold at once (429).
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligner import __version__
from aligner.quality.edits import diff
from aligner.serving import LOOPBACK, by_sentence, guardrail
from aligner.serving.exchange import Exchange
from aligner.serving.hosts import hostname
from aligner.serving.metrics import GONE, AccessLog, observed
from aligner.serving.other_routes import PATHS, answer, forward
from aligner.serving.protocol import SERVER_FAILED, Refused, parse_object, parse_request
from aligner.serving.requested import listed, requested
from aligner.terminal import printable

CHAT = "/v1/chat/completions"
TEXT_ROUTES = tuple(f"/v1{path}" for path in PATHS)  # beside a chat: what may hold a text to correct
PATIENCE = 60.0  # seconds that a request may take to arrive
PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
LONGEST_DIFF = 20_000  # characters of a text that the page may ask to compare


@dataclass(frozen=True)
class Limits:
    """The limits of the server. `key`: what callers must send, or None. `largest`: bytes of a request; `most`: requests at once.
    `pass_through`: whether what is not known of /v1/ goes to the upstream. `guardrail`: whether a gateway's calls are taken."""

    key: str | None = None
    largest: int = 1_000_000
    most: int = 64
    pass_through: bool = False
    guardrail: bool = False


def application(exchange: Exchange, limits: Limits, access: AccessLog | None = None) -> Starlette:
    """The ASGI application. It starts the worker, and closes what is open when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        exchange.worker.start()
        yield
        await exchange.close()
        if access:
            access.close()

    bound = Bounded(limits.most)
    layer = Layer(exchange, limits, bound, guardrail.AskedBefore())
    if exchange.metrics:
        exchange.metrics.gauge("aligner_requests_under_way", "chats being answered", lambda: bound.under_way)
        exchange.metrics.gauge("aligner_queue", "answers that wait or are being corrected", exchange.worker.waiting)
    routes = [
        Route("/", layer.page),
        Route("/health", layer.health),
        Route("/metrics", layer.metrics),
        Route("/diff", layer.compare, methods=["POST"]),
        Route("/v1/models", layer.models),
        Route(CHAT, layer.chat, methods=["POST"]),
        *(Route(path, layer.text, methods=["POST"]) for path in TEXT_ROUTES),
    ]
    if limits.guardrail:
        routes.append(Route(guardrail.PATH, layer.guard, methods=["POST"]))
    if limits.pass_through:
        routes.append(Route("/v1/{rest:path}", layer.rest, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]))
    handlers: dict[Any, Any] = {
        Refused: _refused,
        ClientDisconnect: _gone,
        404: _unknown,
        405: _unknown,
        Exception: _broken,
    }
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers=handlers,
        middleware=[
            Middleware(observed, {route.path for route in routes}, exchange.metrics, access),
            Middleware(hardened),
            Middleware(bound.around),
        ],
    )


@dataclass(frozen=True)
class Layer:
    """The handlers of the routes."""

    exchange: Exchange
    limits: Limits
    bound: Bounded
    asked: guardrail.AskedBefore

    async def chat(self, request: Request) -> ASGIApp:
        """A chat, whole or as a stream."""
        caller = self._admitted(request)
        chat = parse_request(await body_of(request, self.limits.largest))
        return await unless_gone(request, self._chat(chat, caller))

    async def _chat(self, chat: dict[str, Any], caller: dict[str, str]) -> ASGIApp:
        exchange, chat = await requested(self.exchange, chat, caller)
        if by_sentence.applies(exchange, chat):
            return await by_sentence.respond(exchange, chat, caller)
        return await (exchange.stream if chat.get("stream") else exchange.answer)(chat, caller)

    async def text(self, request: Request) -> ASGIApp:
        """A completion or a response."""
        caller = self._admitted(request)
        body = parse_object(await body_of(request, self.limits.largest))
        return await unless_gone(request, self._text(request.scope["path"].removeprefix("/v1"), body, caller))

    async def _text(self, path: str, body: dict[str, Any], caller: dict[str, str]) -> ASGIApp:
        exchange, body = await requested(self.exchange, body, caller)
        return await answer(exchange, path, body, caller)

    async def guard(self, request: Request) -> ASGIApp:
        """A gateway's call, with a question or with its answer. Its key comes in the header `x-api-key`, or as any other."""
        self._admitted(request)
        content = await body_of(request, self.limits.largest)
        return JSONResponse(await guardrail.guard(self.exchange, self.asked, content))

    async def rest(self, request: Request) -> ASGIApp:
        """Anything else of the upstream's. With a key of this layer's own a body may be of any type, files for instance."""
        caller = self._admitted(request, any_type=bool(self.limits.key))
        content = await body_of(request, self.limits.largest)
        return await unless_gone(request, forward(self.exchange, request, content, caller))

    async def models(self, request: Request) -> Response:
        """The upstream's models, for the caller talks to one of them, and what corrections can be asked for."""
        reply = await self.exchange.upstream.ask("/models", self._admitted(request))
        content = listed(self.exchange, reply.content) if reply.status == 200 else reply.content
        return Response(content, reply.status, reply.headers)

    async def health(self, request: Request) -> JSONResponse:
        """Whether the server works, and counts. It needs no key and shows no text."""
        alive, waiting = self.exchange.worker.is_alive(), self.exchange.worker.waiting()
        state = {"status": "ok" if alive else "stopping", "under_way": self.bound.under_way, "waiting": waiting}
        return JSONResponse({**state, **self.exchange.describe(), "version": __version__}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Counts for Prometheus; like `health` it needs no key and shows no text."""
        if self.exchange.metrics is None:
            raise Refused(404, "There are metrics where the server was started with --metrics.")
        content, kind = self.exchange.metrics.page()
        return Response(content, headers={"content-type": kind})

    async def compare(self, request: Request) -> JSONResponse:
        """The diff of two texts, for the page."""
        self._admitted(request)
        values = parse_object(await body_of(request, self.limits.largest))
        texts = [values.get(name) for name in ("before", "after")]
        if not all(isinstance(text, str) and len(text) <= LONGEST_DIFF for text in texts):
            raise Refused(400, f"'before' and 'after' must be texts of at most {LONGEST_DIFF:,} characters.")
        return JSONResponse(await asyncio.to_thread(diff, *texts))  # type: ignore[arg-type]

    async def page(self, request: Request) -> HTMLResponse:
        """The page. Nothing but its own script and style can run in it."""
        nonce = secrets.token_urlsafe(16)
        allowed = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
        policy = f"default-src 'none'; {allowed}; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
        headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        }
        return HTMLResponse(PAGE.replace("NONCE", nonce), headers=headers)

    def _admitted(self, request: Request, any_type: bool = False) -> dict[str, str]:
        """The caller's headers to pass on; a key that is this layer's own stays here. Refused (401) without it.

        Without a key, a page of another site that the user looks at must not get through: it cannot send JSON unasked (415), nor
        let a name of its own point here (403).
        """
        headers = dict(request.headers)
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if request.method not in ("GET", "DELETE") and not any_type and kind != "application/json":
            raise Refused(415, "The content-type must be application/json.")
        if not self.limits.key and hostname(request.headers.getlist("host")) not in LOOPBACK:
            raise Refused(403, "Without a key (--api_key) this server answers to localhost alone.")
        if self.limits.key:
            scheme, _, given = headers.pop("authorization", "").partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else headers.pop("x-api-key", "")
            if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self.limits.key.encode()):
                raise Refused(401, "The API key is missing or wrong.", "invalid_api_key")
        return headers


class Bounded:
    """At most so many chats at once, from their first byte to the last of their answer; more are refused (429)."""

    def __init__(self, most: int) -> None:
        self.most, self.under_way = most, 0

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application with this bound."""

        async def within(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] not in (CHAT, *TEXT_ROUTES, guardrail.PATH):
                await app(scope, receive, send)
            elif self.under_way >= self.most:
                busy = Refused(
                    429, f"{self.most} requests are under way. Try again soon.", headers={"retry-after": "1"}
                )
                await busy.response()(scope, receive, send)
            else:
                self.under_way += 1
                try:
                    await app(scope, receive, send)
                finally:
                    self.under_way -= 1

        return within


def hardened(app: ASGIApp) -> ASGIApp:
    """The application, none of whose answers a browser takes for a page, but for the page, which has a policy of its own."""

    async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        async def harden(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("x-content-type-options", "nosniff")
                headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
                headers.setdefault("cross-origin-resource-policy", "same-origin")
            await send(message)

        await app(scope, receive, harden)

    return with_headers


async def body_of(request: Request, largest: int) -> bytes:
    """A request's body. Refused (413) as soon as it is too large."""
    refusal = Refused(413, f"The request is larger than {largest:,} bytes.", headers={"connection": "close"})
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > largest:
        raise refusal
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                body += part
                if len(body) > largest:
                    raise refusal
    except TimeoutError:
        raise Refused(408, f"The request did not arrive within {PATIENCE:g} seconds.") from None
    return bytes(body)


async def unless_gone(request: Request, work: Awaitable[ASGIApp]) -> ASGIApp:
    """The result of the work, which is cancelled when the client disconnects."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Refused) -> Response:
    return error.response()


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=GONE)


async def _unknown(request: Request, error: Exception) -> Response:
    known = f"{', '.join((CHAT, *TEXT_ROUTES))}, /v1/models, /health and / (the rest of /v1/ with --pass_through)"
    route = printable(f"{request.method} {request.scope['path'][:200]}")
    return Refused(getattr(error, "status_code", 404), f"{route}: there are {known}.").response()


async def _broken(request: Request, error: Exception) -> Response:
    return Refused(500, SERVER_FAILED).response()
