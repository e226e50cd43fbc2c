"""Roles: `--columns` names the field of each, one field has one role, and a role is named once."""

from __future__ import annotations

import json

import pytest
from odd_files import SHEPHERD, TWO_ROLES

from aligner import cli
from aligner.launch import launch
from aligner.records import Correction, DataError, UserError
from aligner.training.datasets.options import Columns, Options, parse_columns
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import parse_spec


def read(file, *columns: str):
    return list(records_of(parse_spec(str(file)), Options(columns)))


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"q": "Q", "a": "A", "c": "C", "critique": "F"}) + "\n")
    return file


@pytest.mark.parametrize("name", TWO_ROLES)
def test_one_field_in_two_roles_or_a_role_named_twice_is_refused(name, tmp_path, capsys):
    text, problem = TWO_ROLES[name]
    file = tmp_path / "shepherd.json"
    file.write_text(json.dumps([SHEPHERD]))
    with pytest.raises(UserError, match=problem.replace("[", r"\[")):
        parse_columns(text.split(), "correction-json")
    assert cli.main(["check", str(file), "--columns", *text.split()]) == 2
    flags = ["--train_datasets", str(file), "--model_name_or_path", "embedded", "--output_dir", "o", "--dry_run"]
    assert launch.main([*flags, "--prompt_template", "feedback", "--columns", *text.split()]) == 2
    said = capsys.readouterr().err.splitlines()
    assert sum(problem in line for line in said) == 2


def test_the_feedback_may_be_called_otherwise(rows):
    (record,) = read(rows, "question=q,answer=a,correction=c,feedback=critique")
    assert record == Correction("Q", "A", "C", record.origin, "F")


def test_a_feedback_that_was_named_must_be_there_and_may_be_null(rows):
    (fault,) = read(rows, "question=q,answer=a,correction=c,feedback=critiqe")
    assert isinstance(fault, DataError) and "the field 'critiqe' is missing. Rename 'critique' to 'critiqe'" in str(
        fault
    )
    rows.write_text(json.dumps({"q": "Q", "a": "A", "c": "C", "critique": None}))
    assert read(rows, "question=q,answer=a,correction=c,feedback=critique")[0].feedback == ""
    assert read(rows, "question=q,answer=a,correction=c")[0].feedback == "", "not named, it may be missing"


def test_a_field_called_feedback_may_be_the_target_where_no_field_is_the_feedback(tmp_path):
    file = tmp_path / "shepherd.json"
    file.write_text(json.dumps([SHEPHERD]))
    (record,) = read(file, "correction=feedback,feedback=")
    assert (record.correction, record.feedback) == ("Say why.", "")


def test_what_is_named_for_one_data_set_goes_before_what_is_named_for_all():
    for texts in (("answer=x", "correction-json:answer=y"), ("correction-json:answer=y", "answer=x")):
        assert parse_columns(texts, "correction-json") == Columns(answer="y")
        assert parse_columns(texts, "empathy-json") == Columns(answer="x")


@pytest.mark.parametrize("name", ["correction-json", "empathy-json", "aligner-20k", "alignertails"])
def test_every_data_set_of_answers_and_corrections_takes_feedback(name, rows):
    columns = Options(("question=q,answer=a,correction=c,feedback=critique",))
    (record,) = records_of(parse_spec(f"{name}::{rows}"), columns)
    assert record.feedback == "F"


def test_a_formatter_that_goes_through_the_columns_gets_the_three_of_every_record():
    assert list(Columns("q", "a", "c", "f")) == ["q", "a", "c"]
