"""Records -> the rows of ids that TRL's trainers take: the correction is the better completion and the answer the worse.

The ids are those that this project trains and asks with (encoder.py): special strings in fields are text, and no start token is
added before a chat template that has one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from aligner.encoder import Encoder
from aligner.prompts import PromptTemplate
from aligner.records import Correction, DataError, UserError
from aligner.training.datasets.tally import Tally

SAME = "dropped: the correction is the answer: there is nothing to prefer"
NO_ANSWER = "dropped: there is no answer to prefer the correction to"
TWICE = "dropped: the question stands in an earlier row"
Row = dict[str, Any]


def training_rows(
    method: str,
    records: Sequence[Correction],
    prompt: PromptTemplate,
    encoder: Encoder,
    max_length: int,
    overlength: str,
    batch: int,
    seed: int,
) -> tuple[list[Row], Tally]:
    """The rows of a method, and what became of every record. batch: rows of a micro-batch, within which KTO compares.

    UserError where no row is left, or the prompt shows an answer, which an upstream is to write itself.
    """
    if "answer" in prompt.slots:
        raise UserError(
            f"--method {method} trains an upstream, which sees no answer: the prompt '{prompt.name}' shows one. Give "
            "--prompt_template question, or a YAML file without {answer}."
        )
    tally = Tally(rows=len(records))
    if method in ("rloo", "grpo"):
        rows = _questions(records, prompt, encoder, max_length, tally)
    else:
        rows = _preferences(records, prompt, encoder, max_length, overlength, tally)
        rows = (
            _as_reward_rows(rows, encoder.eos)
            if method == "reward"
            else _judged(rows, batch, seed)
            if method == "kto"
            else rows
        )
    if not tally.kept:
        raise UserError(f"no row is left: {'; '.join(line.strip() for line in tally.lines())}.")
    return rows, tally


def _preferences(
    records: Sequence[Correction],
    prompt: PromptTemplate,
    encoder: Encoder,
    max_length: int,
    overlength: str,
    tally: Tally,
) -> list[Row]:
    """Ids of the prompt, of the correction and of the answer, each with end-of-text where it has room."""
    rows = []
    for record in records:
        if record.correction == record.answer or not record.answer:
            tally.add(SAME if record.answer else NO_ANSWER, record.origin)
            continue
        rendered = encoder.render(prompt, record.question, "")
        sides = list(encoder.pairs([rendered] * 2, [record.correction, record.answer]))
        ids, room = sides[0][0], max_length - len(sides[0][0])
        if encoder.holds_special(record):
            tally.add(Tally.SPECIAL, record.origin)
        if any(merged for _, _, merged in sides):
            tally.add(Tally.MERGED, record.origin)
        if (longest := max(len(target) for _, target, _ in sides)) > room:
            if overlength == "error":
                problem = f"has {len(ids) + longest:,} tokens and max_length is {max_length:,}"
                raise DataError(*record.origin, problem, "Shorten it, or choose --overlength cut or drop")
            fate = Tally.NO_ROOM if room < 1 else Tally.TOO_LONG if overlength == "drop" else Tally.CUT
            tally.add(fate, record.origin)
            if fate != Tally.CUT:
                continue
        chosen, rejected = (target[:room] for _, target, _ in sides)
        rows.append({"prompt_ids": ids, "chosen_ids": chosen, "rejected_ids": rejected})
        tally.kept += 1
    return rows


def _questions(
    records: Sequence[Correction], prompt: PromptTemplate, encoder: Encoder, max_length: int, tally: Tally
) -> list[Row]:
    """Each question once: its prompt as text, by which TRL calls it and shows it to the reward model, and as ids. max_length: of
    the prompt."""
    start = "" if encoder.is_complete(prompt) else str(encoder.tokenizer.decode(encoder.start))
    rows: dict[str, Row] = {}
    for record in records:
        ids = encoder.prompts([encoder.render(prompt, record.question, "")])[0]
        text = start + prompt.render(record.question, "")
        if text in rows or len(ids) > max_length:
            tally.add(TWICE if text in rows else Tally.NO_ROOM, record.origin)
            continue
        rows[text] = {"prompt": text, "prompt_ids": ids}
        tally.kept += 1
    return list(rows.values())


def _as_reward_rows(rows: Sequence[Row], eos: int) -> list[Row]:
    """Prompt and completion in one, as a reward model is shown them while another is trained: without end-of-text."""
    sides = ("chosen_ids", "rejected_ids")
    return [{side: row["prompt_ids"] + [i for i in row[side] if i != eos] for side in sides} for row in rows]


def _judged(rows: Sequence[Row], batch: int, seed: int) -> list[Row]:
    """Completions with the label whether they are the better one, in a seeded order; and another row's completion of the same
    micro-batch, by which KTO estimates how far the model has moved (its trainer reads rows in their order)."""
    judged = [
        {"prompt_ids": row["prompt_ids"], "completion_ids": row[f"{side}_ids"], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    random.Random(seed).shuffle(judged)
    for start in range(0, len(judged), batch):
        some = judged[start : start + batch]
        for row, other in zip(some, [some[-1], *some[:-1]], strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
    return judged
