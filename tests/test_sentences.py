"""Corrections sentence by sentence: how answers are split, which sentences are paired, and what a run learns from them."""

from __future__ import annotations

import json
import sys

import pytest

from aligner.cli import main
from aligner.known_prompts import SENTENCE
from aligner.records import Correction, Skipped

QUESTION = "What is the capital of France?"
END = "‖"


@pytest.fixture(scope="module")
def split():
    pytest.importorskip("sentencex")
    from aligner.sentences import split_sentences

    return split_sentences


@pytest.mark.parametrize(
    "text",
    [
        "He came, e.g. from Rome.‖ It was Dr. Smith, at 3.5 km.",
        'He said "No. I will not." and left.‖\n\nThen she wrote.',
        "Steps:‖\n1. Mix it.‖\n2. Bake it.‖ Then wait.‖\n  - a detail",
        "Run this:‖\n```python\nprint('A. B. C.')\n\nx = 1\n```‖\nIt prints.",
        "A table:‖\n| a | b |\n|---|---|\n| 1. x | 2. y |‖\nDone.",
        "水是由氢和氧组成的。‖它很重要!‖你知道吗?",
        "**Bold words.**‖ See https://a.example.com/x.html for more.\n\n---‖\nThe end.",
        " One.\n",
        "",
    ],
)
def test_a_text_is_cut_where_its_sentences_end_and_nowhere_else(split, text):
    assert split(text.replace(END, "")) == (text.split(END) if text else [])


def test_a_sentence_is_whole_once_the_next_has_begun_or_the_writer_has_ended(split):
    from aligner.sentences import LONGEST, first_sentence

    assert first_sentence("It is Dr.", False) is None
    assert first_sentence("It is Dr. Smith.", False) is None
    assert first_sentence("It is Dr. Smith. H", False) == "It is Dr. Smith."
    assert first_sentence("It is Dr. Smith.", True) == "It is Dr. Smith."
    assert first_sentence("", True) is None
    assert first_sentence("word " * LONGEST, False) == ("word " * LONGEST)[: LONGEST - 1], (
        "a text without an end is cut"
    )


@pytest.mark.parametrize(
    ("answer", "correction", "expected"),
    [
        ("A cat sat. It is red.", "A cat sat. It is blue.", [("", "A cat sat."), ("A cat sat.", "It is blue.")]),
        ("Fool! A cat sat.", "A cat sat.", [("", "A cat sat."), ("", "A cat sat.")]),
        ("A cat sat. Fool!", "A cat sat.", [("", "A cat sat."), ("A cat sat.", "")]),
        ("A cat sat.", "Hello there. A cat sat. Bye.", [("", "Hello there. A cat sat. Bye.")]),
        ("Yes.", "No, never.", [("", "No, never.")]),
        ("A cat sat. One two. Three.", "A cat sat. Entirely. Different words.", [("", "A cat sat."), None, None]),
    ],
    ids=["corrected", "taken out", "taken out at the end", "put in", "alone in its place", "nobody can say"],
)
def test_each_sentence_of_an_answer_learns_what_belongs_in_its_place(split, answer, correction, expected):
    from aligner.training.datasets.by_sentence import sentence_records

    records = list(sentence_records(Correction(QUESTION, answer, correction), "sentence"))
    assert [None if isinstance(r, Skipped) else (r.prefix, r.correction) for r in records] == expected
    kept = [r.answer for r in records if isinstance(r, Correction)]
    assert kept == [s.strip() for s, e in zip(split(answer), expected, strict=True) if e]


def test_whole_rows_become_records_of_sentences_and_what_is_left_out_is_counted(split, tmp_path, capsys):
    rows, made = tmp_path / "rows.json", tmp_path / "made.jsonl"
    answer, correction = "A cat sat. One two. Three.", "A cat sat. Entirely. Different words."
    rows.write_text(json.dumps([{"question": QUESTION, "answer": answer, "correction": correction}]))
    assert main(["check", str(rows), "--sentences", "--output", str(made)]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 rows are usable" in said
    assert "2 left out: a sentence of the answer that can be paired with none" in said
    assert json.loads(made.read_text()) == {"question": QUESTION, "answer": "A cat sat.", "correction": "A cat sat."}


def test_rows_may_have_a_prefix_of_their_own_and_an_empty_correction_which_is_the_end(tmp_path, capsys):
    rows, tokens = tmp_path / "rows.json", tmp_path / "tokens.jsonl"
    row = {"question": QUESTION, "prefix": "It is Paris.", "answer": "Fool!", "correction": ""}
    rows.write_text(json.dumps([row]))
    assert main(["check", str(rows), "--prompt_template", "sentence"]) == 0
    assert main(["check", str(rows)]) == 1, "without a slot for the prefix an empty correction is a fault"
    assert "'correction' is empty" in capsys.readouterr().out
    assert not tokens.exists()


def test_a_field_called_prefix_is_not_read_where_the_prompt_has_no_slot_for_it(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"question": "Q", "answer": "A", "correction": "C", "prefix": 7}]))
    assert main(["check", str(rows)]) == 0
    assert main(["check", str(rows), "--prompt_template", "sentence"]) == 1


def test_the_prompt_shows_what_was_said_so_far():
    shown = SENTENCE.render("Q", "next", prefix="so far")
    assert "##Answer so far: so far\n##Next sentence: next\n" in shown


def test_a_prompt_without_a_prefix_cannot_learn_sentences(split, tmp_path, capsys):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"question": "Q", "answer": "A", "correction": "C"}]))
    assert main(["check", str(rows), "--sentences", "--prompt_template", "paper"]) == 2
    assert "the prompt 'paper' has no {prefix}" in capsys.readouterr().err


def test_without_the_splitter_there_is_one_error_with_its_remedy(monkeypatch, tmp_path, capsys):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("aligner.sentences.version", missing)
    monkeypatch.setitem(sys.modules, "sentencex", None)
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"question": "Q", "answer": "A", "correction": "C"}]))
    assert main(["check", str(rows), "--sentences"]) == 2
    assert 'pip install "qac-aligner[sentences]"' in capsys.readouterr().err
