"""`aligner correct` without files: one answer from the command line, rows through pipes, and the errors of a model that is none."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from aligner import cli
from aligner.card import prompt_of
from aligner.inference.corrector import Corrector, Settings
from aligner.quality.edits import diff, show
from aligner.records import UserError


def test_one_answer_is_corrected_and_shown_as_a_diff(tiny_model, capsys):
    flags = ["--model", str(tiny_model), "--prompt_template", "correction", "--max_new_tokens", "6"]
    assert cli.main(["correct", *flags, "--question", "Is it so?", "--answer", "It is so."]) == 0
    shown = capsys.readouterr().out
    corrector = Corrector.load(str(tiny_model), "correction", Settings(batch_size=1, max_new_tokens=6))
    [corrected] = corrector.correct([("Is it so?", "It is so.")])
    assert shown.startswith(show(diff("It is so.", corrected.text), False).plain)
    assert "% of it copied" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--question", "q"], "--question and --answer belong together"),
        (["--question", "q", "--answer", "a", "--input", "f"], "--input is for files of answers"),
        (["--input", "f"], "--output is missing. For one answer give --question and --answer"),
    ],
)
def test_half_of_what_is_needed_is_named(flags, message, capsys):
    assert cli.main(["correct", "--model", "m", *flags]) == 2
    assert message in capsys.readouterr().err


def test_rows_go_through_pipes(tiny_model, monkeypatch, capsys):
    rows = [{"question": f"q {n}", "answer": f"a {n}"} for n in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    flags = ["--model", str(tiny_model), "--prompt_template", "correction", "--max_new_tokens", "4"]
    assert cli.main(["correct", *flags, "--input", "-", "--output", "-"]) == 0
    shown = capsys.readouterr()
    assert [json.loads(line)["question"] for line in shown.out.splitlines()] == ["q 0", "q 1", "q 2"]
    assert "3 of 3 answers corrected" in shown.err


def test_a_model_that_is_not_there_a_resume_state_and_a_model_without_a_card_are_three_things(tmp_path):
    with pytest.raises(UserError, match=r"'typo': there is no such folder, and no aligner\.json"):
        prompt_of("typo", None)
    state = tmp_path / "update-3"
    state.mkdir()
    with pytest.raises(UserError, match=r"holds no model: it has no config\.json and no aligner\.json"):
        prompt_of(str(state), None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no aligner\.json, so the prompt it was trained with is unknown"):
        prompt_of(str(tmp_path), None)
    (state / "state.json").write_text("{}")
    with pytest.raises(UserError, match=f"is a resume state, not a model. .*aligner export {state} --output MODEL"):
        prompt_of(str(state), None)
