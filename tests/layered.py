"""The layer under a real server, for the tests of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from aligner.inference.corrector import Corrector, Settings
from aligner.inference.guard import Guard
from aligner.serving.app import Limits, application
from aligner.serving.exchange import Exchange, Policy
from aligner.serving.shadow import ShadowLog
from aligner.serving.upstream import UpstreamClient
from aligner.serving.worker import Worker

JSON = {"content-type": "application/json"}
QUESTION, ANSWER = "who is there?", "WHO IS THERE?"  # the upstream answers in upper case


@pytest.fixture(scope="module")
def corrector(tiny_model) -> Corrector:
    return Corrector.load(str(tiny_model), "correction", Settings(4, 12))


@contextmanager
def serving(exchange: Exchange, **limits: Any) -> Iterator[str]:
    """The layer under uvicorn, in a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(application(exchange, Limits(**limits)), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def exchange(corrector: Corrector, url: str, shadow: Path | None = None, seconds: float = 5, **policy: Any) -> Exchange:
    """The layer. The tiny model never ends by itself, so its corrections are taken as far as they go unless a `guard` is given."""
    log = ShadowLog(str(shadow)) if shadow else None
    policy.setdefault("guard", Guard(keep_unfinished=True))
    return Exchange("tiny", UpstreamClient(url, None, seconds, 10**6), Worker(corrector), Policy(**policy), log)


def client(address: str, key: str = "the caller's key") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def ask(address: str, *turns: str, **more: Any) -> Any:
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns or (QUESTION,))]
    return client(address).chat.completions.create(model="m", messages=messages, **more)


def correction(corrector: Corrector, question: str = QUESTION, answer: str = ANSWER) -> str:
    return corrector.correct([(question, answer)])[0].text


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
