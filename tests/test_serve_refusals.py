"""`aligner serve`: what it refuses, what it says of an upstream that fails, and whom it does not work for."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
import time
from contextlib import aclosing

import openai
import pytest
import requests
from layered import ANSWER, JSON, QUESTION, ask, client, corrector, exchange, serving, until

from aligner import cli
from aligner.inference.corrector import Corrector, Settings
from aligner.serving.corrections import AnswerRequest
from aligner.serving.worker import Worker

__all__ = ["corrector"]  # a fixture


def test_the_upstreams_errors_come_back_as_they_are(corrector, told):
    told.failures = [(429, {"retry-after": "7"})]
    with serving(exchange(corrector, told.url)) as address:
        with pytest.raises(openai.RateLimitError, match="as told") as caught:
            ask(address)
        assert caught.value.response.headers["retry-after"] == "7"
        with pytest.raises(openai.BadRequestError, match="not that"):
            ask(address, "a forbidden thing", stream=True)


def test_the_official_client_behind_a_key(corrector, told):
    """Whole, streamed and the list of models with it; an error of the protocol without it, with another, or with half of it."""
    mine = "the layer's own key"
    with serving(exchange(corrector, told.url), key=mine) as address:
        asked = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
        with_key = client(address, mine)
        whole = with_key.chat.completions.create(**asked).choices[0].message.content
        parts = [part.choices[0].delta.content or "" for part in with_key.chat.completions.create(**asked, stream=True)]
        assert whole and "".join(parts) == whole and with_key.models.list().data is not None
        for wrong in ("another", mine[:-1], mine.upper(), mine + "x", "x"):
            for more in ({}, {"stream": True}):
                with pytest.raises(openai.AuthenticationError) as caught:
                    client(address, wrong).chat.completions.create(**asked, **more)
                assert caught.value.code == "invalid_api_key" and mine not in caught.value.message
            with pytest.raises(openai.AuthenticationError):
                client(address, wrong).models.list()
    assert told.asked and not any(mine in (key or "") for key in told.keys), "it stays here"


def test_an_upstream_that_is_down_slow_or_no_such_server_is_said(corrector, told):
    with serving(exchange(corrector, "http://127.0.0.1:9/v1")) as address:
        with pytest.raises(openai.APIStatusError, match="cannot be reached: Connection refused") as caught:
            ask(address)
        assert caught.value.status_code == 502 and not re.search(r"[a-z]Error\b", caught.value.message)
    told.delay = 2
    with serving(exchange(corrector, told.url, seconds=0.3)) as address:
        with pytest.raises(openai.APIStatusError, match=r"did not answer within 0\.3 seconds") as caught:
            ask(address, "slow")
        assert caught.value.status_code == 504
    with serving(exchange(corrector, told.url.removesuffix("/v1") + "/strange")) as address:
        assert client(address).models.list().data == []


def test_bad_requests_are_refused_with_what_is_wrong(corrector, told):
    with serving(exchange(corrector, told.url), largest=2000) as address:
        chats = f"{address}/v1/chat/completions"
        for body, said in (
            (b"{", "not JSON"), (b"[]", "no JSON object"), (b"{}", "'messages'"), (b'{"messages": [3]}', "'messages[0]'"),
            (b'{"messages": [{"role": "user"}], "stream": "x"}', "'stream'"), (b"[" * 1999, "not JSON"),
        ):  # fmt: skip
            reply = requests.post(chats, data=body, headers=JSON)
            assert reply.status_code == 400 and said in reply.json()["error"]["message"]
        assert requests.post(chats, data=b"x" * 2001, headers=JSON).status_code == 413
        assert requests.post(chats, data=(b"x" * 500 for _ in range(9)), headers=JSON).status_code == 413, (
            "sent without its length"
        )
        assert requests.get(chats).status_code == 405
        assert requests.get(f"{address}/v1/nothing").json()["error"]["message"].startswith("GET /v1/nothing: there are")
    assert not told.asked


def test_another_sites_page_does_not_get_through(corrector, told):
    """A browser sends no JSON to another site unasked, and a name that was made to point here is not localhost."""
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]})
    with serving(exchange(corrector, told.url)) as address:
        chats = f"{address}/v1/chat/completions"
        assert requests.post(chats, data=body, headers={"content-type": "text/plain"}).status_code == 415
        assert requests.post(chats, data=body, headers={**JSON, "host": "evil.example:8080"}).status_code == 403
        assert requests.post(chats, data=body, headers={**JSON, "host": "localhost:8080"}).status_code == 200
    assert len(told.asked) == 1


def test_a_key_of_its_own_is_asked_for_and_goes_no_further(corrector, told, caplog):
    with serving(exchange(corrector, told.url), key="ours") as address:
        with pytest.raises(openai.AuthenticationError):
            ask(address)
        client(address, "ours").chat.completions.create(model="m", messages=[{"role": "user", "content": QUESTION}])
        assert requests.post(f"{address}/diff", json={}).status_code == 401
        assert requests.get(f"{address}/health").status_code == 200
    assert told.keys == {None} and "ours" not in caplog.text


def test_more_than_it_holds_is_refused_with_429(corrector, told):
    told.delay = 1
    with serving(exchange(corrector, told.url), most=1) as address:
        thread = threading.Thread(target=lambda: ask(address, "slow"))
        thread.start()
        until(lambda: len(told.asked) == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(address)
        assert caught.value.response.headers["retry-after"] == "1"
        thread.join()
        assert ask(address).choices, "its place is free again"


@pytest.mark.parametrize("mode", ["always", "shadow"])
def test_who_leaves_is_not_worked_for(mode, corrector, told, tmp_path):
    told.delay = 3
    made = exchange(corrector, told.url, tmp_path / "shadow.jsonl", mode=mode)
    with serving(made) as address:
        began = time.monotonic()
        for stream in (False, True):
            with pytest.raises(requests.ReadTimeout):
                body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "slow"}]}
                requests.post(f"{address}/v1/chat/completions", json=body, timeout=0.2)
        until(lambda: requests.get(f"{address}/health").json()["under_way"] == 0)
        assert time.monotonic() - began < 2.5, "before the upstream has answered"
        assert made.worker.waiting() == 0 and made.counts["corrected"] == 0


def test_a_correction_that_nobody_waits_for_ends_with_the_pass_under_way(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("aligner"), "propagate", True)
    corrector = Corrector.load(str(tiny_model), "correction", Settings(1, 1500))
    worker = Worker(corrector)
    worker.start()

    async def leave() -> None:
        async with aclosing(worker.submit(AnswerRequest([QUESTION], ANSWER)).pieces()) as pieces:
            async for _ in pieces:
                break

    asyncio.run(leave())
    until(lambda: worker.waiting() == 0)
    worker.close()
    assert corrector.decoder.tokens < 1000 and not caplog.records, "and nobody else's work fails with it"


def test_an_aligner_that_fails_is_an_error_or_the_answer_as_it_was(corrector, told, monkeypatch):
    monkeypatch.setattr(Worker, "_row", lambda self, ticket: 1 / 0)
    with serving(exchange(corrector, told.url)) as address:
        with pytest.raises(openai.APIStatusError, match="Aligner failed") as caught:
            ask(address)
        assert caught.value.status_code == 503
    with serving(exchange(corrector, told.url, on_failure="open")) as address:
        choice = ask(address).choices[0]
        assert "".join(c.choices[0].delta.content or "" for c in ask(address, stream=True) if c.choices) == ANSWER
    assert choice.message.content == ANSWER and choice.model_extra["aligner"]["action"] == "failed_open"


def test_an_aligner_that_takes_too_long_is_given_up(corrector, told):
    late = pytest.raises(openai.APIStatusError, match="did not finish within")
    with serving(exchange(corrector, told.url, timeout=0.0001)) as address, late:
        ask(address)


def test_half_a_surrogate_pair_is_the_callers_error(corrector, told):
    body = b'{"messages": [{"role": "user", "content": "a \\ud800 b"}]}'
    with serving(exchange(corrector, told.url)) as address:
        reply = requests.post(f"{address}/v1/chat/completions", data=body, headers=JSON)
    assert reply.status_code == 400 and "half a surrogate pair" in reply.text and not told.asked


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mode", "gate"], "--mode gate and --threshold X belong together"),
        (["--threshold", "-1"], "--mode gate and --threshold X belong together"),
        (["--mode", "shadow"], "--mode shadow and --shadow_file FILE belong together"),
        (["--host", "0.0.0.0"], "can be reached from elsewhere: ask callers for a key"),
        (["--api_key", "NO_SUCH_VARIABLE"], "the variable NO_SUCH_VARIABLE is not set"),
        (["--batch_size", "0"], "it must be above 0"),
        (["--mode", "gate", "--threshold", "nan"], "--threshold is nan"),
        (["--upstream_url", "http://me:secret@localhost:1/v1?key=x"], "the address of localhost is"),
        (["--upstream_key", "NO_SUCH_VARIABLE"], "the variable NO_SUCH_VARIABLE is not set"),
        (["--upstream_url", "localhost:80"], "write it as http://HOST:PORT/v1"),
    ],
)
def test_flags_that_do_not_go_together_are_said(flags, said, capsys):
    assert cli.main(["serve", "--model", "/none", "--upstream_url", "http://localhost:1/v1", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_port_in_use_is_said_before_the_model_is_loaded(told, capsys):
    port = told.server_port
    assert cli.main(["serve", "--model", "/none", "--upstream_url", told.url, "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "it closes the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nabc", "its answer ends too early"),
        (b"220 mail ready\r\n\r\n", "it does not answer in HTTP"),
    ],
)
def test_a_connection_that_breaks_is_said_in_words_of_the_networks(corrector, sent, words):
    def serve(listener: socket.socket) -> None:
        for _ in range(2):  # what was closed is tried again once
            connection, _ = listener.accept()
            connection.recv(65_536)
            connection.sendall(sent)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with serving(exchange(corrector, url)) as address, pytest.raises(openai.APIStatusError) as caught:
            ask(address)
    assert (
        caught.value.status_code == 502 and caught.value.body["message"] == f"The upstream cannot be reached: {words}."
    )


def test_what_is_loaded_is_said_at_once(capsys):
    """Before the seconds that it takes, and without the key that a query may be."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        flags = ["--upstream_url", "http://host/v1?key=secret", "--mode", "gate", "--threshold", "-1"]
        assert cli.main(["serve", "--model", "some/folder", "--port", str(busy.getsockname()[1]), *flags]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("loading the Aligner some/folder to stand in front of http://host/v1 (mode gate)")
    assert "in use" in said.err and "secret" not in said.out + said.err
