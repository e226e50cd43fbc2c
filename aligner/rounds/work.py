"""What the stages of a round do that are no training: an upstream answers, an Aligner corrects, an upstream is measured.

Rows are worked on in parts of a fixed size, each a file that is written whole. So a row is decoded among the same others whether or
not the stage was killed before, and what is written is the same to the byte.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aligner.baselines.local import LocalModel, LocalUpstream
from aligner.baselines.protocol import ChatRequest, Reply, Responder
from aligner.baselines.served import ServedUpstream
from aligner.console import progress
from aligner.evaluation.measures.controls import shuffled
from aligner.evaluation.pairs import Pair, read_pairs
from aligner.files import COMPLETED, read_json, remove_folder, write_lines, write_text
from aligner.inference.command import job_of
from aligner.inference.config import AlignerOptions, CorrectConfig
from aligner.inference.correct_file import correct_file
from aligner.inference.greedy import STEADY_COST
from aligner.inference.likelihood import log_likelihood
from aligner.inference.servers import Server
from aligner.locks import take
from aligner.models import quiet_libraries
from aligner.readers.rows import read_rows
from aligner.records import DataError, UserError
from aligner.rounds.filters import Filters, reason_against
from aligner.rounds.stage import ABOUT, JOB, LOCK, PARTS

ANSWERS, CORRECTED, LIKELIHOODS, DROPPED = "answers.jsonl", "corrected.jsonl", "likelihoods.jsonl", "dropped.jsonl"
BATCHES = 8  # in a part: rows of like length are decoded together
Row = dict[str, Any]


def run_kind(kind: str, folder: Path) -> None:
    """Do the work of a stage, by what stands in its folder, and leave it complete."""
    quiet_libraries()
    release = take(folder / LOCK, f"{folder}: another process is writing this stage. Wait for its end, or stop it.")
    try:
        KINDS[kind](folder, {**read_json(folder / ABOUT), **read_json(folder / JOB)})
        write_text(folder / COMPLETED, "")
        remove_folder(folder / PARTS)
    finally:
        release()


def rows_in(file: str | Path) -> list[Row]:
    """The rows of a file that this program wrote."""
    rows = []
    for row in read_rows(file):
        if isinstance(row, DataError):
            raise row
        rows.append(row.value)
    return rows


def by_parts(
    folder: Path, rows: Sequence[Row], size: int, act: Callable[[Path, Path], None], name: str
) -> Iterator[list[Row]]:
    """What `act` makes of the rows, `size` at a time, from file to file; parts that are there are not made again."""
    starts = range(0, len(rows), size)
    for start in progress(starts, total=len(starts), desc=name, unit=" parts"):
        source, made = (folder / PARTS / f"{start:08}.{side}.jsonl" for side in ("in", "out"))
        if not made.exists():
            write_lines(source, rows[start : start + size])
            Path(f"{made}.journal").unlink(missing_ok=True)  # of a kill: the others would be batched anew
            act(source, made)
        yield rows_in(made)


def answer(folder: Path, settings: dict[str, Any]) -> None:
    """questions -> answers.jsonl: each question's fields with the upstream's answer. dropped.jsonl: those without one, and why."""
    open_upstream = functools.cache(lambda: _upstream(settings))
    threads = settings["concurrency"] if "url" in settings else settings["batch_size"]

    def act(source: Path, made: Path) -> None:
        rows = rows_in(source)
        replies: dict[int, Reply | UserError] = dict(
            open_upstream().stream([ChatRequest(row["question"]) for row in rows])
        )
        write_lines(made, [_answered(row, replies[place], settings) for place, row in enumerate(rows)])

    rows = [
        row
        for part in by_parts(folder, rows_in(settings["questions"]), BATCHES * threads, act, "answering")
        for row in part
    ]
    if not (kept := [row for row in rows if "reason" not in row]):
        raise UserError(f"no question was answered: {rows[0]['reason']}")
    write_lines(folder / DROPPED, [row for row in rows if "reason" in row])
    write_lines(folder / ANSWERS, kept)


def _upstream(settings: dict[str, Any]) -> Responder:
    """The upstream, here or behind a server."""
    longest = settings["max_new_tokens"]
    if "url" in settings:
        known = (settings[name] for name in ("url", "served", "key", "concurrency", "timeout"))
        return ServedUpstream(Server(*known), longest)
    local = LocalModel.load(settings["model"], settings["trust_remote_code"], settings["dtype"])
    return LocalUpstream(local, longest, settings["batch_size"])


def _answered(row: Row, reply: Reply | UserError, settings: dict[str, Any]) -> Row:
    if isinstance(reply, UserError) or not reply.text.strip():
        return {**row, "reason": str(reply) if isinstance(reply, UserError) else "the upstream gave no text"}
    unfinished = {} if reply.finished else {"answer_cut": True}
    return {**row, "answer": reply.text, **unfinished, "upstream": settings["name"]}


def correct(folder: Path, settings: dict[str, Any]) -> None:
    """answers -> corrected.jsonl, as `aligner correct` writes it."""
    names = ("batch_size", "max_new_tokens", "prompt_template", "dtype", "trust_remote_code")
    options = AlignerOptions(**{name: settings[name] for name in names})
    opened: list[Any] = []

    def act(source: Path, made: Path) -> None:
        job = job_of(CorrectConfig(str(source), str(made), options, model=settings["model"]))
        if not opened:  # for all parts
            opened.append(replace(job.stack[0], open=functools.cache(job.stack[0].open)))
        if decoder := getattr(opened[0].open(), "decoder", None):
            decoder.begin_anew(STEADY_COST)  # so a part comes out alike whatever was before it
        correct_file(replace(job, stack=opened), lambda items, **bar: items)

    rows = rows_in(settings["answers"])
    parts = by_parts(folder, rows, BATCHES * options.batch_size, act, "correcting")
    write_lines(folder / CORRECTED, [row for part in parts for row in part])


def measured_pairs(file: str) -> list[Pair]:
    """The pairs that an upstream is measured by: finished corrections that changed something."""
    pairs = [pair for pair in read_pairs(file)[0] if not reason_against(pair, Filters()) and pair.before != pair.after]
    if len({pair.question for pair in pairs}) < 2:
        raise UserError(
            f"{file}: the Aligner changed the answers of fewer than 2 held-out questions: there is nothing to measure. Give more "
            "with --held_out."
        )
    return pairs


def measure(folder: Path, settings: dict[str, Any]) -> None:
    """pairs -> likelihoods.jsonl: of each held-out question the log-probabilities, in nats and with end-of-text, that the upstream
    gives to the correction, to the answer, and to the correction of another question."""
    pairs = measured_pairs(settings["pairs"])
    others = shuffled([pair.after for pair in pairs], [pair.question for pair in pairs])
    open_model = functools.cache(
        lambda: LocalModel.load(settings["model"], settings["trust_remote_code"], settings["dtype"])
    )
    rows = [
        {"question": pair.question, "corrected": pair.after, "original": pair.before, "shuffled": other}
        for pair, other in zip(pairs, others, strict=True)
    ]

    def act(source: Path, made: Path) -> None:
        local = open_model()
        write_lines(made, [{"question": row["question"], **_likelihoods(local, row)} for row in rows_in(source)])

    parts = by_parts(folder, rows, BATCHES, act, "measuring")
    write_lines(folder / LIKELIHOODS, [row for part in parts for row in part])
    torch.cuda.empty_cache()


def _likelihoods(local: LocalModel, row: Row) -> dict[str, float]:
    sides = ("corrected", "original", "shuffled")
    prompt = local.encoder.render(local.template, row["question"], "")
    tokenised = local.encoder.pairs([prompt] * len(sides), [row[side] for side in sides])
    return {
        side: log_likelihood(local.model, ids, target) for side, (ids, target, _) in zip(sides, tokenised, strict=True)
    }


KINDS: dict[str, Callable[[Path, dict[str, Any]], None]] = {"answer": answer, "correct": correct, "measure": measure}
