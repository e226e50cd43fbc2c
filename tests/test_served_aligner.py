"""`aligner serve --aligner_url`: corrections come from other servers, streamed through, from whichever replica is up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
import requests
from layered import QUESTION, ask, client, serving, until

from aligner.card import prompt_of
from aligner.encoder import Encoder
from aligner.inference.corrector import Settings
from aligner.models import load_tokenizer
from aligner.serving.completions import mean_log_probability
from aligner.serving.config import ServeConfig
from aligner.serving.exchange import Exchange, Policy
from aligner.serving.replicas import Replica, Replicas
from aligner.serving.served_aligner import ServedAligner
from aligner.serving.upstream import UpstreamClient

PIECES = ["I am ", "here, ", "and you?"]
CORRECTION = "".join(PIECES)


class Standing(ThreadingHTTPServer):
    """A server of the protocol that completes every prompt with PIECES, in the way it is told to: as a stream, whole, cut off in
    the middle, not at all."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, way: str = "stream") -> None:
        super().__init__(("127.0.0.1", 0), Completions)
        self.way, self.asked, self.pause = way, list[dict[str, Any]](), 0.0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.log_probability = -1.0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that has left is none."""


class Completions(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Standing

    def do_GET(self) -> None:
        if self.server.way == "gone":
            self.close_connection = True
        else:
            self._whole(200, {"object": "list", "data": [{"id": "aligner"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        time.sleep(self.server.pause)
        way = self.server.way
        if "messages" in body:
            self._chat(body["messages"][-1]["content"].upper(), bool(body.get("stream")))
        elif way == "gone":
            self.close_connection = True
        elif way == "busy":
            self._whole(503, {"error": {"message": "overloaded"}})
        elif way == "refuses":
            self._whole(400, {"error": {"message": "maximum context length"}})
        elif body.get("echo"):
            values = [None, *[self.server.log_probability] * len(body["prompt"])] if way != "no likelihoods" else None
            listed = {"token_logprobs": values} if values else None
            self._whole(200, {"choices": [{"text": "", "finish_reason": "length", "logprobs": listed}]})
        elif way == "whole":
            self._whole(200, {"choices": [{"index": 0, "text": CORRECTION, "finish_reason": "stop"}]})
        else:
            self._stream(way)

    def _chat(self, answer: str, stream: bool) -> None:
        """An upstream's answer."""
        head = {
            "id": "1",
            "created": 1,
            "model": "m",
            "object": "chat.completion.chunk" if stream else "chat.completion",
        }
        if not stream:
            message = {"role": "assistant", "content": answer}
            self._whole(200, {**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
            return
        self._begin_events()
        for delta, reason in (({"role": "assistant", "content": answer}, None), ({}, "stop")):
            self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _begin_events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _event(self, value: Any) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

    def _stream(self, way: str) -> None:
        self._begin_events()
        for number, piece in enumerate(PIECES):
            if way == "cut" and number == 1:
                return
            last = number == len(PIECES) - 1
            reason = ("length" if way == "long" else "stop") if last else None
            self._event({"choices": [{"index": 0, "text": piece, "finish_reason": reason}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _whole(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def encoder(tiny_model) -> Encoder:
    return Encoder(load_tokenizer(str(tiny_model), False))


@contextmanager
def layer(encoder: Encoder, told: Any, *ways: str, **policy: Any) -> Iterator[tuple[str, Exchange, list[Standing]]]:
    """The layer before an upstream, and servers of an Aligner that answer in these ways; its address."""
    servers = [Standing(way) for way in ways]
    replicas = Replicas([UpstreamClient(server.url, "the aligner's key", 5, 10**6) for server in servers])
    settings = Settings(max_new_tokens=64, max_prompt_tokens=400, whole_only=True)
    aligner = ServedAligner(replicas, "aligner", prompt_of("", "correction"), encoder, 512, settings, {})
    exchange = Exchange("tiny", UpstreamClient(told.url, None, 5, 10**6), aligner, Policy(**policy))
    with serving(exchange) as address:
        yield address, exchange, servers
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_correction_streams_through_and_its_prompt_is_that_of_training(encoder, told):
    with layer(encoder, told, "stream") as (address, exchange, [server]):
        chunks = [part.choices[0].delta.content for part in ask(address, stream=True)]
        assert [chunk for chunk in chunks if chunk] == PIECES
        choice = ask(address).choices[0]
    assert choice.message.content == CORRECTION and choice.finish_reason == "stop"
    assert choice.aligner["action"] == "corrected" and choice.aligner["original"] == QUESTION.upper()
    [sent, _] = server.asked
    assert sent["prompt"] == exchange.worker.template.render(QUESTION, QUESTION.upper())
    assert sent["max_tokens"] == 64 and sent["stream"] and sent["temperature"] == 0


def test_a_prompt_with_the_string_of_a_special_token_is_sent_as_ids(encoder, told):
    with layer(encoder, told, "stream") as (address, exchange, [server]):
        ask(address, "what is <|end|>?")
    text = encoder.render(exchange.worker.template, "what is <|end|>?", "WHAT IS <|END|>?")
    assert server.asked[0]["prompt"] == encoder.prompts([text])[0]


@pytest.mark.parametrize("way", ["whole", "stream"])
def test_a_server_may_answer_whole_or_as_a_stream(way, encoder, told):
    with layer(encoder, told, way) as (address, _, _):
        assert ask(address).choices[0].message.content == CORRECTION


def test_what_does_not_end_is_no_correction(encoder, told):
    with layer(encoder, told, "long") as (address, exchange, _), pytest.raises(openai.InternalServerError) as caught:
        ask(address)
    assert "did not end" in str(caught.value) and exchange.counts["unfinished"] == 1


@pytest.mark.parametrize("way", ["gone", "busy", "cut"])
def test_of_which_nothing_was_sent_is_tried_on_another_server(way, encoder, told, monkeypatch):
    """A whole answer of which some came is tried again too: the client has seen none of it."""
    monkeypatch.setattr("aligner.serving.replicas.LOOK", 60)  # on a slow machine four answers take longer than a rest
    with layer(encoder, told, way, "stream", on_failure="open") as (address, _, [bad, good]):
        answers = [ask(address).choices[0] for _ in range(4)]
        state = requests.get(address + "/health", timeout=5).json()["aligner_servers"]
    assert {answer.message.content for answer in answers} == {CORRECTION}
    assert len(bad.asked) <= 2 and len(good.asked) == 4, "one that failed rests"
    assert [each["up"] for each in state] == [False, True] and [each["requests"] for each in state] == [1, 4]


def test_a_stream_that_broke_off_ends_with_an_error_event(encoder, told):
    """What was sent cannot be taken back, nor may another server's words follow it."""
    with layer(encoder, told, "cut", "stream") as (address, _, [cut, good]):
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
        text = requests.post(address + "/v1/chat/completions", json=body, timeout=10).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ") and "[DONE]" not in line]
    assert events[1]["choices"][0]["delta"]["content"] == PIECES[0]
    assert "broke off" in events[-1]["error"]["message"] and "[DONE]" not in text
    assert (len(cut.asked), len(good.asked)) == (1, 0)


def test_what_one_server_refuses_no_other_is_asked(encoder, told):
    refused = pytest.raises(openai.InternalServerError, match="maximum context length")
    with layer(encoder, told, "refuses", "stream") as (address, exchange, [first, second]), refused:
        ask(address)
    assert (len(first.asked), len(second.asked)) == (1, 0)
    assert exchange.worker.replicas.all[0].is_up, "it works: the request was wrong"


def test_without_any_server_the_answer_fails_open_or_closed(encoder, told):
    with layer(encoder, told, "gone", "gone", on_failure="open") as (address, _, _):
        choice = ask(address).choices[0]
        assert choice.message.content == QUESTION.upper() and choice.aligner["action"] == "failed_open"
        assert "no server of the Aligner answers" in choice.aligner["error"]
    with layer(encoder, told, "gone") as (address, _, _), pytest.raises(openai.InternalServerError) as caught:
        ask(address)
    assert caught.value.status_code == 503


def test_a_server_that_is_back_gets_requests_again(encoder, told):
    with layer(encoder, told, "gone", "stream") as (address, exchange, [server, _]):
        ask(address)
        first, before = exchange.worker.replicas.all[0], len(server.asked)
        assert not first.is_up
        server.way = "stream"
        until(lambda: first.is_up)
        ask(address)
        ask(address)
    assert len(server.asked) == before + 1 and first.failures == 0


def test_the_server_with_least_to_do_is_chosen():
    replicas = Replicas([None, None, None])  # type: ignore[list-item]
    a, b, c = replicas.all
    a.under_way, b.under_way, b.requests = 2, 1, 9
    c.under_way = 1
    assert replicas.choose() is c, "of two with as much to do, the one that had less so far"
    assert replicas.choose({id(c)}) is b
    c.rests_until = time.monotonic() + 9
    assert replicas.choose() is b
    a.rests_until = b.rests_until = time.monotonic() + 9
    assert replicas.choose() is c, "one of those that are down, where all are"
    assert replicas.choose({id(a), id(b), id(c)}) is None


def test_a_server_rests_longer_each_time_and_once_for_requests_that_fail_together(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("aligner.serving.replicas.time.monotonic", lambda: now[0])
    replica, rests = Replica(UpstreamClient("http://localhost:1/v1", None, 1, 1)), []
    for _ in range(8):
        replica.failed()
        replica.failed()
        assert replica.rests_until is not None
        rests.append(replica.rests_until - now[0])
        now[0] = replica.rests_until
    assert rests == [1, 2, 4, 8, 16, 30, 30, 30]
    replica.succeeded()
    assert replica.is_up and replica.failures == 0


@pytest.mark.parametrize(("log_probability", "action"), [(-0.1, "left_alone"), (-3.0, "corrected")])
def test_the_gate_takes_the_servers_likelihood_of_the_answer(log_probability, action, encoder, told):
    with layer(encoder, told, "stream", mode="gate", threshold=-1.0) as (address, exchange, [server]):
        server.log_probability = log_probability
        choice = ask(address).choices[0]
    assert choice.aligner["action"] == action and choice.aligner["confidence"] == log_probability
    text = encoder.render(exchange.worker.template, QUESTION, QUESTION.upper())
    [(ids, answer, _)] = encoder.pairs([text], [QUESTION.upper()])
    assert server.asked[0]["prompt"] == ids + answer and server.asked[0]["echo"]


def test_the_mean_is_that_of_the_answers_tokens_alone():
    echoed = {"logprobs": {"token_logprobs": [None, -9.0, -9.0, -1.0, -2.0, -6.0, -9.0]}}
    assert mean_log_probability(echoed, 3, 3) == -3.0


def test_a_gate_before_a_server_without_likelihoods_is_refused(encoder, told):
    refused = pytest.raises(openai.InternalServerError, match="no log-probabilities of a prompt")
    with layer(encoder, told, "no likelihoods", mode="gate", threshold=-1.0) as (address, _, _), refused:
        ask(address)


@pytest.mark.parametrize(
    ("way", "said"),
    [("no likelihoods", "gives no log-probabilities of a prompt"), ("gone", "--mode gate: the Aligner's server fails")],
)
def test_a_gate_that_cannot_be_is_known_before_anything_is_served(way, said, tiny_model, capsys):
    from aligner import cli

    server = Standing(way)
    flags = [
        "--model",
        str(tiny_model),
        "--prompt_template",
        "correction",
        "--upstream_url",
        "http://localhost:1/v1",
        "--port",
        "0",
    ]
    flags += ["--mode", "gate", "--threshold", "-1", "--aligner_url", server.url]
    assert cli.main(["serve", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_known_at_once(capsys):
    from aligner import cli

    flags = [
        "--model",
        "/no/such",
        "--upstream_url",
        "http://localhost:1/v1",
        "--port",
        "0",
        "--aligner_url",
        "http://localhost:1/v1",
    ]
    assert cli.main(["serve", *flags]) == 2
    assert "/no/such: there is no such folder" in capsys.readouterr().err


def test_of_a_long_dialogue_the_oldest_turns_are_left_out(encoder, told):
    turns = [f"turn {number} of a dialogue that is rather long" for number in range(61)]
    with layer(encoder, told, "stream") as (address, _, [server]):
        ask(address, *turns)
    prompt = server.asked[0]["prompt"]
    assert "turn 60 " in prompt and "turn 0 " not in prompt and len(encoder.prompts([prompt])[0]) <= 400


def test_a_key_is_sent_and_comes_back_nowhere(encoder, told):
    with layer(encoder, told, "stream") as (address, _, _):
        reply = requests.get(address + "/health", timeout=5)
    assert "key" not in reply.text and "127.0.0.1" not in reply.text, "/health asks for none"


def test_a_client_that_leaves_ends_its_request_at_the_server(encoder, told):
    with layer(encoder, told, "stream") as (address, exchange, [server]):
        server.pause = 30
        with pytest.raises(openai.APITimeoutError):
            client(address).with_options(timeout=0.5).chat.completions.create(
                model="m", messages=[{"role": "user", "content": QUESTION}]
            )
        until(lambda: exchange.worker.waiting() == 0)


def settings(**more: Any) -> ServeConfig:
    from aligner.inference.config import AlignerOptions

    return ServeConfig("m", "http://localhost:1/v1", AlignerOptions(), **more)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"aligner_model": "x"}, "--aligner_model needs --aligner_url"),
        ({"workers": 2}, "--workers needs --aligner_url"),
        ({"workers": 0}, "--workers is 0"),
        ({"aligner_url": ("localhost:8000",)}, "--aligner_url localhost:8000: write it as http://HOST:PORT/v1"),
        ({"aligner_url": ("http://me:secret@h/v1",)}, "a key is --aligner_key's"),
        ({"aligner_url": ("http://h/v1",), "workers": 2, "metrics": True}, "--metrics counts one process"),
        ({"aligner_url": ("http://h/v1",), "aligner_key": "NOT_THERE"}, "NOT_THERE is not set"),
    ],
)
def test_flags_that_cannot_go_together_are_refused(flags, said):
    from aligner.records import UserError

    with pytest.raises(UserError, match=said):
        settings(**flags)
