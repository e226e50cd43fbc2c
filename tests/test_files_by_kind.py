"""Files and rows as people have them, by kind, through `aligner check` alone.

`python tests/kinds.py REVISION test_files_by_kind.py` counts what an earlier revision makes of them. That each is right in
detail is tested beside its subject (test_readers and the like).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import ROOT
from odd_files import (
    CANNOT,
    COMPRESSIONS,
    DIFFERENT,
    FORMATS,
    KINDS,
    PATTERNS,
    REFUSED,
    REPLACED,
    REPLIES,
    ROWS,
    SAME,
    SHEPHERD,
    TWO_ROLES,
    UNSEEN,
    UNUSED,
    pa,
    parquet,
    write,
)

from aligner import cli

pytestmark = pytest.mark.slow
TRANSLATIONS = json.loads((ROOT / "tests" / "questions_in_ten_languages.json").read_text(encoding="utf-8"))


@pytest.fixture
def check(capsys, tmp_path, monkeypatch):
    """`aligner check` in this process: its exit status and what it printed."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str]:
        status = cli.main(["check", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def corrections(check, spec: object, output: Path) -> list[str]:
    """The corrections of all rows, which are usable."""
    status, said = check(spec, "--output", output)
    assert status == 0, said
    lines = output.read_text(encoding="utf-8").split("\n")
    output.unlink()
    return [json.loads(line)["correction"] for line in lines if line]


def as_rows(file: Path, *questions: str) -> Path:
    return write(file, json.dumps([{"question": q, "answer": "a", "correction": "c"} for q in questions]).encode())


@pytest.mark.kind("files: a path taken as a pattern")
@pytest.mark.parametrize("name", PATTERNS)
def test_exactly_the_named_file(name, check, tmp_path):
    other = parquet(pa.Table.from_pylist([{**ROWS[0], "correction": "the other file's"}]))
    for beside in ("train1.parquet", "trainx.parquet", "train.parquet", "t.parquet", "x].parquet", "n.parquet"):
        write(tmp_path / beside, other)
    file = write(tmp_path / name, parquet(pa.Table.from_pylist(ROWS)))
    assert corrections(check, f"correction-json::{file}", tmp_path / "out") == [row["correction"] for row in ROWS]


@pytest.mark.kind("files: a cache by path and time")
@pytest.mark.parametrize("how", REPLACED)
def test_the_bytes_that_are_there_now(how, check, tmp_path):
    (place := tmp_path / "place").mkdir()
    for text in ("old", "new"):
        REPLACED[how](place, text)
        for file in place.rglob("*"):
            os.utime(file, (1_700_000_000, 1_700_000_000))
        inside = [file for file in place.iterdir() if file.name.startswith("a.")]
        path = inside[0] if len(inside) == 1 and how != "one of two shards" else place
        assert corrections(check, f"correction-json::{path}", tmp_path / "out")[0] == text


@pytest.mark.kind("files: columns that nobody reads")
@pytest.mark.parametrize("name", UNUSED)
def test_an_unused_column_is_no_hindrance(name, check, tmp_path):
    table = pa.Table.from_pylist(ROWS).append_column(name, UNUSED[name])
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {name: {"_type": "Image"}}}})}
    )
    assert len(corrections(check, write(tmp_path / "rows.parquet", parquet(table)), tmp_path / "out")) == len(ROWS)


@pytest.mark.kind("files: artefacts of a registered set")
@pytest.mark.parametrize(("reply", "reason"), REPLIES)
def test_a_reply_that_is_none_is_left_out(reply, reason, check, tmp_path):
    before = "\n\nHuman: Q\n\nAssistant:"
    file = write(tmp_path / "hh.jsonl", json.dumps({"chosen": before + reply, "rejected": before + " bad"}).encode())
    assert f"1 left out: {reason}" in check(f"hh-rlhf::{file}")[1]


@pytest.mark.kind("files: questions that differ by a sign or mark")
@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_question_is_not_in_the_evaluation_data(one, other, check, tmp_path):
    known = as_rows(tmp_path / "eval.json", f"What is {one}?")
    assert "\noverlap:" not in check(as_rows(tmp_path / "rows.json", f"What is {other}?"), "--eval_datasets", known)[1]


@pytest.mark.kind("files: the same question in another spelling")
@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_question_is_in_the_evaluation_data(one, other, check, tmp_path):
    known = as_rows(tmp_path / "eval.json", one)
    assert "\noverlap: 1 " in check(as_rows(tmp_path / "rows.json", other), "--eval_datasets", known)[1]


@pytest.mark.kind("files: a long question with another end, in ten languages")
@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_question_nearly_in_the_evaluation_data_is_seen(language, check, tmp_path):
    question, respelt, changed = TRANSLATIONS[language]
    known = as_rows(tmp_path / "eval.json", question)
    said = check(as_rows(tmp_path / "rows.json", respelt, changed), "--eval_datasets", known)[1]
    assert "\noverlap: 1 " in said and "near-overlap: 1 " in said


@pytest.mark.kind("files: text that the tokenizer cannot spell")
@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in CANNOT.items() for text in texts])
def test_what_cannot_be_spelt_is_counted(kind, text, check, tmp_path):
    KINDS[kind]().save_pretrained(tmp_path / "model")
    file = write(tmp_path / "rows.json", json.dumps([{**ROWS[0], "correction": text}]).encode())
    said = check(file, "--model_name_or_path", tmp_path / "model")[1]
    assert "1 unspellable" in said and "what was lost" in said


@pytest.mark.kind("files: one field in two roles, or a role named twice")
@pytest.mark.parametrize("name", TWO_ROLES)
def test_two_roles_are_refused(name, check, tmp_path):
    text, problem = TWO_ROLES[name]
    status, said = check(write(tmp_path / "rows.json", json.dumps([SHEPHERD]).encode()), "--columns", *text.split())
    assert status == 2 and problem in said


@pytest.mark.kind("files: text that cannot be seen")
@pytest.mark.parametrize("name", UNSEEN)
def test_a_field_that_nobody_sees_is_empty(name, check, tmp_path):
    file = write(tmp_path / "rows.json", json.dumps([{**ROWS[0], "correction": UNSEEN[name]}]).encode())
    status, said = check(file)
    assert status == 1 and "'correction' is empty" in said


@pytest.mark.kind("files: forms people have, read")
@pytest.mark.parametrize("packed", COMPRESSIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_the_rows_are_read(form, packed, check, tmp_path):
    file = write(tmp_path / "train.data", COMPRESSIONS[packed](FORMATS[form]))
    assert corrections(check, file, tmp_path / "out") == [row["correction"] for row in ROWS]


@pytest.mark.kind("files: forms people have, called by their name")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_named(name, check, tmp_path):
    data, words = REFUSED[name]
    status, said = check(write(tmp_path / "train.json", data))
    assert status == 2 and words in said and "Traceback" not in said
