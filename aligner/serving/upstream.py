"""The upstream model's server, called as the caller would call it: its answers and its errors come back as they are.

Only the upstream is called through aiohttp. httpx, under the official client of `inference/servers.py`, leaves some connections
open when requests are cancelled while they connect or stream, as every client that disconnects causes here (httpx 0.28).
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL

from aligner.keys import bytes_without_keys, remember, remember_named, without_keys
from aligner.serving.config import is_header
from aligner.serving.protocol import Refused, json_answer
from aligner.terminal import printable

PASSED = ("authorization", "openai-organization", "openai-project")  # the caller's headers that the upstream gets
RETURNED = ("retry-after", "retry-after-ms", "x-should-retry", "x-request-id", "request-id")
RETURNED_KINDS = ("x-ratelimit-", "openai-", "anthropic-ratelimit-")  # how further headers begin that the caller gets
ACTIVE = re.compile(
    r"html|[/+]xml|svg|script", re.IGNORECASE
)  # types of content in which a browser may run what is in it
MODELS = "/models"
STALE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)  # a kept connection that the other side has closed
CONNECT = 10.0  # seconds for a connection


@dataclass(frozen=True)
class Reply:
    """A whole answer of the upstream."""

    status: int
    headers: dict[str, str]
    content: bytes


class UpstreamClient:
    """An OpenAI-compatible server. `key`: sent where the caller's own is not; `timeout`: seconds for a whole answer, and between
    two pieces of a stream; `largest`: bytes of an answer; `passed`: further headers of the caller that it gets; `fixed`: headers
    that it always gets. A query of its address is sent with every request. Proxies are those of the environment.

    Raises Refused: 502 where it cannot be reached or its answer is too large, 504 where it takes too long.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        timeout: float,
        largest: int,
        passed: Sequence[str] = (),
        fixed: Mapping[str, str] | None = None,
    ) -> None:
        address, _, self._query = url.partition("?")
        self.url, self.timeout, self._largest = address.rstrip("/"), timeout, largest
        self._key = remember(key) if key else None
        self._passed, self._fixed = (*PASSED, *map(str.lower, passed)), dict(fixed or {})
        remember_named(self._fixed.items())
        remember_named((name, value) for name, _, value in (each.partition("=") for each in self._query.split("&")))
        self._session: aiohttp.ClientSession | None = None

    @property
    def place(self) -> str:
        """Its host and port, for a message."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    async def close(self) -> None:
        """Close its connections."""
        if self._session:
            await self._session.close()

    async def ask(self, path: str, caller: Mapping[str, str], body: Mapping[str, Any] | None = None) -> Reply:
        """A whole answer: POST of a body, else GET."""
        async with self.open(path, caller, body, aiohttp.ClientTimeout(self.timeout, sock_connect=CONNECT)) as response:
            content, headers = await self.read(response), returned(response)
            if response.status != 200 or path == MODELS:  # the others' are taken apart where they are corrected
                content = json_answer(response.status, content, response.content_type)
                headers["content-type"] = "application/json"
            return Reply(response.status, headers, content)

    @asynccontextmanager
    async def open(
        self,
        path: str,
        caller: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
        **raw: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer as it comes. `raw`: of a request that is no JSON object: its `method`, `query`, `data` and `content_type`."""
        if self._session is None:
            self._session = self._new_session()
        headers = {name: caller[name] for name in self._passed if name in caller} | self._fixed
        if raw.get("content_type"):
            headers["content-type"] = raw["content_type"]
        for name, value in headers.items():
            if not is_header(value):
                raise Refused(400, f"The header '{name}' holds a character that no header may have.")
        if self._key and "authorization" not in headers:
            headers["authorization"] = f"Bearer {self._key}"
        query = "&".join(each for each in (self._query, raw.get("query", "")) if each)
        method, address = (
            raw.get("method") or ("POST" if body else "GET"),
            self.url + path + (f"?{query}" if query else ""),
        )
        limit = timeout or aiohttp.ClientTimeout(None, sock_connect=CONNECT, sock_read=self.timeout)
        options: dict[str, Any] = {"headers": headers, "allow_redirects": False, "timeout": limit}
        if raw:
            options["data"] = raw.get("data") or None
        else:
            options["json"] = body
        try:
            async with await self._answered(method, address, options) as response:
                if 300 <= response.status < 400:
                    where = printable(response.headers.get("location", "nowhere"))[:200]
                    raise Refused(502, f"The upstream redirects to {where}.")
                if not (400 <= response.status < 600 or response.status in (range(200, 300) if raw else (200,))):
                    raise Refused(502, f"The upstream answers with status {response.status}, which is none of a chat.")
                yield response
        except TimeoutError:
            raise Refused(504, f"The upstream did not answer within {self.timeout:g} seconds.") from None
        except aiohttp.ClientError as error:
            raise Refused(502, f"The upstream cannot be reached: {connection_fault(error)}.") from None

    def _new_session(self) -> aiohttp.ClientSession:
        """As many connections as the layer holds, and no cookies: those of one caller are no other's. The environment's proxy is
        looked up once; aiohttp would do it for every request, and read ~/.netrc in a thread."""
        try:
            proxy, auth = get_env_proxy_for_url(URL(self.url))
        except LookupError:
            proxy, auth = None, None
        connector, cookies = aiohttp.TCPConnector(limit=0), aiohttp.DummyCookieJar()
        return aiohttp.ClientSession(cookie_jar=cookies, connector=connector, proxy=proxy, proxy_auth=auth)

    async def _answered(self, method: str, address: str, options: dict[str, Any]) -> aiohttp.ClientResponse:
        """The begin of an answer. A kept connection may have been closed meanwhile: the request is sent once more on a new one."""
        assert self._session
        try:
            return await self._session.request(method, address, **options)
        except aiohttp.ClientConnectorError:
            raise
        except STALE:
            return await self._session.request(method, address, **options)

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """All of an answer, within the limit."""
        content = bytearray()
        async for part in response.content.iter_any():
            content += part
            if len(content) > self._largest:
                raise Refused(502, f"The upstream's answer is larger than {self._largest:,} bytes.")
        return bytes_without_keys(bytes(content))


def connection_fault(error: Exception) -> str:
    """What is wrong with a connection, in words of the network's; nothing of an address, which may hold a key."""
    match error:
        case TimeoutError():
            return "it sends nothing any more"
        case aiohttp.ClientProxyConnectionError():
            return "the proxy of the environment does not answer"
        case aiohttp.ClientConnectorDNSError():
            return "its host has no address"
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch():
            return "the encrypted connection fails (certificate, or no TLS there)"
        case aiohttp.ClientPayloadError():
            return "its answer ends too early"
        case aiohttp.ClientResponseError():
            return "it does not answer in HTTP"
        case aiohttp.ServerDisconnectedError():
            return "it closes the connection without an answer"
        case OSError() if error.errno and error.strerror:
            return os.strerror(error.errno) if error.errno > 0 else "its host has no address"
    return "the connection breaks"


def returned(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers of an answer that the caller sees. What a browser would run is called a plain text."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    names = [name for name in headers if name in RETURNED or name.startswith(RETURNED_KINDS)]
    kind = headers.get("content-type", "")
    kind = "text/plain" if not is_header(kind) or ACTIVE.search(kind) else kind
    return {name: without_keys(headers[name]) for name in names if is_header(headers[name])} | {
        "content-type": without_keys(kind) or "application/octet-stream"
    }
