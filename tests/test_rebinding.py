"""A page of another site, in a real browser, gets nothing from `aligner serve`, whatever its name points to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from layered import corrector, exchange, serving

pytestmark = pytest.mark.slow
__all__ = ["corrector"]  # a fixture
ASK = """
const [address, kind, mode, done] = arguments;
const body = JSON.stringify({model: "m", messages: [{role: "user", content: "who is there?"}]});
fetch(address + "/v1/chat/completions", {method: "POST", headers: {"content-type": kind}, mode, body})
    .then(async reply => done([reply.status, await reply.text()]), error => done([0, String(error)]));
"""
LOOK = """
const [address, done] = arguments;
fetch(address + "/v1/models").then(async reply => done([reply.status, await reply.text()]), error => done([0, String(error)]));
"""


class Page(BaseHTTPRequestHandler):
    """A page of another site."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>elsewhere</title>")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def another_site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://www.elsewhere.test:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_name_that_was_made_to_point_here_gets_nothing(browser, corrector, told):
    with serving(exchange(corrector, told.url)) as address:
        rebound = f"http://rebound.elsewhere.test:{urlsplit(address).port}"
        browser.get(
            rebound
        )  # an origin of the other site, which is now the layer's address; this page may fetch from itself
        status, text = browser.execute_async_script(ASK, rebound, "application/json", "cors")
        assert status == 403 and "answers to localhost alone" in text
        assert browser.execute_async_script(LOOK, rebound)[0] == 403
        assert not told.asked
        browser.get(address)  # the layer's own page does
        assert browser.execute_async_script(ASK, address, "application/json", "cors")[0] == 200
        assert len(told.asked) == 1


def test_a_page_of_another_site_can_neither_ask_nor_read(browser, corrector, told, another_site):
    with serving(exchange(corrector, told.url)) as address:
        browser.get(another_site)
        assert browser.title == "elsewhere"
        for kind, mode in (("application/json", "cors"), ("text/plain", "no-cors"), ("text/plain", "cors")):
            status, text = browser.execute_async_script(ASK, address, kind, mode)
            assert status == 0 and "who is there" not in text.lower(), (kind, mode, status, text)
        assert browser.execute_async_script(LOOK, address)[0] == 0
        assert not told.asked
