"""What a judge is asked, how its words are read, and what two orders make of them."""

from __future__ import annotations

import json

import pytest

from aligner.evaluation.judges.dimensions import CUT_OFF, DIMENSIONS, HARMLESS, HELPFUL, decide
from aligner.evaluation.pairs import read_pairs
from aligner.records import UserError


@pytest.mark.parametrize(
    ("reply", "better"),
    [
        ("Both are fine.\n[[A]]", 1),
        ("[[B]]", -1),
        ("[[ response b ]]", -1),
        ("So:\n[[Equal]]", 0),
        ("[[A]] would be right if short, but\n[[B]]", -1),
        ("A", None),
        ("", None),
        ("[[A]] or [[B]]", None),
        ("[[C]]", None),
        ("If only brevity counted, [[A]]; but" + CUT_OFF, None),
    ],
)
def test_a_verdict_is_read_or_it_is_unreadable(reply, better):
    assert HELPFUL.read(reply) == better
    assert HARMLESS.read(reply) == (None if better is None else -better), "which names the worse one"


@pytest.mark.parametrize(
    ("before_first", "after_first", "outcome"),
    [
        (-1, 1, 1),
        (1, -1, -1),
        (0, 0, 0),
        (1, 1, 0),
        (-1, -1, 0),
        (0, 1, 0),
        (-1, 0, 0),
        (None, 1, None),
        (1, None, None),
    ],
)
def test_both_orders_make_an_outcome(before_first, after_first, outcome):
    """The correction wins where it was better in second place (-1) and in first (1); a changed mind is a tie."""
    assert decide(before_first, after_first) == outcome


@pytest.mark.parametrize("dimension", DIMENSIONS.values(), ids=DIMENSIONS.keys())
def test_a_prompt_shows_both_as_they_are(dimension):
    text = dimension.render("Q {a} {ask}", "first {b}", "second [[A]]")
    assert "[Question]\nQ {a} {ask}\n" in text and "[Response A]\nfirst {b}\n" in text and "second [[A]]" in text
    assert ("worse" in text) is dimension.names_worse


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_pairs_come_from_one_file_or_two(tmp_path):
    whole = write(
        tmp_path / "w.jsonl", {"question": "q", "answer": "a", "corrected": "c", "upstream": "gpt", "category": "x"}
    )
    [pair], faults = read_pairs(whole)
    assert (pair.question, pair.before, pair.after, pair.upstream, pair.category) == ("q", "a", "c", "gpt", "x")
    before = write(tmp_path / "b.jsonl", {"instruction": "q", "output": "first"})
    after = write(tmp_path / "a.jsonl", {"instruction": "q", "output": "second"})
    [pair], _ = read_pairs(after, before)
    assert (pair.before, pair.after, faults) == ("first", "second", [])


def test_rows_that_cannot_be_used_are_named_and_the_rest_goes_on(tmp_path):
    good = {"question": "q", "answer": "a", "corrected": ""}
    path = write(tmp_path / "f.jsonl", good, {"question": "q", "answer": "a"}, 7,
                 {**good, "corrected": None, "error": "row 4: it is refused."}, {**good, "answer": 3},
                 {**good, "answer": " "})  # fmt: skip
    pairs, faults = read_pairs(path)
    assert [pair.after for pair in pairs] == [""], "an empty correction is one"
    assert [fault.row for fault in faults] == [2, 3, 4, 5, 6] and "it is refused" in str(faults[2])


def test_passes_say_whether_the_last_one_changed_nothing(tmp_path):
    row = {"question": "q", "answer": "a", "corrected": "c"}
    path = write(tmp_path / "f.jsonl", {**row, "passes": ["c", "c"]}, {**row, "passes": ["b", "c"]}, row)
    assert [pair.settled for pair in read_pairs(path)[0]] == [True, False, None]


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    one = write(tmp_path / "1", {"question": "q", "answer": "a"})
    other = write(tmp_path / "2", {"question": "another", "answer": "a"})
    two = write(tmp_path / "3", *[{"question": "q", "answer": "a"}] * 2)
    with pytest.raises(UserError, match="another question than"):
        read_pairs(one, other)
    with pytest.raises(UserError, match="has 2 rows and"):
        read_pairs(one, two)
