"""The upstream model's server, called as the caller would call it: its answers and its errors come back as they are.

Only the upstream is called through aiohttp. httpx, under the official client of `inference/servers.py`, leaves some connections
open when requests are cancelled while they connect or stream, as every client that disconnects causes here (httpx 0.28).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from aligner.keys import bytes_without_keys, remember, without_keys
from aligner.serving.protocol import Refused, json_answer
from aligner.terminal import printable

PASSED = ("authorization", "openai-organization", "openai-project")  # the caller's headers that the upstream gets
RETURNED = ("retry-after", "x-request-id")  # the upstream's headers that the caller gets
CONNECT = 10.0  # seconds for a connection


@dataclass(frozen=True)
class Reply:
    """A whole answer of the upstream."""

    status: int
    headers: dict[str, str]
    content: bytes


class UpstreamClient:
    """An OpenAI-compatible server. `key`: sent where the caller's own is not; `timeout`: seconds for a whole answer, and between
    two pieces of a stream; `largest`: bytes of an answer.

    Raises Refused: 502 where it cannot be reached or its answer is too large, 504 where it takes too long.
    """

    def __init__(self, url: str, key: str | None, timeout: float, largest: int) -> None:
        self.url, self.timeout, self._largest = url.rstrip("/"), timeout, largest
        self._key = remember(key) if key else None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close its connections."""
        if self._session:
            await self._session.close()

    async def ask(self, path: str, caller: Mapping[str, str], body: Mapping[str, Any] | None = None) -> Reply:
        """A whole answer: POST of a body, else GET."""
        async with self.open(path, caller, body, aiohttp.ClientTimeout(self.timeout, sock_connect=CONNECT)) as response:
            content = json_answer(response.status, await self.read(response), response.content_type)
            return Reply(response.status, returned(response), content)

    @asynccontextmanager
    async def open(
        self,
        path: str,
        caller: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer as it comes."""
        if (
            self._session is None
        ):  # no cookies: those of one caller are no other's; as many connections as the layer holds
            connector, cookies = aiohttp.TCPConnector(limit=0), aiohttp.DummyCookieJar()
            self._session = aiohttp.ClientSession(cookie_jar=cookies, connector=connector)
        headers = {name: caller[name] for name in PASSED if name in caller}
        for name, value in headers.items():
            if not is_header(value):
                raise Refused(400, f"The header '{name}' holds a character that no header may have.")
        if self._key and "authorization" not in headers:
            headers["authorization"] = f"Bearer {self._key}"
        method, address = "POST" if body else "GET", self.url + path
        limit = timeout or aiohttp.ClientTimeout(None, sock_connect=CONNECT, sock_read=self.timeout)
        options: dict[str, Any] = {"json": body, "headers": headers, "allow_redirects": False, "timeout": limit}
        try:
            async with self._session.request(method, address, **options) as response:
                if 300 <= response.status < 400:
                    where = printable(response.headers.get("location", "nowhere"))[:200]
                    raise Refused(502, f"The upstream redirects to {where}.")
                if not (response.status == 200 or 400 <= response.status < 600):
                    raise Refused(502, f"The upstream answers with status {response.status}, which is none of a chat.")
                yield response
        except TimeoutError:
            raise Refused(504, f"The upstream did not answer within {self.timeout:g} seconds.") from None
        except aiohttp.ClientError as error:
            raise Refused(502, f"The upstream cannot be reached ({type(error).__name__}).") from None

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """All of an answer, within the limit."""
        content = bytearray()
        async for part in response.content.iter_any():
            content += part
            if len(content) > self._largest:
                raise Refused(502, f"The upstream's answer is larger than {self._largest:,} bytes.")
        return bytes_without_keys(bytes(content))


def returned(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers of an answer that the caller sees: what it holds is JSON, whatever the upstream calls it."""
    found = {name: response.headers.get(name, "") for name in RETURNED}
    return {
        "content-type": "application/json",
        **{name: without_keys(value) for name, value in found.items() if value and is_header(value)},
    }


def is_header(value: str) -> bool:
    """Whether a text can be the value of a header everywhere: printable ASCII."""
    return value.isascii() and value.isprintable()
