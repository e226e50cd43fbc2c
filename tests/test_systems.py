"""`aligner evaluate --systems`: each against each, and one Elo table."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from test_correct_file import write
from test_evaluate import responses

from aligner import cli
from aligner.evaluation.judging import Verdict
from aligner.evaluation.pairs import Pair
from aligner.evaluation.systems import System, match, parse_system, standings
from aligner.records import Origin, UserError


def file_of(folder: Path, name: str, quality: list[int]) -> str:
    return write(
        folder / f"{name}.jsonl",
        [{"question": f"q{n}", "answer": f"quality {q}", "category": "ab"[n % 2]} for n, q in enumerate(quality)],
    )


def better(prompt: str) -> str:
    """Prefers the higher quality that a response says of itself."""
    a, b = (int(found[1]) for text in responses(prompt) if (found := re.search(r"quality (\d+)", text)))
    return "[[A]]" if a > b else "[[B]]" if b > a else "[[Equal]]"


def compete(told: Any, folder: Path, *systems: str) -> dict[str, Any]:
    told.rule = better
    status = cli.main(["evaluate", "--systems", *systems, "--output", str(folder / "out"), "--judge", "served", "--judge_url",
                       told.url, "--judge_model", "m", "--dimensions", "helpful"])  # fmt: skip
    assert status == 0
    return json.loads((folder / "out" / "report.json").read_text())


def test_three_systems_stand_in_one_table(told, tmp_path, capsys):
    """The second beats the first on 6 of 8 questions, the third the second on all: 400 log10(6 / 2) and so on."""
    files = [f"{name}={file_of(tmp_path, name, quality)}" for name, quality in
             (("weak", [2] * 8), ("middle", [3] * 6 + [1] * 2), ("strong", [9] * 8))]  # fmt: skip
    report = compete(told, tmp_path, *files)
    rated = report["elo"]["helpful"]
    assert rated["weak"]["elo"] == 1500 and rated["weak"]["elo"] < rated["middle"]["elo"] < rated["strong"]["elo"]
    assert rated["strong"]["judged"] == 16 and rated["middle"]["low"] < rated["middle"]["elo"] < rated["middle"]["high"]
    groups = report["verdicts"]["helpful"]["by_upstream"]
    assert groups["weak against middle"]["wins"] == 6 and groups["weak against middle"]["losses"] == 2
    assert groups["weak against middle"]["elo"] == pytest.approx(1500 + 400 * math.log10(6 / 2))
    assert report["verdicts"]["helpful"]["rate"] is None, "matches of several systems have no rate in common"
    assert report["verdicts"]["helpful"]["by_category"] == {}, "nor have their categories"
    said = capsys.readouterr().out.splitlines()
    place = said.index("helpful: Elo")
    assert [line.split()[0] for line in said[place + 1 : place + 4]] == ["strong", "middle", "weak"]


def test_a_field_that_is_none_is_said(tmp_path):
    with pytest.raises(UserError, match="there is no field 'answers'; there are corrected"):
        parse_system(f"one={file_of(tmp_path, 'one', [1])}:answers")


def judged(one: str, other: str, question: int, outcome: int) -> Verdict:
    pair = Pair(Origin("f", question), f"q{question}", "a", "b", match(one, other))
    return Verdict(pair, "helpful", outcome, ("x", "y"), (0, 0))


def test_two_systems_have_the_papers_elo_and_an_interval_over_questions():
    """60 wins, 20 losses, 20 ties: d = 0.4, 1500 + 400 log10(1.4 / 0.6) = 1647.2. The interval's ends are those of d +- 1.96 times
    its standard error, sqrt((0.8 - 0.16) / 100) = 0.08."""
    rows = [judged("old", "new", n, outcome) for n, outcome in enumerate([1] * 60 + [-1] * 20 + [0] * 20)]
    found = standings([System("old", "o"), System("new", "n")], rows)["helpful"]["new"]
    formula = lambda d: 1500 + 400 * math.log10((1 + d) / (1 - d))  # noqa: E731
    assert found["elo"] == pytest.approx(formula(0.4), abs=1e-6) == pytest.approx(1647.2, abs=0.1)
    assert found["low"] == pytest.approx(formula(0.4 - 1.96 * 0.08), abs=12)
    assert found["high"] == pytest.approx(formula(0.4 + 1.96 * 0.08), abs=16)


def test_a_dimension_in_which_a_system_was_never_read_has_no_table():
    rows = [judged("a", "b", 1, 1)]
    assert standings([System("a", "a"), System("b", "b"), System("c", "c")], rows) == {}


def test_one_file_can_hold_two_systems_and_a_failed_row_is_nobodys_answer(told, tmp_path, capsys):
    rows = [{"question": f"q{n}", "answer": "quality 1", "corrected": "quality 2"} for n in range(3)]
    rows.append({"question": "q3", "answer": "quality 1", "corrected": None, "error": "too long"})
    file = write(tmp_path / "c.jsonl", rows)
    told.rule = better
    command = ["evaluate", "--systems", f"upstream={file}:answer", f"aligned={file}:corrected", "--output", str(tmp_path / "out"),
               "--judge", "served", "--judge_url", told.url, "--judge_model", "m", "--dimensions", "helpful"]  # fmt: skip
    assert cli.main(command) == 1, "a row was left out"
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["verdicts"]["helpful"]["wins"] == 3 and "was not corrected" in capsys.readouterr().out
    turned = ["evaluate", "--systems", f"aligned={file}", f"upstream={file}:answer", *command[4:]]
    assert cli.main([*turned, "--limit", "2"]) == 1
    found = json.loads((tmp_path / "out" / "report.json").read_text())["verdicts"]["helpful"]
    assert (found["pairs"], found["losses"]) == (2, 2), "two questions of each match"


def test_a_row_without_a_correction_is_not_judged_by_its_answer(told, tmp_path, capsys):
    rows = [{"question": f"q{n}", "answer": "quality 1", "corrected": "quality 2"} for n in range(3)]
    del rows[1]["corrected"]
    files = [f"a={file_of(tmp_path, 'a', [1] * 3)}", f"b={write(tmp_path / 'b.jsonl', rows)}"]
    command = ["evaluate", "--systems", *files, "--output", str(tmp_path / "out")]
    assert cli.main(command) == 1 and "row 2: the field 'corrected' is missing" in capsys.readouterr().out


def test_what_names_no_system_is_said(tmp_path, capsys):
    assert (
        parse_system("a=x:y.jsonl") == System("a", "x:y.jsonl") and parse_system("a=f.jsonl:answer").field == "answer"
    )
    with pytest.raises(UserError, match="write NAME=FILE"):
        parse_system("only-a-file.jsonl")
    one = file_of(tmp_path, "one", [1])
    for flags, said in (([f"a={one}"], "needs two or more"), ([f"a={one}", f"a={one}"], "a name of its own"),
                        ([f"a={one}", f"b={one}", "--models", "."], "does not go with")):  # fmt: skip
        assert cli.main(["evaluate", "--systems", *flags, "--output", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
