"""`aligner build`, killed in every stage and gone on with: no reply is paid for twice, by the server's own count."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from building_case import lines, real_questions, write_config
from conftest import environment
from stand_in_models import ANNOTATOR, UPSTREAMS, StandInModels, stand_in_models

pytestmark = pytest.mark.slow
WRITING = (  # a file of each stage, and of the result, in the midst of whose writing the build is killed
    "1-questions.partial/rows.jsonl", "2-leaks.partial/dropped.jsonl", "3-shares.partial/counts.json",
    "4-answers.partial/rows.jsonl", "5-corrections.partial/counts.json", "6-people.partial/rows.jsonl",
    "7-filter.partial/dropped.jsonl", "8-check.partial/COMPLETED", "kept.md", "README.md",
)  # fmt: skip


def start(config: Path, output: Path, *program: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        *(program or ("-m", "aligner")),
        "build",
        "--config",
        str(config),
        "--output",
        str(output),
    ]
    return subprocess.Popen(command, env=environment(1), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kept_replies(output: Path) -> int:
    file = output / "replies" / "replies.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_while_waiting(server: StandInModels, config: Path, output: Path) -> None:
    """Kill the build once its requests wait for replies that nobody has been paid for, and all others are kept."""
    process = start(config, output)
    deadline = time.monotonic() + 120
    while not (server.waiting == 4 and kept_replies(output) == sum(server.paid.values())):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read() if process.stdout else ""
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    server.let_go()


def finish(config: Path, output: Path) -> str:
    process = start(config, output)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_200_questions_through_all_stages_killed_in_each_and_no_reply_is_paid_for_twice(tmp_path):
    with stand_in_models() as server:
        config, output = write_config(tmp_path, server, real_questions(200)), tmp_path / "build"
        waits = [("plain", 70), ("brief", 140), (ANNOTATOR, 100), (ANNOTATOR, 400), (ANNOTATOR, 570)]
        for end in WRITING[:3]:
            assert killed(config, output, end)
        for model, count in waits[:2]:
            server.hold_after = {model: count}
            kill_while_waiting(server, config, output)
        assert killed(config, output, WRITING[3])
        for model, count in waits[2:]:
            server.hold_after = {model: count}
            kill_while_waiting(server, config, output)
        for end in WRITING[4:]:
            assert killed(config, output, end)
            assert not (output / "COMPLETED").exists()
        said = finish(config, output)
        print(f"{len(WRITING) + len(waits)} kills; paid: {dict(server.by_model)}; twice: {server.paid_twice}")
        assert server.paid_twice == 0
        assert [server.by_model[name] for name in UPSTREAMS] == [200] * 3
        pairs = len(lines(output / "stages/4-answers/rows.jsonl"))
        again = [prompt for (model, prompt) in server.paid if model == ANNOTATOR and "Your earlier reply" in prompt]
        assert server.by_model[ANNOTATOR] == pairs + len(again) and len(again) > 5
        undisturbed = tmp_path / "undisturbed"
        finish(config, undisturbed)
        assert (output / "train.jsonl").read_bytes() == (undisturbed / "train.jsonl").read_bytes()
        assert "train with --train_datasets" in said


def killed(config: Path, output: Path, end: str) -> bool:
    """Whether the build was killed as it wrote that file."""
    process = start(config, output, str(Path(__file__).parent / "programs/killed_build.py"), end)
    process.communicate(timeout=300)
    return process.returncode == -signal.SIGKILL


def test_killed_at_any_moment_only_what_was_under_way_is_asked_for_again(tmp_path):
    draw, kills = random.Random(7), 0
    with stand_in_models(delay=0.02) as server:
        config, output = write_config(tmp_path, server, real_questions(200)), tmp_path / "build"
        while kills < 8:
            process, before = start(config, output), sum(server.paid.values())
            while process.poll() is None and sum(server.paid.values()) < before + 1:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.05, 0.9))
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        finish(config, output)
        print(f"{kills} kills at random; paid: {sum(server.paid.values())}; twice: {server.paid_twice}")
        assert kills >= 4 and server.paid_twice <= 4 * kills, "of requests under way there are four"
