"""`transformers serve`, a real OpenAI-compatible server, as the upstream and as the Aligner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, environment, read_rows
from test_correct_file import lines, write
from test_servers import Handler
from transformers import AutoTokenizer

from aligner.encoder import Encoder
from aligner.inference.corrector import CorrectionRequest, Corrector, Settings
from aligner.inference.served import ServedAligner
from aligner.inference.servers import Server
from aligner.models import load_tokenizer
from aligner.prompts import CORRECTION
from aligner.training.distributed.launcher_variables import free_port

pytestmark = pytest.mark.slow


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`transformers serve` on a model folder, ready."""

    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        str(folder),
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, env={**environment(1), "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
            except OSError:
                time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.wait()


class Gate(ThreadingHTTPServer):
    """Stands before `transformers serve`: notes every question and refuses one, as gateways with a filter do."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.behind, self.asked, self.lock = f"http://127.0.0.1:{port}", list[str](), threading.Lock()


class Passing(Handler):
    server: Gate  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        refused = "refuse me" in question
        made: Any = {"error": {"message": "not that"}}
        try:
            if not refused:
                request = urllib.request.Request(self.server.behind + self.path, json.dumps(body).encode())
                request.add_header("Content-Type", "application/json")
                with urllib.request.urlopen(request, timeout=60) as reply:
                    made = json.load(reply)
        except OSError:  # whatever is wrong with the server behind
            self.reply(502, {"error": {"message": "gone"}}, {})
            return
        with self.server.lock:
            self.server.asked.append(question)
        self.reply(400 if refused else 200, made, {})


@pytest.fixture(scope="module")
def chatting(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chatting") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}:")
    return folder


def test_a_folder_behind_transformers_serve_corrects_through_its_chat_endpoint(tiny_model, tmp_path):
    from aligner.inference.corrector import Corrector, Settings
    from aligner.training.checkpoint.chat_template import set_chat_template

    folder, port = tmp_path / "model", free_port()
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_chat_template(tokenizer, CORRECTION)
    tokenizer.save_pretrained(folder)
    pairs = [(row["question"], row["answer"]) for row in read_rows(TEMPLATE, 3)]
    corrected = Corrector.load(str(folder), "correction", Settings(1, 8)).correct(pairs)
    with serving(folder, port):
        for (question, answer), expected in zip(pairs, corrected, strict=True):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            body = {"model": str(folder), "messages": messages, "max_tokens": 8, "temperature": 0}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode())
            request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=60) as reply:
                assert json.load(reply)["choices"][0]["message"]["content"] == expected.text


def test_200_questions_survive_a_kill_a_restart_of_the_server_and_a_refusal(chatting, tmp_path):
    questions = [f"{row['question']} ({n})" for n, row in enumerate((read_rows(TEMPLATE) * 2)[:200])]
    questions[77] += " refuse me"
    path, out, port = (
        write(tmp_path / "in.jsonl", [{"question": q} for q in questions]),
        tmp_path / "out.jsonl",
        free_port(),
    )
    gate = Gate(port)
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    command = [sys.executable, "-m", "aligner", "correct", "--model", str(chatting), "--prompt_template", "correction",
               "--input", path, "--output", str(out), "--max_new_tokens", "8", "--concurrency", "4",
               "--upstream_model", str(chatting), "--upstream_max_tokens", "8",
               "--upstream_url", f"http://127.0.0.1:{gate.server_port}/v1"]  # fmt: skip

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment(1), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def answered() -> dict[str, str]:
        journal = Path(f"{out}.journal")
        found = [json.loads(line) for line in journal.read_text().splitlines()[1:]] if journal.exists() else []
        return {questions[line["row"]]: line["value"].get("text") for line in found if line["kind"] == "answer"}

    def until(count: int, process: subprocess.Popen[str]) -> None:
        while len(answered()) < count:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)

    with serving(chatting, port):
        until(40, killed := start())
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        kept, asked_before = answered(), len(gate.asked)
        until(100, second := start())
    assert second.poll() is None, "the server is gone, and it waits for it"
    with serving(chatting, port):
        said, errors = second.communicate(timeout=300)
    gate.shutdown()
    gate.server_close()
    assert second.returncode == 1 and "199 of 200 answers corrected (200 generated by the upstream)" in said, (
        said + errors
    )
    assert "in.jsonl row 78: http://127.0.0.1" in errors and "refuses it (status 400" in errors
    made = lines(out)
    assert [row["question"] for row in made] == questions
    assert sum(row["corrected"] is not None for row in made) == 199 and made[77]["corrected"] is None
    assert all(made[n]["answer"] == kept[q] for n, q in enumerate(questions) if kept.get(q) is not None)
    assert not set(gate.asked[asked_before + 4 :]) & set(kept), "what was answered before the kill was not asked again"
    twice = [question for question, count in Counter(gate.asked).items() if count > 1]
    assert len(twice) <= 4, "only what was under way when the kill came"


def test_an_aligner_behind_transformers_serve_corrects_as_it_does_here(chatting, tmp_path):
    requests = [CorrectionRequest(row["question"], row["answer"]) for row in read_rows(TEMPLATE, 8)]
    settings = Settings(max_new_tokens=16)
    here = dict(Corrector.load(str(chatting), "correction", settings).stream(requests))
    port = free_port()
    encoder = Encoder(load_tokenizer(str(chatting)))
    server = Server(f"http://127.0.0.1:{port}/v1", str(chatting), concurrency=2)
    with serving(chatting, port):
        there = dict(ServedAligner(server, CORRECTION, encoder, 2048, settings).stream(requests))
    assert {place: made.text for place, made in there.items()} == {place: made.text for place, made in here.items()}
