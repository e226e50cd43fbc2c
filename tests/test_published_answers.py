"""AlpacaEval's and MT-Bench's own files go in as they are."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from test_correct_file import lines, write

from aligner.cli import main
from aligner.evaluation.pairs import read_pairs
from aligner.inference.published_answers import read_answers
from aligner.records import DataError, UserError

QUESTIONS = [{"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
             {"question_id": 82, "category": "math", "turns": ["Count.", "On."]}]  # fmt: skip


def answers(model: str, *texts: list[str]) -> list[dict]:
    return [
        {
            "question_id": 81 + n,
            "answer_id": "x",
            "model_id": model,
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": 1.5,
        }
        for n, turns in enumerate(texts)
    ]


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "model_answer").mkdir()
    write(tmp_path / "question.jsonl", QUESTIONS)
    write(tmp_path / "model_answer" / "m.jsonl", answers("m", ["a1", "a2"], ["b1", "b2"]))
    write(tmp_path / "model_answer" / "n.jsonl", answers("n", ["A1", "A2"], ["B1", "B2"]))
    return tmp_path


def test_rows_of_benchmarks_have_a_question_and_an_answer(tmp_path, bench):
    alpaca = tmp_path / "model_outputs.json"
    alpaca.write_text(json.dumps([{"instruction": "Why?", "output": "So.", "generator": "g", "dataset": "helpful_base"},
                                  {"instruction": "Sum", "input": "1 2", "output": "3", "generator": "g"}]))  # fmt: skip
    assert [(r.value["question"], r.value["answer"], r.value["generator"]) for r in read_answers(alpaca)] == [
        ("Why?", "So.", "g"), ("Sum\n\n1 2", "3", "g")]  # fmt: skip
    rows = [row.value for row in read_answers(bench / "model_answer" / "m.jsonl")]
    assert [(row["question"], row["answer"], row["turn"], row["category"], row["upstream"]) for row in rows] == [
        ("Write.", "a1", 1, "writing", "m"),
        ("Human: Write.\n\nAssistant: a1\n\nHuman: Again.", "a2", 2, "writing", "m"),
        ("Count.", "b1", 1, "math", "m"),
        ("Human: Count.\n\nAssistant: b1\n\nHuman: On.", "b2", 2, "math", "m"),
    ]
    assert [row.value["question"] for row in read_answers(bench / "question.jsonl")] == ["Write.", "Count."]


def test_what_does_not_fit_together_is_named(tmp_path, bench):
    write(tmp_path / "alone.jsonl", answers("m", ["a1"]))
    (tmp_path / "question.jsonl").unlink()
    with pytest.raises(UserError, match=r"alone\.jsonl: is MT-Bench's answers, and there is no .*question\.jsonl"):
        list(read_answers(tmp_path / "alone.jsonl"))
    write(tmp_path / "other.jsonl", QUESTIONS[1:])
    [row] = read_answers(tmp_path / "alone.jsonl", str(tmp_path / "other.jsonl"))
    assert isinstance(row, DataError) and "question_id 81 is not in the question file" in str(row)
    write(tmp_path / "other.jsonl", QUESTIONS)
    write(tmp_path / "alone.jsonl", answers("m", ["a1", "a2", "a3"], [7]))
    rows = list(read_answers(tmp_path / "alone.jsonl", str(tmp_path / "other.jsonl")))
    assert all("turns are not those" in str(row) for row in rows) and len(rows) == 2
    plain = {"question": "q", "answer": "a", "choices": [], "question_id": 3, "instruction": "i"}
    write(tmp_path / "plain.jsonl", [plain])
    assert [row.value for row in read_answers(tmp_path / "plain.jsonl")] == [plain], (
        "a row of this program's stays as it is"
    )


def test_correct_and_evaluate_take_them(tmp_path, bench, tiny_model):
    out = tmp_path / "corrected.jsonl"
    flags = ["--prompt_template", "correction", "--max_new_tokens", "4", "--keep_unfinished"]
    source = str(bench / "model_answer" / "m.jsonl")
    assert main(["correct", "--model", str(tiny_model), "--input", source, "--output", str(out), *flags]) == 0
    assert [(row["answer"], row["question_id"], row["turn"]) for row in lines(out)] == [
        ("a1", 81, 1), ("a2", 81, 2), ("b1", 82, 1), ("b2", 82, 2)]  # fmt: skip
    pairs, faults = read_pairs(str(out))
    assert not faults and len(pairs) == 4 and all(pair.unfinished for pair in pairs)


def evaluated(folder, *flags) -> list[bool]:
    """Whether the report of `aligner evaluate` shows these texts."""
    assert main(["evaluate", "--output", str(folder / "out"), *map(str, flags)]) == 0
    page = (folder / "out" / "report.html").read_text()
    return [word in page for word in ("a1", "A1", "b2", "B2")]


def test_evaluate_compares_two_models_of_mt_bench_and_of_alpaca_eval(tmp_path, bench):
    before, after = bench / "model_answer" / "m.jsonl", bench / "model_answer" / "n.jsonl"
    assert all(evaluated(tmp_path / "mt", "--before", before, "--after", after))
    for name, texts in (("before", ("a1", "b2")), ("after", ("A1", "B2"))):
        rows = [{"instruction": f"q{n}", "output": text, "generator": name} for n, text in enumerate(texts)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    assert all(evaluated(tmp_path / "alpaca", "--before", tmp_path / "before.json", "--after", tmp_path / "after.json"))


def test_evaluate_reads_standard_input(tmp_path, monkeypatch, capsys):
    row = {"question": "q", "answer": "a1 b2", "corrected": "A1 B2"}
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(row).encode())))
    assert all(evaluated(tmp_path, "--after", "-"))
    assert main(["evaluate", "--after", "-", "--before", "-", "--output", str(tmp_path / "both")]) == 2
    assert "standard input is one of them" in capsys.readouterr().err
