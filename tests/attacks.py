"""Hostile inputs by kind: what each table of `test_attacks.py` and `test_state_faults.py` tries is counted here.

`python tests/kinds.py REVISION` prints how many of a kind an earlier revision survived, and how many this one does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import kinds


def try_all(kind: str, members: Mapping[str, Any], survived: Callable[[Any], object]) -> None:
    """Every member of a kind: `survived` returns what is wrong (nothing where all is well) or raises. Fails with all of them."""
    wrong = {}
    for name, member in members.items():
        try:
            said = survived(member)
        except BaseException as error:  # an exit is none either
            said = f"{type(error).__name__}: {str(error)[:200]}"
        kinds.record(kind, "failed" if said else "passed")
        if said:
            wrong[name] = said
    assert not wrong or "KINDS_OUTCOMES" in os.environ, (
        f"{kind}: {wrong}"
    )  # where all kinds are counted, the others follow


@contextmanager
def raw_upstream() -> Iterator[tuple[str, list[bytes]]]:
    """An upstream that sends these very bytes, each reply once and the last one from then on; its address and the replies."""
    replies = [b""]
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked = connection.recv(1 << 20)
                while b"\r\n\r\n" not in asked:
                    asked += connection.recv(1 << 20)
                connection.sendall(replies[0].replace(b"{asked}", asked))

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", replies
    finally:
        listener.close()


def reply(body: bytes, status: str = "200 OK", *headers: bytes, kind: bytes = b"application/json") -> bytes:
    """The bytes of an HTTP answer that ends with its connection."""
    head = [f"HTTP/1.1 {status}".encode(), b"content-type: " + kind, b"connection: close", *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def request(
    app: Any, path: str, body: bytes | None = None, headers: list[tuple[bytes, bytes]] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """A request to an ASGI application as a server would hand it over; the status, headers and body of its answer."""
    given = headers if headers is not None else [(b"host", b"localhost")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET" if body is None else "POST",
             "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
             "headers": given, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080), "state": {}}  # fmt: skip
    sent: list[dict[str, Any]] = []
    incoming = [{"type": "http.request", "body": body or b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def call() -> None:
        try:
            await app(scope, receive, send)
        finally:  # an event loop each
            await app.exchange_for_tests.upstream.close()
            app.exchange_for_tests.upstream._session = None

    asyncio.run(call())
    content = b"".join(message.get("body", b"") for message in sent)
    # What a server checks when it writes them: a header is Latin-1 without control characters.
    named = {name.decode("ascii"): value.decode("latin-1") for name, value in sent[0]["headers"]}
    assert all(value.isprintable() for value in named.values()), named
    return sent[0]["status"], named, content
