"""The rows of an experiment: of each side of the questions, and of each run, as files that its steps read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner.evaluation.measures.controls import shuffled
from aligner.evaluation.measures.own_words import TARGETS as OWN_WORDS
from aligner.evaluation.measures.own_words import own_words_rows
from aligner.evaluation.measures.ratings import rated_rows
from aligner.evaluation.measures.text_scores import shown_objectives, words
from aligner.files import write_lines
from aligner.objectives import read_objectives
from aligner.records import Correction, UserError
from aligner.refusals import REFUSALS, declines, is_unsafe
from aligner.reproduce.experiment import Experiment, Fields, digest_of, rows_by_side
from aligner.training.datasets.mixture import mix
from aligner.training.datasets.options import QAC, Options
from aligner.training.datasets.rated import Pairing, records_of_ratings

DAMAGED = "choose-damaged.jsonl"  # the answers to choose by as an Aligner that restores gets them


def files_of(experiment: Experiment) -> list[str]:
    """The files of rows, each once: the experiment's, and those that a run has of its own."""
    own = [file for run in experiment.scales["small"].runs.values() for file in run.get("rows", ())]
    return list(dict.fromkeys([*experiment.rows, *own]))


def long_enough(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose answer has the words that one needs to be measured."""
    return [row for row in rows if len(words(row.get("answer", ""))) >= experiment.fewest_words]


def write_rows(experiment: Experiment, data: Path, folder: Path) -> dict[str, int]:
    """Write the rows of each side, and of each run, to `folder`. Returns how many of each. Prompts that a model has not answered
    yet are counted, and not written."""
    if unknown := set(experiment.rated or ()) - set(shown_objectives()):
        raise UserError(
            f"{experiment.name}: no text is rated in {min(unknown)}. 'pip install \"qac-aligner[objectives]\"' for its measure, or "
            f"take it out of 'rated'. There are {', '.join(shown_objectives())}."
        )
    if unknown := set(experiment.own_words) - set(OWN_WORDS):
        raise UserError(
            f"{experiment.name}: own_words: there is no '{min(unknown)}'. There are {', '.join(OWN_WORDS)}."
        )
    write = True
    if experiment.upstream:
        answers = folder.parent / "answers"
        write = all((answers / file).exists() for file in files_of(experiment))
        data = answers if write else data
    sides, counts = rows_by_side(experiment, data, experiment.rows), {}
    for side in set(sides) - {"train"}:
        sides[side] = long_enough(experiment, sides[side])
    if missing := set(experiment.types_held_back) - {row.get("type") for row in sides["report"]}:
        known = sorted({row["type"] for rows in sides.values() for row in rows if isinstance(row.get("type"), str)})
        raise UserError(
            f"{experiment.name}: types_held_back: no prompt is of the type '{min(missing)}'. There are {', '.join(known)}."
        )
    for side, rows in sides.items():
        counts[side] = min(len(rows), experiment.answers.get(side, len(rows)))
        if write:
            _write_side(experiment, side, rows, counts[side], folder)
    for name, run in experiment.scales["small"].runs.items():
        if "like" in run:
            continue
        files = tuple(run.get("rows", experiment.rows))
        own = sides if files == experiment.rows else rows_by_side(experiment, data, files)
        trained = _rows_of_run(experiment, name, run, own["train"])
        counts[name] = round(len(trained) * float(run.get("share", 1)))
        if write:
            write_lines(folder / f"train-{name}.jsonl", trained)
            if run.get("shuffled"):
                _write_shuffled(experiment, folder / f"train-{name}.jsonl")
    return counts


def _write_side(experiment: Experiment, side: str, rows: list[dict[str, Any]], most: int, folder: Path) -> None:
    """The rows of a side: to measure by, out of all files, and those of a part behind the others."""
    if side != "train":
        rows = sorted(rows, key=lambda row: (row.get("part", ""), digest_of(row["question"])))
    file = folder / f"{side}.jsonl"
    write_lines(file, [_with_refusal(row) if experiment.upstream else row for row in rows[:most]])
    if side == "choose" and experiment.damage:
        records = _records(experiment, file)
        write_lines(folder / DAMAGED, ({name: getattr(record, name) for name in QAC} for record in records))


def _with_refusal(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt and its answer with the correction: a refusal where it should have declined, else the answer."""
    wrong = is_unsafe(row) and not declines(row["answer"])
    return {**row, "correction": REFUSALS[0] if wrong else row["answer"]}


def _rows_of_run(experiment: Experiment, name: str, run: Fields, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that a run is trained on. UserError where there are none."""
    if "upstream" in run:
        rows = [row for row in rows if row.get("upstream") == run["upstream"]]
    if not rows:
        raise UserError(f"{experiment.name}: the run '{name}' has no rows to train on.")
    if not experiment.rated:
        return rows
    own, rated = (
        {name: most for name, most in each.items() if name != run.get("leave_out")}
        for each in (experiment.own_words, experiment.rated)
    )
    records = [
        record
        for row in rated_rows(rows, rated)
        for record in records_of_ratings(
            row["question"], [(each["text"], each["ratings"]) for each in row["answers"]], Pairing("both")
        )
    ]
    return [*own_words_rows(rows, own), *(_fields(each) for each in records if isinstance(each, Correction))]


def _fields(record: Correction) -> dict[str, Any]:
    """A record as a row of `correction-json`."""
    return {**{name: getattr(record, name) for name in QAC}, "objectives": list(record.objectives)}


def _records(experiment: Experiment, file: Path) -> Sequence[Correction]:
    """The records of a file of rows."""
    options = Options(hold_back=experiment.damage) if experiment.damage else Options()
    return mix([f"{experiment.data_set}::{file}"], 0, options, objectives=read_objectives()).records


def _write_shuffled(experiment: Experiment, file: Path) -> None:
    """Replace the file's records by the same ones with their corrections dealt out among the questions; where an objective stands
    in the prompt, with their objectives in another order."""
    records = _records(experiment, file)
    if experiment.rated:
        asked = random.Random(0).sample([list(each.objectives) for each in records], len(records))
        rows = [{**_fields(each), "objectives": own} for each, own in zip(records, asked, strict=True)]
    else:
        corrections = shuffled([each.correction for each in records], [each.question for each in records])
        rows = [
            {"question": each.question, "answer": each.answer, "correction": own}
            for each, own in zip(records, corrections, strict=True)
        ]
    write_lines(file, rows)
