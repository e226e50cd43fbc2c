"""`aligner build` where something is wrong: it says so before it pays, names the row or the setting, and throws nothing away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from building_case import lines, real_questions, write_config, write_questions
from stand_in_models import ANNOTATOR, UPSTREAMS, stand_in_models

from aligner.building.asking import FIRST_REPLIES, ReplyJournal, estimate
from aligner.building.config import ModelConfig, PeopleConfig, Price
from aligner.building.corrections import correction_questions
from aligner.building.label_tools import read_opinions
from aligner.building.people import Desk
from aligner.building.principles import read_principles, read_reply
from aligner.cli import main
from aligner.records import UserError

MODEL = {"name": "m", "model": "m", "url": "http://x/v1"}


def build(config: Path, output: Path, *flags: object) -> int:
    return main(["build", "--config", str(config), "--output", str(output), *map(str, flags)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished build, its configuration, and its server."""
    folder = tmp_path_factory.mktemp("finished")
    with stand_in_models() as server:
        config = write_config(folder, server, real_questions(6))
        assert build(config, folder / "build") == 0
        yield config, folder / "build", server


def test_what_was_removed_of_a_finished_build_is_written_again_and_what_was_changed_is_named(finished, capsys):
    config, output, server = finished
    built, paid = (output / "train.jsonl").read_bytes(), sum(server.by_model.values())
    for name in ("train.jsonl", "kept.png", "README.md"):
        (output / name).unlink()
    assert build(config, output) == 0 and (output / "train.jsonl").read_bytes() == built
    assert (output / "kept.png").is_file() and (output / "README.md").is_file()
    (output / "train.jsonl").write_bytes(built[: built.rindex(b"{")])
    assert build(config, output) == 2 and "train.jsonl: was changed after it was built" in capsys.readouterr().err
    (output / "train.jsonl").write_bytes(built)
    assert sum(server.by_model.values()) == paid


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda stage: (stage / "rows.jsonl").unlink(), "rows.jsonl: holds 0 of "),
        (lambda stage: (stage / "rows.jsonl").write_text("\n".join((stage / "rows.jsonl").read_text().splitlines()[:2]) + "\n"),
         "rows.jsonl: holds 2 of "),
        (lambda stage: (stage / "counts.json").write_text("{"), "counts.json: is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_stage_is_named_and_the_stages_after_it_stay(damage, finding, finished, capsys):
    config, output, _ = finished
    stage, later = output / "stages/4-answers", output / "stages/5-corrections/rows.jsonl"
    kept = {file: file.read_bytes() for file in stage.iterdir()}
    before = later.read_bytes()
    damage(stage)
    assert build(config, output) == 2 and finding in (err := capsys.readouterr().err) and "Remove its folder" in err
    assert later.read_bytes() == before
    for file, content in kept.items():
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("more", "finding"),
    [
        ({"check": {"model_name_or_path": "/nope"}}, "check.model_name_or_path: /nope: there is no such folder"),
        ({"check": {"prompt_template": "nope"}}, "check.prompt_template: there is no prompt template 'nope'"),
        ({"check": {"max_length": 0}}, "check.max_length: it must be at least 1"),
        ({"filter": {"longest": 0}}, "filter.longest: it must be at least 1"),
        ({"filter": {"verdicts": "nope.jsonl"}}, "filter.verdicts: nope.jsonl: there is no such file"),
        ({"answers": {"per_question": 0}}, "answers.per_question: it must be at least 1"),
        ({"answers": {"upstreams": [{**MODEL, "url": "ftp://x/v1"}]}}, "answers.upstreams, 'm': 'x' is no address"),
        ({"answers": {"upstreams": [{**MODEL, "price": {"read": -1}}]}}, "a price is 0 or more"),
        ({"cap": -1}, "cap: it is money, 0 at least"),
        ({"questions": {"limit": 0}}, "questions.limit: it must be at least 1"),
        ({"questions": {"near": 0}}, "questions.near: it is a share"),
        ({"sources": [{"data": " "}]}, "sources: 'data' is empty"),
        ({"sources": [{"data": "a.json", "share": 0}]}, "sources: a share must be above 0"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_named_before_anything_is_asked(more, finding, finished, tmp_path, capsys):
    config = write_config(tmp_path, finished[2], real_questions(6), **more)
    assert build(config, tmp_path / "build", "--dry_run") == 2
    assert finding in (err := capsys.readouterr().err) and str(config) in err


def test_a_language_that_nobody_tells_is_named():
    pytest.importorskip("py3langid")
    from aligner.building.questions import language_identifier

    with pytest.raises(UserError, match=r"'english' is none of .*en"):
        language_identifier(["english"])


def test_where_no_question_is_left_the_first_row_and_its_reason_are_said(finished, tmp_path, capsys):
    config = write_config(tmp_path, finished[2], real_questions(6))
    source = {"sources": [{"name": "asked", "data": str(tmp_path / "questions.jsonl"), "question": "prompt"}]}
    config = write_config(tmp_path, finished[2], real_questions(6), **source)
    assert build(config, tmp_path / "build") == 2
    err = capsys.readouterr().err
    assert "questions: no row is left (the first: " in err and "row 1" in err and "replies are kept" not in err
    assert "prompt" in lines(tmp_path / "build/stages/1-questions/dropped.jsonl")[0]["reason"]
    write_questions(tmp_path / "questions.jsonl", [])
    assert build(config, tmp_path / "build") == 2 and "source asked: " in (err := capsys.readouterr().err)
    assert "has no rows" in err


def test_an_annotator_without_one_usable_reply_ends_the_build_after_the_first_ones(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stand_in_models.correction", lambda prompt: ("no JSON", "stop"))
    with stand_in_models() as server:
        config = write_config(tmp_path, server, real_questions(12))
        assert build(config, tmp_path / "build") == 2
        assert f"'critic': none of its first {FIRST_REPLIES} replies can be used" in (err := capsys.readouterr().err)
        assert "it is not JSON" in err and server.by_model[ANNOTATOR] == 2 * FIRST_REPLIES
        assert sum(server.by_model[name] for name in UPSTREAMS) == 36 and server.paid_twice == 0


def test_at_most_is_a_token_a_byte_and_every_reply_asked_for_twice(tmp_path):
    model = ModelConfig("m", "http://x/v1", "m", max_tokens=50, price=Price(1e6, 1e6))
    principles = read_principles("configs/building/principles.yaml")
    [question] = correction_questions([{"question": "Wie, ä?", "answer": "So."}], model, principles, 0)
    journal = ReplyJournal(tmp_path / "replies.jsonl")
    most = estimate(model, "", [question], journal)
    first = len(principles.ask("Wie, ä?", "So.").encode())
    assert most.requests == 1 and most.most_written == 100 and 2 * first < most.most_read < 2 * first + 600
    assert most.most_money == most.most_read + most.most_written
    journal.close()


def test_a_reply_with_a_key_twice_is_unreadable():
    assert read_reply('{"critique": "a", "critique": "b", "harmful": false, "correction": "c"}') == "it is not JSON"


# People


def exported(folder: Path, *annotations: dict[str, Any], row: str | None = "r", number: int = 1) -> str:
    """An export of Label Studio with one task."""
    data = {"pass": number, **({"row": row} if row else {})}
    (folder / "export.json").write_text(json.dumps([{"data": data, "annotations": list(annotations)}]))
    return str(folder / "export.json")


def said(text: str = "", reader: int | None = 1) -> dict[str, Any]:
    result = [{"from_name": "verdict", "value": {"choices": ["edited" if text else "draft"]}}]
    result += [{"from_name": "correction", "value": {"text": [text]}}] if text else []
    return {"completed_by": reader, "result": result}


def test_an_export_is_counted_and_one_that_says_nothing_of_this_build_is_named(tmp_path):
    desk = Desk(tmp_path / "people", PeopleConfig())
    export = exported(tmp_path, said())
    assert desk.take_in([export], {"r", "s"}) == "people: 1 opinions read"
    with pytest.raises(UserError, match="says something of 'r' and of no row of this build"):
        desk.take_in([export], {"s"})
    with pytest.raises(UserError, match="holds no opinion"):
        desk.take_in([exported(tmp_path)], {"r"})


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"number": 7}, "is of pass 7"),
        ({"row": None}, "an annotation of another form"),
        ({"reader": None}, "an annotation of another form"),
        ({"text": "Yes.\0"}, "holds a NUL character"),
    ],
)
def test_an_opinion_that_cannot_be_one_is_named(change, finding, tmp_path):
    text, reader = change.pop("text", ""), change.pop("reader", 1)
    with pytest.raises(UserError, match=finding):
        list(read_opinions(exported(tmp_path, said(text, reader), **change)))
