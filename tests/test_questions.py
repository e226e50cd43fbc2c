"""When questions are the same and when nearly: by pairs that a person judges, and counted on real questions and translations."""

from __future__ import annotations

import json
import random

import pytest
from conftest import ROOT, SHARED
from hypothesis import given
from hypothesis import strategies as st
from odd_files import DIFFERENT, SAME

from aligner.quality.check import examine
from aligner.questions import QuestionIndex, question_key, tokens
from aligner.records import Correction, Origin
from aligner.training.datasets.mixture import split

README = ROOT / "aligner" / "quality" / "README.md"

# Per language a long question, the same one spelt otherwise, and one whose end was changed: nearly the same.
TRANSLATIONS = json.loads((ROOT / "tests" / "questions_in_ten_languages.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spelling_does_not_make_another_question(one, other):
    assert question_key(one) == question_key(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_signs_and_marks_make_another_question(one, other):
    assert question_key("???") != question_key("!?!")
    for frame in ("{}", "What is {}?", "Is {} right? Say why"):
        assert question_key(frame.format(one)) != question_key(frame.format(other))


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_question_is_recognised_in_every_script(language):
    question, respelt, changed = TRANSLATIONS[language]
    known = QuestionIndex([question])
    assert known.like(respelt) == (True, None)
    assert known.like(changed) == (False, question)
    others = [texts[0] for name, texts in TRANSLATIONS.items() if name != language]
    assert QuestionIndex(others).like(question) == (False, None)


@given(st.text(st.sampled_from("ab12 .,?!;:'\"-\n"), max_size=12))
def test_the_quick_way_for_plain_english_gives_the_same(text):
    assert question_key(text) == (" ".join(tokens(text)) or " ".join(text.split()))


@given(st.text(max_size=30))
def test_space_around_a_question_is_not_part_of_it(text):
    assert question_key(f"  {text} \t") == question_key(text)


def test_the_split_the_overlap_and_the_duplicates_use_the_same_key(tmp_path):
    pairs = [*SAME[:12], *DIFFERENT[:12]]
    for number, (one, other) in enumerate(pairs):
        same = number < 12
        rows = [{"question": q, "answer": "a", "correction": "c"} for q in (one, other)]
        data, against = tmp_path / "data.json", tmp_path / "eval.json"
        data.write_text(json.dumps(rows))
        against.write_text(json.dumps(rows[:1]))
        found = examine([str(data)], evaluation=[str(against)]).findings
        assert (found["duplicate"].count, found["overlap"].count) == (int(same), 1 + same), (one, other)
        records = [Correction(q, "a", "c", Origin("f", n)) for n, q in enumerate((one, other, "something else"))]
        sides = {tuple(r.origin.row for r in side) for seed in range(20) for side in split(records, 0.34, seed)}
        assert any((0 in side) != (1 in side) for side in sides) != same


# --- rates on real questions


def respelt(question: str) -> dict[str, str]:
    """The same question as other people would type it."""
    return {
        "upper case": question.upper(),
        "no closing punctuation": question.rstrip(" .?!"),
        "curly quotes, two spaces": question.replace("'", "\u2019").replace('"', "\u201d").replace(" ", "  "),
    }


def altered(question: str, draw: random.Random) -> dict[str, str]:
    """Nearly the same question."""
    words = question.split()
    place = draw.randrange(1, len(words) - 1)
    return {
        "'Please answer:' in front": f"Please answer: {question}",
        "last word changed": " ".join([*words[:-1], "otherwise"]),
        "a word left out": " ".join([*words[:place], *words[place + 1 :]]),
    }


def real_questions() -> dict[str, list[str]]:
    """The different questions of each real set, by name."""
    files = {
        "PandaLM": "qac_pandalm",
        "XSTest": "eval_xstest",
        "HH-RLHF": "qac_hh_rlhf",
        "TruthfulQA": "eval_truthfulqa",
    }
    rows = {name: json.loads((SHARED / f"{file}.json").read_text(encoding="utf-8")) for name, file in files.items()}
    return {name: list(dict.fromkeys(row["question"] for row in rows[name])) for name in rows}


def rates(questions: list[str]) -> list[str]:
    """The cells of the README's table: how many are taken for another one, and how many percent are recognised."""
    known, near = QuestionIndex([]), 0
    for question in questions:
        near += known.like(question)[1] is not None
        known.add(question)
    draw = random.Random(1)
    same = [[known.like(text)[0] for text in respelt(question).values()] for question in questions]
    long = [question for question in questions if len(tokens(question)) >= 15]
    alike = [[any(known.like(text)) for text in altered(question, draw).values()] for question in long]
    shares = [f"{100 * sum(column) / len(column):.1f}" for part in (same, alike) for column in zip(*part, strict=True)]
    return [
        f"{len(questions):,}",
        str(len(questions) - len(known.exact)),
        str(near),
        *shares[:3],
        f"{len(long):,}",
        *shares[3:],
    ]


def table() -> str:
    """The rates on the real sets, as they stand in the README."""
    names = [
        "set",
        "questions",
        "same as another",
        "nearly as another",
        *respelt("a b c"),
        "of 15 words or more",
        *altered("a b c", random.Random(1)),
    ]
    rows = [names, ["---"] * len(names), *([name, *rates(questions)] for name, questions in real_questions().items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real questions are not here")
def test_the_rates_in_the_readme_are_those_of_the_real_questions():
    assert table() in README.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
