"""Models behind servers: real HTTP to a server that answers as it is told."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_correct_file import lines, write

from aligner.cli import main
from aligner.encoder import Encoder
from aligner.inference.corrector import CorrectionRequest, Settings
from aligner.inference.served import Answer, ServedAligner, UpstreamModel
from aligner.inference.servers import Server, ServerGone
from aligner.models import load_tokenizer
from aligner.prompts import CORRECTION
from aligner.records import UserError


class Told(ThreadingHTTPServer):
    """A server that speaks OpenAI's protocol: answers a question by its upper case, after failing as often as told."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures: list[tuple[int, dict[str, str]]] = []  # status and headers of the next replies
        self.asked: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.keys: set[str] = set()
        self.headers: set[str] = set()  # names of all that were sent
        self.rule: Callable[[str], str] = str.upper
        self.odd = ""  # how the reply to what is odd is odd
        self.delay = 0.02  # seconds of an answer to what is slow
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that has left is none."""


class Handler(BaseHTTPRequestHandler):
    server: Told

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = self.server
        with told.lock:
            told.asked.append(body)
            told.keys.add(self.headers["Authorization"])
            told.headers.update(name.lower() for name in self.headers)
            told.at_once += 1
            told.most_at_once = max(told.most_at_once, told.at_once)
            failure = told.failures.pop(0) if told.failures else None
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        refused = "forbidden" in text
        failure = (500, {}) if "breaks it" in text else failure
        time.sleep(told.delay if "slow" in text else 0.02)
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "text": "made",
            "message": {"role": "assistant", "content": told.rule(str(text))},
        }
        made = {"id": "0", "object": "x", "created": 1, "model": "m", "choices": [choice]}
        if told.odd and "an odd one" in text:
            made, failure = self.oddly(told.odd, made)
        with told.lock:
            told.at_once -= 1
        if failure:
            self.reply(failure[0], {"error": {"message": "as told"}}, failure[1])
        else:
            self.reply(400 if refused else 200, {"error": {"message": "not that"}} if refused else made, {})

    def oddly(self, how: str, made: dict[str, Any]) -> tuple[Any, tuple[int, dict[str, str]] | None]:
        """A reply that servers, gateways and filters have been seen to give."""
        message = made["choices"][0]["message"]
        if how == "cut":
            made["choices"][0]["finish_reason"] = "length"
        if how in ("list", "empty"):
            message["content"] = [{"type": "text", "text": "[[A]]"}] if how == "list" else ""
        usage = {"prompt_tokens": None, "completion_tokens": "x"} if how == "usage" else None
        odd: Any = {**made, "usage": usage, "choices": [] if how == "choices" else made["choices"]}
        return ("<html>busy</html>" if how == "html" else odd), ((403, {}) if how == "forbidden" else None)

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": []}, {})  # the models there are

    def reply(self, status: int, value: Any, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, content in headers.items():
            self.send_header(name, content)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: Any) -> None:
        pass


def command_of(model: Path, told: Told, questions: list[str], folder: Path, *more: str) -> list[str]:
    path = write(folder / "in.jsonl", [{"question": question} for question in questions])
    return ["correct", "--model", str(model), "--prompt_template", "correction", "--input", path, "--max_new_tokens", "4",
            "--output", str(folder / "out.jsonl"), "--upstream_url", told.url, "--upstream_model", "m", *more]  # fmt: skip


def ask(told: Told, questions: list[str], **more: Any) -> dict[int, Any]:
    answers = dict(UpstreamModel(Server(told.url, "m", **more)).stream(questions))
    return {place: answer.text if isinstance(answer, Answer) else answer for place, answer in answers.items()}


def test_an_upstream_answers_with_bounded_concurrency(told):
    answers = ask(told, [f"q{n}" for n in range(20)], concurrency=3)
    assert answers == {n: f"Q{n}" for n in range(20)}
    assert told.most_at_once == 3
    assert told.asked[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": told.asked[0]["messages"][0]["content"]}],
    }


def test_a_busy_or_failing_server_is_tried_again_when_it_says_so(told):
    told.failures = [(429, {"retry-after": "1"}), (503, {}), (500, {})]
    began = time.monotonic()
    assert ask(told, ["q"], concurrency=1) == {0: "Q"}
    assert time.monotonic() - began > 1, "it waited as long as the server asked"
    assert len(told.asked) == 4


def test_a_refused_row_is_a_row_and_the_others_go_on(told):
    answers = ask(told, ["a", "forbidden", "b"])
    assert (answers[0], answers[2]) == ("A", "B")
    assert isinstance(answers[1], UserError) and "refuses it (status 400" in str(answers[1])
    assert Counter(body["messages"][0]["content"] for body in told.asked)["forbidden"] == 1, (
        "a refusal is not tried again"
    )


def test_an_answer_that_was_cut_off_is_marked_and_counted(told, tmp_path, tiny_model, capsys):
    told.odd = "cut"
    assert main(command_of(tiny_model, told, ["an odd one", "b"], tmp_path)) == 0
    assert [row.get("answer_finished") for row in lines(tmp_path / "out.jsonl")] == [False, None]
    said = capsys.readouterr().out
    assert (
        "2 of 2 answers corrected (2 generated by the upstream)" in said
        and "1 answers were cut off at the upstream's limit" in said
    )


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_a_server_refuses_for_its_length_ends_nothing(status, told):
    told.failures = [(status, {})]
    answers = ask(told, ["too long", "b"], concurrency=1)
    assert f"refuses it (status {status}" in str(answers[0]) and answers[1] == "B"


@pytest.mark.parametrize(
    ("odd", "said"), [("\ud83d", "half a surrogate"), ("a\0b", "a NUL character"), (" \n", "no text")]
)
def test_an_answer_that_is_no_text_is_a_refused_row(odd, said, told):
    told.rule = lambda text: odd if text == "odd" else text.upper()
    answers = ask(told, ["odd", "b"])
    assert said in str(answers[0]) and answers[1] == "B"


def test_a_fault_of_this_program_is_not_waited_for(told):
    def broken(client, item):
        raise KeyError(item)

    with pytest.raises(KeyError, match="a"):
        list(Server(told.url, "m").each(broken, ["a"]))


@pytest.mark.parametrize("url", ["http://localhost:abc/v1", "http://[::1/v1"])
def test_an_address_that_is_none_is_said(url):
    with pytest.raises(UserError, match="is no address of a server"):
        Server(url, "m")


def test_a_wrong_key_ends_the_work_with_the_variable_to_set(told, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    told.failures = [(401, {})] * 9
    with pytest.raises(ServerGone, match=r"status 401.*variable MY_KEY"):
        ask(told, ["q"], key="MY_KEY")
    assert len(told.asked) == 1


def test_the_key_comes_from_its_variable_and_stands_nowhere(told, monkeypatch, tmp_path, tiny_model, capsys):
    monkeypatch.setenv("MY_KEY", "planted-secret")
    command = command_of(tiny_model, told, ["q"], tmp_path, "--upstream_key", "MY_KEY")
    told.failures = [(404, {})]  # a first run ends and leaves its journal
    assert main(command) == 2
    assert list(tmp_path.glob("*.journal"))
    assert not any(b"planted" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert main(command) == 0
    assert told.keys == {"Bearer planted-secret"}
    assert not any(b"planted" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert "planted" not in "".join(capsys.readouterr())
    assert lines(tmp_path / "out.jsonl")[0]["answer"] == "Q", "the answer is kept"


def test_a_server_that_cannot_be_reached_keeps_what_was_answered(told, tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.setattr("aligner.inference.servers.RETRIES", 0)
    command = command_of(tiny_model, told, [f"q{n}" for n in range(6)], tmp_path, "--concurrency", "1")
    original = Handler.do_POST

    def goes_away(handler: Handler) -> None:
        if len(handler.server.asked) >= 3:
            handler.server.shutdown_request(handler.request)
            return
        original(handler)

    monkeypatch.setattr(Handler, "do_POST", goes_away)
    assert main(command) == 2
    assert "cannot be reached" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(Handler, "do_POST", original)
    assert main(command) == 0
    asked = Counter(body["messages"][0]["content"] for body in told.asked)
    assert asked == {f"q{n}": 1 for n in range(6)}, "nothing was asked twice"
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [f"Q{n}" for n in range(6)]


def test_a_served_aligner_gets_the_prompt_of_training(told, tiny_model):
    encoder = Encoder(load_tokenizer(str(tiny_model)))
    aligner = ServedAligner(Server(told.url, "m"), CORRECTION, encoder, 2048, Settings(max_new_tokens=9))
    plain, special = CorrectionRequest("Why?", "So."), CorrectionRequest("Why?", "So <|end|> it is.")
    made = dict(aligner.stream([plain, special]))
    assert made[0].text == "made" and made[0].finished
    prompts = {str(type(body["prompt"])): body for body in told.asked}
    assert prompts["<class 'str'>"]["prompt"] == CORRECTION.render(*plain)
    assert prompts["<class 'str'>"]["temperature"] == 0 and prompts["<class 'str'>"]["max_tokens"] == 9
    assert prompts["<class 'list'>"]["prompt"] == encoder.prompts([CORRECTION.render(*special)])[0], "sent as ids"


def test_a_served_aligner_is_asked_for_no_more_than_its_positions_leave(told, tiny_model):
    encoder = Encoder(load_tokenizer(str(tiny_model)))
    short, long = CorrectionRequest("Why?", "So."), CorrectionRequest("Why?", "So. " * 60)
    room = len(encoder.prompts([CORRECTION.render(*short)])[0]) + 5
    made = dict(ServedAligner(Server(told.url, "m"), CORRECTION, encoder, room).stream([short, long]))
    assert [body["max_tokens"] for body in told.asked] == [5]
    assert made[0].finished and "positions: shorten it" in str(made[1])


def test_a_row_that_a_server_fails_on_does_not_stop_the_others(told, monkeypatch):
    monkeypatch.setattr("aligner.inference.servers.RETRIES", 1)
    answers = ask(told, ["a", "this breaks it", "b"], concurrency=1)
    assert (answers[0], answers[2]) == ("A", "B") and "fails on it (status 500" in str(answers[1])


def test_what_is_no_such_server_is_said(monkeypatch):
    class Page(Handler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        do_GET = do_POST

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(ServerGone, match="does not answer as an OpenAI-compatible server"):
        dict(UpstreamModel(Server(f"http://127.0.0.1:{server.server_port}", "m")).stream(["q"]))
    server.shutdown()
    server.server_close()


def test_a_silent_server_is_spoken_of(told, monkeypatch, caplog):
    monkeypatch.setattr("aligner.inference.servers.SILENCE", 0.1)
    monkeypatch.setattr(logging.getLogger("aligner"), "propagate", True)
    told.delay = 0.5
    ask(told, ["slow"])
    waits = {record.args[1]: None for record in caplog.records if "it is busy, or not there" in record.message}
    assert list(waits) == [0.1, 0.2, 0.4], "after 0.1 seconds, then each time it has lasted twice as long"


def test_who_stops_does_not_wait_for_what_is_under_way(told):
    told.delay = 30
    stream = UpstreamModel(Server(told.url, "m")).stream(["fast", "slow"])
    assert next(stream)[1].text == "FAST"
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 5
