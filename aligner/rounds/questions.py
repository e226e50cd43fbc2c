"""The questions of a run: those that are trained on, and those that it is measured by. No question is both, nor twice in one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aligner.files import sha256_of, write_json, write_lines
from aligner.inference.published_answers import read_answers
from aligner.questions import question_key
from aligner.records import DataError, UserError
from aligner.refusals import is_unsafe
from aligner.rounds.config import RoundsConfig
from aligner.rounds.stage import RoundStage
from aligner.texts import text_fault

TRAIN, HELD_OUT, HELP_AND_HARM = "train.jsonl", "held_out.jsonl", "help_and_harm.jsonl"
Questions = dict[str, dict[str, Any]]  # by digest, so that their order does not depend on the file's


def question_stage(config: RoundsConfig) -> RoundStage:
    """Write the questions of each side."""
    files = {name: getattr(config, name) for name in ("questions", "held_out", "help_and_harm")}
    local = {name: sha256_of(file) for name, file in files.items() if file and Path(file).exists()}
    decides = {**files, **local, "limit": config.limit}
    return RoundStage(
        "questions", Path(config.output) / "questions", decides, make=lambda folder: _write(config, folder)
    )


def _write(config: RoundsConfig, folder: Path) -> None:
    left_out: list[dict[str, Any]] = []
    train = read_questions(config.questions, left_out)
    if config.held_out.isdecimal():
        if (count := int(config.held_out)) >= len(train):
            raise UserError(
                f"{config.questions}: has {len(train):,} questions and {count:,} are held out: none is left to train on. Give "
                "more questions, or --held_out N."
            )
        held_out = dict(list(train.items())[:count])
    else:
        held_out = read_questions(config.held_out, left_out)
    chosen = [row for digest, row in train.items() if digest not in held_out][: config.limit]
    if not chosen:
        raise UserError(
            f"{config.questions}: every question of it is held out in {config.held_out}: none is left to train on."
        )
    write_lines(folder / TRAIN, chosen)
    write_lines(folder / HELD_OUT, held_out.values())
    if config.help_and_harm:
        prompts = read_questions(config.help_and_harm, left_out, with_kind=True)
        write_lines(folder / HELP_AND_HARM, prompts.values())
    write_json(folder / "left_out.json", left_out)


def read_questions(file: str, left_out: list[dict[str, Any]], with_kind: bool = False) -> Questions:
    """The questions of a file, each once. Unusable rows go to `left_out` with the reason. with_kind: whether one is to be declined
    stands beside it. UserError where there is none."""
    questions: Questions = {}
    for row in read_answers(file):
        if isinstance(row, DataError):
            if row.row is None:
                raise row
            left_out.append({"file": row.file, "row": row.row, "reason": row.problem})
            continue
        fields = row.value if isinstance(row.value, dict) else {}
        if fault := text_fault(row.origin, "question", fields.get("question")):
            left_out.append({"file": row.origin.file, "row": row.origin.row, "reason": fault.problem})
            continue
        try:
            kind = {"unsafe": is_unsafe(fields)} if with_kind else {}
        except ValueError as error:
            raise DataError(*row.origin, str(error), "Say which prompts are to be declined") from None
        digest = hashlib.sha256(question_key(fields["question"]).encode()).hexdigest()
        questions.setdefault(digest, {"question": fields["question"], **kind})
    if not questions:
        raise UserError(f"{file}: has no question that can be used" + _first(left_out))
    return dict(sorted(questions.items()))


def _first(left_out: Iterable[dict[str, Any]]) -> str:
    reason = next((each for each in left_out), None)
    return f": row {reason['row']}: {reason['reason']}." if reason else ". Check the path."
