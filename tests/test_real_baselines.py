"""`transformers serve`, a real OpenAI-compatible server, as the upstream of `aligner baseline`: the same replies and tokens as the
model has here, and a kill after which nothing is paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import environment
from test_correct_file import lines, write
from test_real_servers import chatting, serving  # noqa: F401 (a fixture)
from test_servers import Handler

from aligner.cli import main
from aligner.training.distributed.launcher_variables import free_port

pytestmark = pytest.mark.slow
QUESTIONS = [f"What is the use of thing number {number}?" for number in range(8)]


class Receipts(ThreadingHTTPServer):
    """Stands before `transformers serve` and notes what it was paid for."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Noting)
        self.behind, self.paid, self.lock = (
            f"http://127.0.0.1:{port}",
            list[tuple[str, dict[str, int]]](),
            threading.Lock(),
        )


class Noting(Handler):
    server: Receipts  # type: ignore[assignment]

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        request = urllib.request.Request(self.server.behind + self.path, content)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as reply:
            value = json.load(reply)
        with self.server.lock:
            self.server.paid.append((json.loads(content)["messages"][-1]["content"], value["usage"]))
        self.reply(200, value, {})


@pytest.fixture
def receipts(chatting) -> Any:  # noqa: F811
    port = free_port()
    with serving(chatting, port):
        server = Receipts(port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
        server.server_close()


def words(method: str, folder: Path, name: str, *more: str) -> list[str]:
    source = write(folder / "in.jsonl", [{"question": question} for question in QUESTIONS])
    output = str(folder / f"{name}.jsonl")
    return ["baseline", method, "--input", source, "--output", output, "--max_new_tokens", "12", *more]


def test_a_served_model_replies_as_it_does_here_and_its_usage_is_what_is_counted_here(receipts, chatting, tmp_path):  # noqa: F811
    there = ["--upstream_url", f"http://127.0.0.1:{receipts.server_port}/v1", "--upstream_model", str(chatting),
             "--dialect", "transformers", "--concurrency", "2"]  # fmt: skip
    for method, *flags in (["beam", "--width", "1"], ["beam", "--width", "3"], ["refine"]):
        for name, where in (("here", ["--model", str(chatting)]), ("there", there)):
            (tmp_path / f"{name}.jsonl").unlink(missing_ok=True)
            receipts.paid.clear()
            assert main([*words(method, tmp_path, name), *flags, *where]) == 0
        here, served = (lines(tmp_path / f"{name}.jsonl") for name in ("here", "there"))
        assert [row["answer"] for row in here] == [row["answer"] for row in served], method
        for name in ("prompt_tokens", "completion_tokens"):
            stated = sum(usage[name] for _, usage in receipts.paid)
            counted, ours = (sum(row["cost"]["upstream"][name] for row in rows) for rows in (served, here))
            assert abs(counted - stated) <= 0.01 * stated and stated > 0
            if flags != ["--width", "3"] or name == "prompt_tokens":  # here all beams are counted, there the best one
                assert abs(ours - stated) <= 0.01 * stated


def test_drawn_answers_of_a_server_differ_and_do_not_depend_on_how_many_are_drawn(receipts, chatting, tmp_path):  # noqa: F811
    there = ["--upstream_url", f"http://127.0.0.1:{receipts.server_port}/v1", "--upstream_model", str(chatting),
             "--dialect", "transformers", "--concurrency", "1", "--reward_model", str(chatting)]  # fmt: skip
    for n in ("4", "2"):
        assert main([*words("bon", tmp_path, n), "--n", n, *there]) == 0
    four, two = (lines(tmp_path / f"{n}.jsonl") for n in ("4", "2"))
    for many, few in zip(four, two, strict=True):
        texts = [candidate["text"] for candidate in many["candidates"]]
        assert len(set(texts)) > 1 and [candidate["text"] for candidate in few["candidates"]] == texts[:2]


def test_a_killed_method_goes_on_and_no_reply_is_paid_for_twice(receipts, chatting, tmp_path):  # noqa: F811
    there = ["--upstream_url", f"http://127.0.0.1:{receipts.server_port}/v1", "--upstream_model", str(chatting)]
    command = [sys.executable, "-m", "aligner", *words("revise", tmp_path, "out", *there, "--rounds", "2")]
    command += ["--concurrency", "1"]
    process = subprocess.Popen(
        command, env=environment(1), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "out.jsonl.journal"
    while not (journal.exists() and len(journal.read_text().splitlines()) > 12):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1)  # what was under way when the kill came
    kept = len(journal.read_text().splitlines()) - 1
    assert subprocess.run(command, env=environment(1), check=False, capture_output=True).returncode in (0, 1)
    rows = lines(tmp_path / "out.jsonl")
    calls = sum(row["cost"]["upstream"]["calls"] for row in rows)
    assert 12 <= kept < calls and calls <= len(receipts.paid) <= calls + 1, "at most the one under way"
    asked = Counter(prompt for prompt, _ in receipts.paid)
    assert sum(count - 1 for count in asked.values()) <= 1
