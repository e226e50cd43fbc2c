"""A build that tests share: real questions where they are, three upstreams and an annotator that stand in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from conftest import SHARED, TEMPLATE, read_rows
from stand_in_models import ANNOTATOR, UPSTREAMS, StandInModels

from aligner.questions import question_key


def real_questions(count: int) -> list[str]:
    """Distinct questions: HH-RLHF's and TruthfulQA's where the shared data is, else the project's own and variations of them."""
    if SHARED.is_dir():
        rows = read_rows(SHARED / "qac_hh_rlhf.json")[:count] + read_rows(SHARED / "qac_truthfulqa.json")
        texts = [row["question"] for row in rows]
    else:
        own = [row["question"] for row in read_rows(TEMPLATE)]
        texts = [
            f"{text} ({'abcdefghij'[turn] * 3} {turn} {place})" for turn in range(9) for place, text in enumerate(own)
        ]
    return list({question_key(text): text for text in texts if len(text) >= 12}.values())[:count]


def write_questions(file: Path, questions: list[str]) -> Path:
    """Questions as JSON lines."""
    file.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions), encoding="utf-8")
    return file


def write_config(folder: Path, server: StandInModels, texts: list[str], **more: Any) -> Path:
    """building.yaml of a build of these questions by the models that stand in; `more` are settings that it has besides."""
    source = write_questions(folder / "questions.jsonl", texts)
    served = {"url": server.url, "concurrency": 4, "timeout": 30}
    sampled = {"temperature": 0.5, "top_p": 0.95, "top_k": 10, "max_tokens": 64, "price": {"read": 1, "written": 2}}
    settings: dict[str, Any] = {
        "name": "stand-ins",
        "sources": [{"name": "asked", "data": str(source), "licence": "mit"}],
        "questions": {"near": None},
        "answers": {"upstreams": [{"name": name, "model": name, **served, **sampled} for name in UPSTREAMS]},
        "corrections": {
            "annotators": [
                {
                    "name": "critic",
                    "model": ANNOTATOR,
                    **served,
                    "max_tokens": 128,
                    "price": {"read": 10, "written": 30},
                }
            ]
        },
        "filter": {"unchanged": 0.2},
    }
    for name, value in more.items():
        settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    file = folder / "building.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
