"""Known artefacts of the registered sets: what the registry does about each, and how many there are in the real files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, SHARED
from odd_files import ALIKE, EMPTY, HUMAN, REPLIES, WORDLESS

from aligner.quality.check import examine
from aligner.records import Correction, Skipped
from aligner.training.datasets.options import Options
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import parse_spec

README = ROOT / "aligner" / "training" / "datasets" / "README.md"
ASKED = "\n\nHuman: Q\n\nAssistant:"


def hh(tmp_path: Path, chosen: str, rejected: str = " bad", before: str = ASKED, **options):
    file = tmp_path / "hh.jsonl"
    file.write_text(json.dumps({"chosen": before + chosen, "rejected": before + rejected}) + "\n")
    (row,) = records_of(parse_spec(f"hh-rlhf::{file}"), Options(**options))
    return row


@pytest.mark.parametrize(
    ("reply", "reason"),
    REPLIES,
)
def test_a_reply_that_is_none_is_left_out_with_its_reason(reply, reason, tmp_path):
    for options in ({}, {"multi_turn": True}):
        row = hh(tmp_path, reply, **options)
        assert isinstance(row, Skipped) and row.reason == reason
        if reason != ALIKE:  # in the answer as well
            row = hh(tmp_path, " good", reply, **options)
            assert isinstance(row, Skipped) and row.reason == reason


@pytest.mark.parametrize(
    "reply",
    [" Ok.", " A quote from Human: a history.", " No Human: just me", " 42", " The human: us.", " \u4f60\u597d"],
)
def test_a_reply_that_only_looks_odd_is_taken(reply, tmp_path):
    assert isinstance(hh(tmp_path, reply), Correction)


def test_a_human_turn_inside_a_long_dialogue_is_its_question(tmp_path):
    before = "\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\n\nAssistant:"
    assert isinstance(hh(tmp_path, " good", before=before, multi_turn=True), Correction)


@pytest.mark.parametrize(("source", "kept"), [("truthful_qa", False), ("evol_instruct", True), (None, True)])
def test_rows_of_an_evaluation_set_are_left_out_of_ultrafeedback(source, kept, tmp_path):
    question = {"role": "user", "content": "Q"}
    row = {"prompt": "Q", "chosen": [question, {"role": "assistant", "content": "good"}],
           "rejected": [question, {"role": "assistant", "content": "bad"}], **({"source": source} if source else {})}  # fmt: skip
    file = tmp_path / "ultra.jsonl"
    file.write_text(json.dumps(row))
    (found,) = records_of(parse_spec(f"ultrafeedback::{file}"))
    assert isinstance(found, Correction) == kept
    assert kept or found.reason == "its question is one of an evaluation set (truthful_qa)"


@pytest.mark.parametrize(
    "text", ["Human: I do not understand.", "Yes.\n\nHuman: Why?", "Assistant: Yes.", "Well.  Human: no."]
)
def test_marker_sees_another_turn_in_an_answer_or_correction_and_not_in_a_dialogue_as_question(text, tmp_path):
    good = {"question": "q", "answer": "a", "correction": "c"}
    for field, count in (("correction", 1), ("answer", 1), ("question", 0)):
        file = tmp_path / "rows.json"
        file.write_text(json.dumps([{**good, field: text}]))
        assert examine([str(file)]).findings["marker"].count == count


# --- in the real files

FILES = {
    "hh-rlhf (test, 1,217 single-turn pairs)": "qac_hh_rlhf",
    "ultrafeedback (435 of its instructions with three upstreams)": "qac_ultrafeedback_upstreams",
    "published Aligner-2B corrections (AlpacaEval, 1,316)": "qac_aligner2b_alpacaeval",
    "PandaLM (760)": "qac_pandalm",
    "TruthfulQA (4,390)": "qac_truthfulqa",
}


def counts(name: str, scratch: Path) -> list[int]:
    """Of a real file: what the registry leaves out of it as HH-RLHF's pairs, and what `aligner check` counts in it."""
    rows = json.loads((SHARED / f"{name}.json").read_text(encoding="utf-8"))
    pairs = scratch / "pairs.jsonl"
    turn = "\n\nHuman: {question}\n\nAssistant: {reply}"
    as_pair = ({side: turn.format(question=row["question"], reply=row[field]) for side, field in
                (("chosen", "correction"), ("rejected", "answer"))} for row in rows)  # fmt: skip
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in as_pair))
    read = records_of(parse_spec(f"hh-rlhf::{pairs}"), Options(multi_turn=True))
    reasons = Counter(row.reason for row in read if isinstance(row, Skipped))
    found = examine([str(SHARED / f"{name}.json")]).findings
    one_word = sum(len(row["correction"].split()) == 1 for row in rows)
    overlap = (
        examine([str(SHARED / f"{name}.json")], evaluation=[str(SHARED / "qac_truthfulqa.json")])
        .findings["overlap"]
        .count
    )
    return [reasons[HUMAN], reasons[WORDLESS], reasons[EMPTY], one_word, found["equal"].count, found["refusal"].count,
            found["duplicate"].count, overlap]  # fmt: skip


def table(scratch: Path) -> str:
    """The counts, as they stand in the README."""
    names = [
        "file",
        "human's turn",
        "no word",
        "empty",
        "one word",
        "equal",
        "refusal",
        "duplicate",
        "TruthfulQA's question",
    ]
    rows = [names, ["---"] * len(names)]
    rows += [[title, *(f"{count:,}" for count in counts(name, scratch))] for title, name in FILES.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_the_counts_in_the_readme_are_those_of_the_real_files(tmp_path):
    assert table(tmp_path) in README.read_text(encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        print(table(Path(folder)))
