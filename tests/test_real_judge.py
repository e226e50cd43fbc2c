"""A real model behind `transformers serve` as the judge of 200 pairs, killed once and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import TEMPLATE, environment, read_rows
from test_correct_file import lines, write
from test_real_servers import Gate, chatting, serving

from aligner.training.distributed.launcher_variables import free_port

__all__ = ["chatting"]
pytestmark = pytest.mark.slow


def test_200_pairs_survive_a_kill_and_a_model_that_cannot_judge_is_shown_as_one(chatting, tmp_path):
    rows = [{"question": f"{row['question']} ({n})", "answer": "No.", "corrected": row["correction"][:40], "label": "after"}
            for n, row in enumerate((read_rows(TEMPLATE) * 2)[:200])]  # fmt: skip
    after, out, port = write(tmp_path / "after.jsonl", rows), tmp_path / "out", free_port()
    gate = Gate(port)
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    command = [sys.executable, "-m", "aligner", "evaluate", "--after", after, "--labels", after, "--output", str(out),
               "--judge", "served", "--judge_url", f"http://127.0.0.1:{gate.server_port}/v1", "--judge_model", str(chatting),
               "--dimensions", "helpful", "--max_tokens", "8", "--concurrency", "4"]  # fmt: skip

    def replies() -> int:
        file = out / "replies.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    with serving(chatting, port):
        killed = subprocess.Popen(command, env=environment(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while replies() < 120:
            assert killed.poll() is None
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        kept = replies()
        again = subprocess.run(command, env=environment(1), text=True, capture_output=True, timeout=400)
    gate.shutdown()
    gate.server_close()
    assert again.returncode == 1, again.stderr
    assert (
        f"{400 - kept:,} replies to request" in again.stdout and "no verdict could be read of helpful" in again.stdout
    )
    assert "of 200 labelled pairs none was judged and read" in again.stdout
    assert len({line["key"] for line in lines(out / "replies.jsonl")}) == 400
    assert sum(count - 1 for count in Counter(gate.asked).values()) <= 4, "only what was under way when the kill came"
    assert json.loads(Path(out / "report.json").read_text())["verdicts"]["helpful"]["unreadable"] == 200
