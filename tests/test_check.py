"""The data doctor: what is unusable is told row by row, what is suspicious is counted with examples."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE

from aligner import cli
from aligner.quality.check import examine
from aligner.questions import QuestionIndex


def rows(file: Path, *triples: tuple[str, str, str]) -> str:
    names = ("question", "answer", "correction")
    file.write_text("".join(json.dumps(dict(zip(names, triple, strict=True))) + "\n" for triple in triples))
    return str(file)


def test_each_suspicion_by_eye(tmp_path):
    data = rows(
        tmp_path / "rows.jsonl",
        ("What is the capital of France, and since when?", "Lyon", "Paris, since 987."),
        ("Why?", "Because.", "Nobody knows."),
        ("Why?", "Because.", "Nobody knows."),  # again
        ("Why?", "Because.", "One wonders."),  # and with another correction
        ("Fine?", "Yes.", "Yes."),
        ("Is this cut? ##Answer: yes", "Yes.", "No."),
        ("Odd?", "a </s> b", "a b"),
        ("Bomb?", "Mix this.", "I'm sorry, but I cannot help with that."),
        ("what is the capital of FRANCE and since when", "Nice", "It is Paris."),
        ("Tell me: what is the capital of France, and since when?", "Nice", "It is Paris."),
    )
    against = rows(tmp_path / "eval.jsonl", ("What is the capital of France, and since when?", "x", "y"))
    found = {kind: finding for kind, finding in examine([data], evaluation=[against]).findings.items() if finding.count}
    assert {kind: finding.count for kind, finding in found.items()} == {
        "duplicate": 1, "conflict": 1, "equal": 1, "marker": 1, "special": 1, "refusal": 1, "overlap": 2, "near-overlap": 1,
    }  # fmt: skip
    assert found["duplicate"].examples == [f"{data} row 3 repeats {data} row 2"]
    assert found["conflict"].examples == [f"{data} row 4 and {data} row 2"]
    assert found["marker"].examples == [f"{data} row 6: '##Answer:' in the question"]
    assert found["special"].examples == [f"{data} row 7: '</s>' in the answer"]


def test_questions_are_alike_by_three_quarters_of_their_word_triples():
    known = QuestionIndex(["one two three four five six seven eight", "short"])
    assert known.like("One, two; three four five six seven EIGHT!") == (True, None)
    assert known.like("one two three four five six seven eight nine") == (
        False,
        "one two three four five six seven eight",
    )
    assert known.like("one two three four five nine ten eleven") == (False, None)
    assert known.like("shorts") == (False, None)


def test_who_is_alike_is_the_same_as_by_comparing_each_with_each():
    drawn = random.Random(3)
    texts = [" ".join(drawn.choices("abc", k=drawn.randint(3, 9))) for _ in range(300)]

    def triples(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[n : n + 3]) for n in range(len(words) - 2)}

    def alike(one: str, other: str) -> bool:
        return len(triples(one) & triples(other)) >= 0.75 * len(triples(one) | triples(other))

    known = QuestionIndex(texts[:150])
    for text in texts[150:]:
        same, near = known.like(text)
        assert same == (text in texts[:150])
        assert same or (near is not None) == any(alike(text, other) for other in texts[:150])


@pytest.mark.parametrize("text", ["I'm sorry, but I can't help.", "I\u2019m sorry, but I can\u2019t help."])
def test_a_refusal_is_one_with_either_apostrophe(text, tmp_path):
    assert examine([rows(tmp_path / "d.jsonl", ("q", "a", text))]).findings["refusal"].count == 1


def test_the_exit_status_says_whether_every_row_can_be_used(tmp_path, capsys):
    bad = rows(tmp_path / "bad.jsonl", ("q", "a", "c"), ("q", "a", ""))
    same = rows(tmp_path / "same.jsonl", ("q", "a", "a"))
    assert cli.main(["check", str(TEMPLATE)]) == 0
    assert cli.main(["check", bad]) == 1
    assert cli.main(["check", same]) == 0
    assert cli.main(["check", same, "--fail_on", "equal"]) == 1
    assert cli.main(["check", same, "--fail_on", "duplicate", "conflict"]) == 0
    assert cli.main(["check", str(TEMPLATE), "--fail_on", "cut"]) == 2  # needs a tokenizer
    assert cli.main(["check", str(TEMPLATE), "--fail_on", "overlap"]) == 2  # needs data to compare with
    assert cli.main(["check", same, "--eval_datasets", bad]) == 1  # a row there could not be compared
    said = capsys.readouterr().out
    assert "bad.jsonl row 2: 'correction' is empty" in said and "was not compared" in said
    assert cli.main(["check", "no-such.json"]) == 2
    capsys.readouterr()


def test_a_file_that_cannot_be_read_is_named_beside_the_others(tmp_path, capsys):
    good, empty, broken = rows(tmp_path / "good.jsonl", ("q", "a", "c")), tmp_path / "empty.jsonl", tmp_path / "b.json"
    empty.write_text("\n")
    broken.write_text('[{"question"}]')
    assert cli.main(["check", good, str(empty), str(broken)]) == 2
    said = capsys.readouterr().out
    assert f"{empty}: has no rows. Check the path" in said and f"{broken}: broken JSON at line 1 column 13" in said
    assert "1 of 1 rows are usable" in said


def test_the_usable_rows_are_written_and_the_rest_is_said(tmp_path, capsys):
    data = rows(tmp_path / "rows.jsonl", ("q", "a", "c"), ("q", "a", ""), ("r", "ä\u2028", "c"))
    clean = tmp_path / "clean.jsonl"
    assert cli.main(["check", data, "--output", str(clean)]) == 1
    assert f"2 rows written to {clean}, 1 left out" in capsys.readouterr().out
    assert cli.main(["check", str(clean)]) == 0
    assert [json.loads(line)["answer"] for line in clean.read_text(encoding="utf-8").split("\n")[:-1]] == [
        "a",
        "ä\u2028",
    ]
    other = rows(tmp_path / "eval.jsonl", ("q", "a", "c"))
    for kept in (data, other):  # never over what is read
        assert cli.main(["check", data, "--eval_datasets", other, "--output", kept]) == 2


def test_a_repetition_names_the_row_that_it_repeats(tmp_path):
    data = rows(tmp_path / "rows.jsonl", ("q", "a", "c"), ("q", "a", "d"), ("q", "a", "d"))
    found = examine([data]).findings
    assert found["conflict"].examples == [f"{data} row 2 and {data} row 1"]
    assert found["duplicate"].examples == [f"{data} row 3 repeats {data} row 2"]


def test_rows_without_room_for_a_target_are_a_finding_beside_the_others(tmp_path, capsys, tiny_model):
    data = rows(tmp_path / "rows.jsonl", ("q", "a", "a"), ("q", "", "a"))
    assert cli.main(["check", data, "--model_name_or_path", str(tiny_model), "--max_length", "4"]) == 1
    said = capsys.readouterr().out
    assert "no room for a target" in said and "row 2: 'answer' is empty" in said and "equal: 1" in said


def test_many_faults_are_told_together_and_one_by_one_as_json(tmp_path, capsys):
    data = rows(tmp_path / "rows.jsonl", *[("q", "a", "")] * 300, ("q", "a", "c"))
    assert cli.main(["check", data]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{data} rows 1, 2, 3, 4, 5 and 295 more") and "'correction' is empty" in first
    assert cli.main(["check", data, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [fault["row"] for fault in report["unusable"]] == list(range(1, 301)) and report["usable"] == 1


def test_lengths_of_many_rows_come_from_a_sample(tmp_path, capsys, tiny_model, monkeypatch):
    monkeypatch.setattr("aligner.quality.command.SAMPLE", 10)
    data = rows(tmp_path / "rows.jsonl", *[(f"question {n}", "a", "c") for n in range(50)])
    assert cli.main(["check", data, "--model_name_or_path", str(tiny_model)]) == 0
    assert "of a sample of 10 rows (--exact takes all)" in capsys.readouterr().out
    assert cli.main(["check", data, "--model_name_or_path", str(tiny_model), "--exact"]) == 0
    assert "50 of 50 rows kept" in capsys.readouterr().out


def test_a_reader_that_has_read_enough_is_no_error():
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m aligner check {TEMPLATE} | true"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stderr == ""


@pytest.mark.slow
def test_a_million_rows_in_five_minutes_and_two_gigabytes():
    """Of JSON lines, the same compressed, and Parquet; the table in aligner/readers/README.md has what it took."""
    command = [sys.executable, "-m", "tests.benchmarks.reading"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = re.findall(r"\| ([\d.]+) s \(\d+ s\), (\d+) MB \| ([\d.]+) \|", done.stdout)
    assert len(figures) == 3, done.stdout
    for seconds, memory, ratio in figures:
        assert float(seconds) < 300 and int(memory) < 2000 and float(ratio) < 1.5, done.stdout
