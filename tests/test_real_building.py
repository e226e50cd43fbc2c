"""`aligner build` with `transformers serve`, a real server, as three upstreams and as the annotator."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import yaml
from building_case import lines, real_questions, write_questions
from test_real_servers import Gate, chatting, serving

from aligner.cli import main
from aligner.training.distributed.launcher_variables import free_port

__all__ = ["chatting"]
pytestmark = pytest.mark.slow


def config_of(folder: Path, model: str, url: str, count: int, tokens: int) -> Path:
    """A build of so many questions whose models are one model behind that address, as `transformers serve` draws."""
    served = {"url": url, "model": model, "concurrency": 2, "dialect": "transformers"}
    upstreams = [
        {"name": f"at-{heat}", **served, "temperature": heat, "top_p": 0.95, "top_k": 10, "max_tokens": tokens}
        for heat in (0.3, 0.5, 0.9)
    ]
    settings = {
        "sources": [{"name": "asked", "data": str(write_questions(folder / "questions.jsonl", real_questions(count)))}],
        "questions": {"near": None},
        "answers": {"upstreams": upstreams, "keep_unfinished": True},
        "corrections": {"annotators": [{"name": "critic", **served, "max_tokens": 4 * tokens}]},
    }
    file = folder / "building.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_what_a_small_model_replies_as_an_annotator_is_counted_and_asked_for_twice(chatting, tmp_path, capsys):
    model, port, count, tokens = str(chatting), free_port(), 6, 8
    gate = Gate(port)
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    with serving(Path(model), port):
        config = config_of(tmp_path, model, f"http://127.0.0.1:{gate.server_port}/v1", count, tokens)
        status = main(["build", "--config", str(config), "--output", str(tmp_path / "build")])
    shown = capsys.readouterr()
    stages = tmp_path / "build/stages"
    counts = {file.parent.name: json.loads(file.read_text()) for file in sorted(stages.glob("*/counts.json"))}
    answers, corrections = counts["4-answers"], counts["5-corrections"]
    unreadable = corrections["dropped"].get("unreadable reply", 0)
    with capsys.disabled():
        print(
            f"\n{answers['kept']} of {answers['into']} answers, {unreadable} of {corrections['into']} replies unreadable twice"
        )
    assert (
        answers["into"] == 3 * count and len({row["upstream"] for row in lines(stages / "4-answers/rows.jsonl")}) == 3
    )
    assert corrections["into"] == answers["kept"] and all(
        row["detail"] for row in lines(stages / "5-corrections/dropped.jsonl")
    )
    asked_again = sum("Your earlier reply could not be read" in prompt for prompt in gate.asked)
    assert asked_again == unreadable + corrections["read at the second try"]
    assert (
        len(gate.asked)
        == 3 * count + corrections["into"] + asked_again
        == len(lines(tmp_path / "build/replies/replies.jsonl"))
    )
    if not corrections["kept"]:
        assert status == 2 and "no row is left" in shown.err and f"{unreadable:,} unreadable reply" in shown.out
