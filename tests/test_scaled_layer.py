"""`aligner serve` before several real servers of the Aligner, and in several processes."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
import requests
from layered import until
from test_correct_file import lines
from test_real_layer import chat, layer
from test_real_servers import chatting, serving
from test_served_aligner import CORRECTION, Standing

from aligner.inference.corrector import Corrector, Settings
from aligner.training.distributed.launcher_variables import free_port

pytestmark = pytest.mark.slow
__all__ = ["chatting"]  # a fixture


def test_two_transformers_serve_are_the_aligner_and_a_third_the_upstream(chatting):
    """One of the two is killed and comes back: no request is lost."""
    corrector = Corrector.load(str(chatting), "correction", Settings(8, 16))
    upstream, *ports = (free_port() for _ in range(3))
    urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
    with ExitStack() as stack:
        for port in (upstream, ports[1]):
            stack.enter_context(serving(chatting, port))
        mine = stack.enter_context(ExitStack())
        mine.enter_context(serving(chatting, ports[0]))
        flags = ("--aligner_url", *urls, "--aligner_model", chatting, "--max_requests", 60)
        address, _ = stack.enter_context(layer(chatting, f"http://127.0.0.1:{upstream}/v1", *flags))
        choice = chat(address, chatting, "who is there?").choices[0]
        original = choice.model_extra["aligner"]["original"]
        assert choice.message.content == corrector.correct([("who is there?", original)])[0].text
        streamed = list(chat(address, chatting, "who is there?", stream=True, temperature=0))
        assert sum(bool(c.choices and c.choices[0].delta.content) for c in streamed) > 1

        def corrected(count: int) -> Counter[str]:
            with ThreadPoolExecutor(count) as pool:
                answers = list(pool.map(lambda n: chat(address, chatting, f"question {n}"), range(count)))
            return Counter(answer.choices[0].model_extra["aligner"]["action"] for answer in answers)

        def state() -> list[dict[str, int]]:
            return requests.get(f"{address}/health", timeout=10).json()["aligner_servers"]

        assert corrected(50) == {"corrected": 50}
        assert min(server["requests"] for server in state()) > 15, "both work"
        mine.close()
        assert corrected(10) == {"corrected": 10}
        assert [server["up"] for server in state()] == [False, True]
        mine.enter_context(serving(chatting, ports[0]))
        until(lambda: state()[0]["up"])
        before = state()[0]["requests"]
        assert corrected(10) == {"corrected": 10} and state()[0]["requests"] > before


def processes_of(parent: int) -> list[int]:
    """The serving processes of several."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_several_processes_share_a_port_and_a_shadow_file_and_lose_no_row(tiny_model, told, tmp_path):
    server, rows, access = Standing("stream"), tmp_path / "rows.jsonl", tmp_path / "access.jsonl"
    rows.write_text('{"question": "q", "answer": "a", "correction": "c"}\n{"question": "tor')
    flags = (
        "--aligner_url",
        server.url,
        "--workers",
        3,
        "--mode",
        "shadow",
        "--shadow_file",
        rows,
        "--access_log",
        access,
    )
    with layer(tiny_model, told.url, *flags) as (address, process):
        until(lambda: len(processes_of(process.pid)) == 3)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: chat(address, "m", f"question {n} {'and more ' * 200}"), range(200)))
        until(lambda: len(lines(rows)) == 201)
        written = lines(rows)[1:]
        assert {row["correction"] for row in written} == {CORRECTION}
        assert {row["question"].split()[1] for row in written} == {str(n) for n in range(200)}
        assert len(lines(access)) >= 200

        one = processes_of(process.pid)[0]
        os.kill(one, signal.SIGKILL)
        until(lambda: one not in (now := processes_of(process.pid)) and len(now) == 3)
        assert chat(address, "m", "is anybody there?").choices
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    time.sleep(0.2)
    with pytest.raises(openai.APIConnectionError):
        chat(address, "m", "is anybody left?")
