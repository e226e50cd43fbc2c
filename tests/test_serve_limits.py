"""`aligner serve`: what one client can cost the others, and what is counted of them."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest
import requests
import uvicorn
from conftest import ROOT
from layered import ANSWER, QUESTION, ask, corrector, exchange, serving, until
from test_correct_file import lines
from test_serve_today import upstream
from uvicorn.protocols.http.h11_impl import H11Protocol

from aligner.inference.text_stream import TextStream
from aligner.records import UserError
from aligner.serving.app import Limits, application
from aligner.serving.connections import BACKLOG, TimedConnections, affordable
from aligner.serving.corrections import AnswerRequest
from aligner.serving.metrics import AccessLog
from aligner.serving.worker import Ticket, Worker

__all__ = ["corrector", "upstream"]  # fixtures


def test_headers_that_do_not_come_end_their_connection(corrector, told):
    made = application(exchange(corrector, told.url), Limits())
    server = uvicorn.Server(
        uvicorn.Config(made, http=TimedConnections(H11Protocol, 30, seconds=0.3), port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    place = server.servers[0].sockets[0].getsockname()
    half = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    begun = [socket.create_connection(place) for _ in range(20)]
    for connection in begun:
        connection.sendall(half)
    used = socket.create_connection(place)
    used.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert used.recv(1 << 16).startswith(b"HTTP/1.1 200")
    used.sendall(half)  # a second request on it
    until(lambda: len(server.server_state.connections) == 0)
    many = [socket.create_connection(place) for _ in range(40)]
    until(lambda: len(server.server_state.connections) <= 30)
    slow = threading.Thread(target=lambda: told_slowly(told, place))
    slow.start()
    slow.join()
    for connection in (*begun, used, *many):
        connection.close()
    server.should_exit = True
    thread.join()


UNDER = (  # the limit of open files, the connections that --max_requests wishes for, and those there are
    (64, 256, 8),
    (256, 256, 56),
    (1024, 256, 248),
    (4096, 256, 256),
    (4096, 8, 8),
)


@pytest.mark.parametrize(("files", "wished", "most"), UNDER)
def test_connections_keep_within_the_limit_of_open_files(files, wished, most, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    connections, backlog = affordable(wished)
    assert connections == most and 1 <= backlog <= BACKLOG


@pytest.mark.parametrize("files", [32, 37])  # 32 are the process's own, 4 one that waits; a connection takes 2
def test_too_few_open_files_for_any_connection_are_said(files, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    with pytest.raises(UserError, match=rf"only {files} files may be open .*ulimit -n 4096"):
        affordable(8)


def test_the_soft_limit_of_open_files_is_raised_as_far_as_it_is_needed(monkeypatch):
    raised = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 1 << 20))
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: raised.append(limits))
    assert affordable(256) == (256, BACKLOG)
    assert [soft for soft, _ in raised] == [32 + 2 * 256 + 4 * BACKLOG]


def told_slowly(told, place) -> None:
    """An answer that takes longer than headers may is waited for."""
    told.delay = 1
    time.sleep(0.7)  # the many are closed by then
    assert ask(f"http://{place[0]}:{place[1]}", "slow").choices


def test_an_answer_of_too_many_characters_is_refused_before_it_is_tokenised(corrector, told):
    told.rule = lambda text: "x" * 900_000
    began = time.process_time()
    with serving(exchange(corrector, told.url)) as address:
        with pytest.raises(openai.BadRequestError, match="at most 100,000 are read"):
            ask(address)
        told.rule = str.upper
        assert ask(address).choices[0].model_extra["aligner"]["action"] == "corrected"
    with serving(exchange(corrector, told.url, on_failure="open")) as address:
        told.rule = lambda text: "x" * 900_000
        assert ask(address).choices[0].model_extra["aligner"]["action"] == "failed_open"
    assert time.process_time() - began < 10


def test_a_shadow_keeps_no_more_than_its_share(corrector, told, tmp_path):
    told.rule = lambda text: "x" * 900_000
    made = exchange(corrector, told.url, tmp_path / "shadow.jsonl", mode="shadow")
    with serving(made) as address:
        assert len(ask(address).choices[0].message.content) == 900_000
    assert made.counts["dropped"] == 1 and made.behind._held == 0 and lines(tmp_path / "shadow.jsonl") == []


def test_a_shadow_of_a_stream_keeps_no_more_than_its_share(corrector, upstream, tmp_path):
    file = tmp_path / "shadow.jsonl"
    made = exchange(corrector, upstream.url, file, mode="shadow", backlog_characters=300)
    delta, end = {"index": 0, "delta": {"content": "x " * 50}}, {"index": 0, "delta": {}, "finish_reason": "stop"}
    with serving(made) as address:
        for pieces, dropped in ((2000, 1), (4, 2), (1, 2)):  # longer than is read, than may wait, neither
            events = [
                b"data: " + json.dumps({"choices": [each]}).encode() + b"\n\n" for each in [delta] * pieces + [end]
            ]
            upstream.rule = lambda *_, sent=events: (200, {"content-type": "text/event-stream"}, sent)
            body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
            assert requests.post(f"{address}/v1/chat/completions", json=body).content == b"".join(events)
            assert made.counts["dropped"] == dropped
        until(lambda: made.counts["shadow"] == 1)
        assert made.behind._held == 0
    assert len(lines(file)) == 1


def test_whom_nobody_waits_for_costs_no_further_pass(corrector):
    """Whether it leaves before its first pass, or between two."""
    worker = Worker(corrector)
    corrector.decoder.cost = corrector.decoder.measure()

    async def two() -> None:
        loop = asyncio.get_running_loop()
        tickets = [
            Ticket(AnswerRequest([QUESTION], ANSWER, threshold=gate), asyncio.Queue(), loop) for gate in (None, -1e9)
        ]
        for ticket in tickets:
            ticket.abandoned = True
            assert worker._admit(ticket) is None and not worker._active
        leaves = Ticket(AnswerRequest([QUESTION], ANSWER), asyncio.Queue(), loop)
        waiting, passes = [worker._admit(leaves)], corrector.decoder.passes
        for _ in corrector.decoder.advance(lambda most: [waiting.pop()] if waiting else [], 4, worker._dropped):
            leaves.abandoned = True
        assert corrector.decoder.passes == passes + 1 and not worker._active

    asyncio.run(two())


def test_generation_by_transformers_stops_when_nobody_waits(corrector):
    from aligner.inference.sampling import generate

    asked = []
    [tokens] = generate(corrector.model, [[5, 6, 7]], [-1], 50, None, lambda: bool(asked.append(1)) or len(asked) >= 3)
    assert len(tokens) == 3


@pytest.mark.parametrize(
    "text", ["plain words, and more of them " * 20, "schön 你好 🎉 " * 40, "a\n\n  b\t" * 60, "🎉" * 100]
)
def test_a_text_in_pieces_is_the_text(corrector, text):
    tokenizer = corrector.encoder.tokenizer
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    for size in (1, 3, 50):
        decoded = []
        stream = TextStream(lambda ids, decoded=decoded: (decoded.append(len(ids)), corrector.text(ids))[1])
        pieces = [stream.feed(tokens[:end]) for end in [*range(size, len(tokens), size), len(tokens)]]
        assert "".join(pieces) == stream.text == corrector.text(tokens)
        assert max(decoded) <= 64 + size, "however long the text is"


def test_metrics_and_access_log_count_and_hold_no_text(corrector, told, tmp_path):
    pytest.importorskip("prometheus_client")
    from aligner.serving.metrics import LayerMetrics

    made = exchange(corrector, told.url)
    made.metrics = LayerMetrics()
    server = uvicorn.Server(
        uvicorn.Config(application(made, Limits(), AccessLog(str(tmp_path / "log.jsonl"))), port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    ask(address)
    requests.get(f"{address}/secret/path?q=secret")
    page = requests.get(f"{address}/metrics")
    server.should_exit = True
    thread.join()
    values = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert values['aligner_requests_total{route="/v1/chat/completions",status="200"}'] == "1.0"
    assert values['aligner_requests_total{route="other",status="404"}'] == "1.0"
    assert (
        values['aligner_answers_total{action="corrected"}'] == "1.0"
        and values["aligner_correction_tokens_total"] == "12.0"
    )
    assert values["aligner_queue"] == "0.0" and values["aligner_correction_seconds_count"] == "1.0"
    logged = lines(tmp_path / "log.jsonl")
    assert [(line["route"], line["status"]) for line in logged] == [
        ("/v1/chat/completions", 200),
        ("other", 404),
        ("/metrics", 200),
    ]
    assert logged[0]["bytes_in"] > 50 and logged[0]["bytes_out"] > 100
    for text in (QUESTION, ANSWER, "secret", "the caller's key"):
        assert text not in page.text + json.dumps(logged)


def test_a_session_ends_with_its_launch_script(tmp_path):
    """Killed while nothing is imported yet; and left alone where all went well."""
    program = (
        "import subprocess, sys, os\nquiet = subprocess.DEVNULL\n"
        "from aligner.launch.watch import start_guard\n"
        "session = subprocess.Popen(['sleep', '60'], start_new_session=True, stdout=quiet, stderr=quiet)\n"
        "guard = start_guard(session.pid)\n"
        "print(session.pid, flush=True)\n"
        "if sys.argv[1] == 'well': guard.communicate(b'ended')\n"
        "else: os.kill(os.getpid(), 9)\n"
    )
    for how in ("well", "killed"):
        done = subprocess.run(
            [sys.executable, "-c", program, how], capture_output=True, text=True, cwd=ROOT, check=False
        )
        session = int(done.stdout)

        def lives(session=session) -> bool:
            try:
                with open(f"/proc/{session}/stat") as stat:  # noqa: PTH123
                    return stat.read().rpartition(") ")[2][0] != "Z"
            except OSError:
                return False

        if how == "killed":
            until(lambda: not lives())
        else:
            time.sleep(0.3)
            assert lives()
            subprocess.run(["kill", str(session)], check=True)


def test_an_ascii_terminal_shows_what_it_can(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "aligner", "check", "ünï\x1b.json"],
        capture_output=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii", "HOME": str(tmp_path)},
        check=False,
    )
    assert (
        done.returncode == 2
        and rb"\xfcn\xef\x1b.json" in done.stdout + done.stderr
        and b"\x1b" not in done.stdout + done.stderr
    )
