"""Corrected answers become rows that train an upstream: what is kept and dropped, and that other readers see the same texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_correct_file import write

from aligner import cli
from aligner.training.datasets.mixture import mix

ROWS: list[dict[str, Any]] = [
    {"question": "Boil an egg?", "answer": "Eight minutes, fool.", "corrected": "Eight minutes.", "upstream": "small"},
    {"question": "2 + 2?", "answer": "Four.", "corrected": "Four."},
    {"question": "Why?", "answer": "Because.", "corrected": "Because of the", "finished": False},
    {"question": "Who?", "answer": "Me.", "corrected": None, "error": "no room"},
    {
        "question": "Where?",
        "answer": "Here.",
        "corrected": "Here, and everywhere that anybody may wish to look for it.",
    },
]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def pairs(tmp_path: Path, *flags: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    output = tmp_path / "-".join(["pairs", *flags]).replace("/", "_")
    assert cli.main(["pairs", write(tmp_path / "after.jsonl", rows), "--output", str(output), *flags]) == 0
    assert (output / "COMPLETED").is_file()
    return output


def test_corrections_are_taught_and_preferred_and_what_is_neither_is_named_with_its_reason(tmp_path, capsys):
    output = pairs(tmp_path, "--form", "aligner", "--aligner", "aligner-2b", "--round", "1")
    assert [row["correction"] for row in lines(output / "supervised.jsonl")] == [
        "Eight minutes.",
        "Four.",
        ROWS[4]["corrected"],
    ]
    preferences = lines(output / "preference.jsonl")
    assert preferences[0] == {
        "question": "Boil an egg?", "answer": "Eight minutes, fool.", "correction": "Eight minutes.", "upstream": "small",
        "aligner": "aligner-2b", "round": 1, "source": f"{tmp_path}/after.jsonl row 1",
    }  # fmt: skip
    assert [row["question"] for row in preferences] == ["Boil an egg?", "Where?"]
    dropped = {row["row"]: (row["from"], row["reason"]) for row in lines(output / "dropped.jsonl")}
    assert dropped == {
        2: ("preference", "unchanged: there is nothing to prefer"),
        3: ("both", "unfinished: the correction has no end"),
        4: ("both", "unusable: was not corrected"),
    }
    assert json.loads((output / "pairs.json").read_text())["preference"] == 2
    assert "5 corrected answers: 3 supervised rows, 2 preferences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (["--least_edit", "0.1"], ["Boil an egg?", "Where?"]),
        (["--least_edit", "0.5"], ["Where?"]),  # 6 of 34 characters of the first are taken out
        (["--length_ratio", "0.5", "3"], ["Boil an egg?", "2 + 2?"]),
    ],
)
def test_filters_drop_what_they_say(flags, left, tmp_path):
    assert [row["prompt"][0]["content"] for row in lines(pairs(tmp_path, *flags) / "supervised.jsonl")] == left


@pytest.mark.parametrize(
    ("wanted", "dimensions", "left"),
    [
        ("better", [], ["Boil an egg?"]),
        ("not_worse", [], ["Boil an egg?", "2 + 2?"]),
        ("better", ["helpful"], ["Boil an egg?", "Where?"]),
    ],
)
def test_a_judge_decides_what_is_trained_on(wanted, dimensions, left, tmp_path):
    outcomes = {
        "Boil an egg?": {"helpful": 1, "harmless": 0},
        "Where?": {"helpful": 1, "harmless": -1},
        "Why?": {"helpful": None},
    }
    verdicts = [
        {
            **{name: row[name] for name in ("question", "answer", "corrected")},
            "dimension": dimension,
            "outcome": outcome,
        }
        for row in ROWS
        for dimension, outcome in outcomes.get(row["question"], {}).items()
    ]
    flags = ["--verdicts", write(tmp_path / "verdicts.jsonl", verdicts), "--wanted", wanted]
    flags += ["--dimensions", *dimensions] if dimensions else []
    output = tmp_path / "out"
    assert cli.main(["pairs", write(tmp_path / "after.jsonl", ROWS), "--output", str(output), *flags]) == 0
    assert [row["prompt"][0]["content"] for row in lines(output / "supervised.jsonl")] == left


@pytest.mark.parametrize("form", ["trl", "llamafactory", "aligner"])
def test_the_rows_of_every_form_are_read_back_as_the_same_texts(form, tmp_path):
    output = pairs(tmp_path, "--form", form)
    records = mix([str(output / "preference.jsonl")], 0).records
    assert [(r.question, r.answer, r.correction) for r in records] == [
        (row["question"], row["answer"], row["corrected"]) for row in (ROWS[0], ROWS[4])
    ]


def test_llamafactory_finds_both_files_in_its_registry(tmp_path):
    output = pairs(tmp_path, "--form", "llamafactory")
    registry = json.loads((output / "dataset_info.json").read_text())
    for entry in registry.values():
        first = lines(output / entry["file_name"])[0]
        columns = entry.get("columns", {"prompt": "instruction", "query": "input", "response": "output"})
        assert all(isinstance(first[name], str) for name in columns.values())
    assert registry["aligner_preference"]["ranking"] and not registry["aligner_supervised"].get("ranking")


@pytest.mark.parametrize(
    ("flags", "finding"),
    [
        (["--least_edit", "2"], "--least_edit is 2.0: it is a share"),
        (["--length_ratio", "3", "1"], "give the least and the most"),
        (["--dimensions", "helpful"], "give --verdicts too"),
        (["--length_ratio", "90", "99"], "no row is left of 5 .*1 unfinished.*Loosen the filters"),
    ],
)
def test_what_cannot_be_done_is_one_line(flags, finding, tmp_path, capsys):
    after = write(tmp_path / "after.jsonl", ROWS)
    assert cli.main(["pairs", after, "--output", str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err
    assert re.search(finding, said) and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_over(tmp_path, capsys):
    output = pairs(tmp_path)
    assert cli.main(["pairs", str(tmp_path / "after.jsonl"), "--output", str(output)]) == 2
    assert "is already there" in capsys.readouterr().err


def test_a_file_that_is_named_twice_is_not_read_twice(tmp_path, capsys):
    file = Path(write(tmp_path / "after.jsonl", ROWS))
    again = file.parent / ".." / file.parent.name / file.name
    assert cli.main(["pairs", str(file), str(again), "--output", str(tmp_path / "out")]) == 2
    assert "a file is named twice" in capsys.readouterr().err and not (tmp_path / "out").exists()
