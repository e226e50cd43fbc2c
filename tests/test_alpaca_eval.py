"""AlpacaEval: what is given to its program, and what is read back."""

from __future__ import annotations

import json
import stat

from test_correct_file import write

from aligner import cli

PROGRAM = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --model_outputs) after=$2;; --reference_outputs) before=$2;; --annotators_config) judge=$2;; --output_path) out=$2;;
    esac
    shift
done
grep -q '"output": "good"' "$after" && grep -q '"output": "bad"' "$before" && test -f "$judge/configs.yaml" || exit 3
test "$IS_ALPACA_EVAL_2" = False && test "$OPENAI_BASE_URL" = http://localhost:1/v1 || exit 4
mkdir -p "$out" && printf ',win_rate,mode,n_total\\nupstream+Aligner,75.0,community,1\\n' > "$out/leaderboard.csv"
"""


def test_its_program_gets_both_sides_and_its_leaderboard_is_read_back(tmp_path, capsys):
    """In the place of the package a script that looks at what it is given; the package itself is no dependency."""
    program = tmp_path / "alpaca_eval"
    program.write_text(PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    after = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "bad", "corrected": "good"}])
    command = ["evaluate", "--after", after, "--output", str(tmp_path / "out"), "--judge_model", "m",
               "--judge_url", "http://localhost:1/v1", "--alpaca_eval"]  # fmt: skip
    assert cli.main([*command, str(program)]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["alpaca_eval"] == {"win_rate": 75, "n_total": 1}
    assert "AlpacaEval: win_rate 75" in capsys.readouterr().out
    assert cli.main([*(word if word != "m" else "other" for word in command), str(program)]) == 0
    assert len(list((tmp_path / "out" / "alpaca_eval").glob("judge-*"))) == 2, "one judge's verdicts are not another's"
    program.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    assert cli.main([*command, str(program)]) == 2 and "failed (broken)" in capsys.readouterr().err
    assert cli.main([*command, "/no/where"]) == 2 and "there is no such program" in capsys.readouterr().err


def test_a_question_that_stands_twice_would_be_joined_crosswise(tmp_path, capsys):
    rows = [{"question": "q", "answer": name, "corrected": f"{name}!", "upstream": name} for name in ("one", "other")]
    command = ["evaluate", "--after", write(tmp_path / "a.jsonl", rows), "--output", str(tmp_path / "out")]
    assert (
        cli.main([*command, "--judge_model", "m", "--judge_url", "http://localhost:1/v1", "--alpaca_eval", "sh"]) == 2
    )
    assert "'q' stands 2 times" in capsys.readouterr().err
