"""AlpacaEval through its own package: answers and corrections as two models, judged by its annotators, its leaderboard read back.

The package (`pip install alpaca_eval`, best in an environment of its own) is a program here, not an import. Its length-controlled
rate needs its own 805 instructions and data from the hub; for other questions it gives the plain win rate.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from aligner.evaluation.pairs import Pair
from aligner.files import write_json, write_text
from aligner.records import UserError

PROMPT = """<|im_start|>user
Which of two outputs follows the instruction better, for most people?

Instruction:
{instruction}

Output (a):
{output_1}

Output (b):
{output_2}

Begin your reply with the better one, as Output (a) or Output (b).
<|im_end|>
"""
SIDES = ("upstream", "upstream+Aligner")


@dataclass(frozen=True)
class AlpacaEval:
    """How to run it. `judge`: the name or folder of an annotators config; without one, `model` at `url` judges."""

    program: str
    judge: str | None = None
    model: str | None = None
    url: str | None = None
    key: str | None = None


def export_outputs(pairs: Sequence[Pair], folder: Path) -> dict[str, Path]:
    """Write a `model_outputs.json` for each of the two: rows of instruction, output and generator."""
    written = {}
    for side, texts in zip(SIDES, ([p.before for p in pairs], [p.after for p in pairs]), strict=True):
        rows = [
            {"instruction": pair.question, "output": text, "generator": side, "dataset": pair.category or "questions"}
            for pair, text in zip(pairs, texts, strict=True)
        ]
        written[side] = folder / side / "model_outputs.json"
        write_json(written[side], rows)
    return written


def annotator(parent: Path, model: str) -> Path:
    """Write an annotators config for a model of an OpenAI-compatible server. The package keeps verdicts beside it without their
    judge's name, so each model and prompt has a folder of its own."""
    folder = parent / f"judge-{hashlib.sha256(f'{model}{PROMPT}'.encode()).hexdigest()[:8]}"
    write_text(folder / "prompt.txt", PROMPT)
    judge = {
        "prompt_template": str((folder / "prompt.txt").resolve()),
        "fn_completions": "openai_completions",
        "completions_kwargs": {"model_name": model, "max_tokens": 50, "temperature": 0},
        "completion_parser_kwargs": {"outputs_to_match": {1: r"(?:^|\n) ?Output \(a\)", 2: r"(?:^|\n) ?Output \(b\)"}},
        "batch_size": 1,
    }
    write_text(folder / "configs.yaml", yaml.safe_dump({"judge": judge}, sort_keys=False))
    return folder


def run_alpaca_eval(how: AlpacaEval, pairs: Sequence[Pair], folder: Path) -> dict[str, float]:
    """Run the package on the pairs; the leaderboard's row of the corrected answers, win rates in per cent.

    UserError where the program is not there or fails.
    """
    if shutil.which(how.program) is None:
        raise UserError(
            f"--alpaca_eval {how.program}: there is no such program. 'pip install alpaca_eval' into an environment of its own."
        )
    questions = Counter(pair.question for pair in pairs)
    if twice := next((question for question, count in questions.items() if count > 1), None):
        raise UserError(
            f"--alpaca_eval goes by the question, and '{twice[:60]}' stands {questions[twice]} times. Give each upstream's rows a "
            "file of their own."
        )
    judge = how.judge or str(annotator(folder, how.model or "").resolve())
    files = export_outputs(pairs, folder)
    address = {"OPENAI_BASE_URL": how.url} if how.url else {}
    # With its second version's rate it would fetch the difficulties of its own instructions.
    variables = {**os.environ, **address, "OPENAI_API_KEY": how.key or "none", "IS_ALPACA_EVAL_2": "False"}
    variables.pop("PYTHONPATH", None)  # its environment is another one
    flags = {
        "--model_outputs": str(files[SIDES[1]]),
        "--reference_outputs": str(files[SIDES[0]]),
        "--annotators_config": judge,
        "--output_path": str(folder / "results"),
    }
    command = [how.program, *(word for flag in flags.items() for word in flag)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    write_text(folder / "alpaca_eval.log", done.stdout + done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{how.program} failed ({last[:200]}). Its output is in {folder / 'alpaca_eval.log'}.")
    return leaderboard(folder / "results" / "leaderboard.csv")[SIDES[1]]


def leaderboard(file: Path) -> dict[str, dict[str, float]]:
    """The rows of a leaderboard by model, with what of them is a number."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {row[""]: {name: float(cell) for name, cell in row.items() if name and _is_number(cell)} for row in rows}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
