"""record -> tokens: the ids a model sees in training, which of them are learned, and what became of every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aligner.encoder import Encoder
from aligner.records import Correction, DataError, Origin, UserError
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.tally import Tally, told_losses

BATCH = 512
IGNORED = -100  # the label of a token that is not learned, as in transformers and torch


@dataclass(frozen=True, slots=True)
class Tokens:
    """One record as ids: `ids[:prompt_length]` is the prompt, the rest is learned. Labels come from these lengths.

    cut: the end, and with it end-of-text, is missing. merged: the tokenizer merges across the border (encoder.py).
    """

    ids: np.ndarray
    prompt_length: int
    origin: Origin
    cut: bool
    merged: bool

    @property
    def target_length(self) -> int:
        """Number of learned tokens; at least 1."""
        return len(self.ids) - self.prompt_length

    def labels(self) -> list[int]:
        """The ids with the prompt's places ignored, as transformers takes them."""
        return [IGNORED] * self.prompt_length + self.ids[self.prompt_length :].tolist()


def tokenise(
    records: Sequence[Correction],
    prompts: RunPrompts,
    encoder: Encoder,
    max_length: int,
    overlength: str = "cut",
    unspellable: str = "keep",
    progress: Any = iter,
) -> tuple[list[Tokens], Tally]:
    """Turn records into tokens. `overlength`: what happens to a row above `max_length` tokens: cut, drop or error.

    `unspellable` says what happens to a row whose correction holds what the tokenizer cannot spell: keep, drop or error.
    Raises DataError under 'error', and UserError where no row is left. `progress` wraps the batches (tqdm does).
    """
    tally, kept = Tally(rows=len(records)), []
    for start in progress(range(0, len(records), BATCH)):
        batch = records[start : start + BATCH]
        rendered = [encoder.render(prompts.of(r), r.question, r.answer, r.feedback, r.prefix) for r in batch]
        corrections = [record.correction for record in batch]
        pairs = list(encoder.pairs(rendered, corrections))
        losses = encoder.lost([target[:-1] for _, target, _ in pairs], corrections)
        for record, (prompt, target, merged), lost in zip(batch, pairs, losses, strict=True):
            row = Tokens(np.array(prompt + target, dtype=np.int32), len(prompt), record.origin, False, merged)
            if encoder.holds_special(record):
                tally.add(Tally.SPECIAL, record.origin)
            if record.feedback and not prompts.of(record).takes_feedback:
                tally.add(Tally.UNREAD, record.origin)
            if record.prefix and not prompts.of(record).by_sentence:
                tally.add(Tally.UNREAD_PREFIX, record.origin)
            if lost is not None and not _keep_unspellable(record.origin, lost, unspellable, tally):
                continue
            if fitted := _fit(row, max_length, overlength, tally):
                kept.append(fitted)
    tally.kept = len(kept)
    if not kept:
        too_long = {Tally.NO_ROOM, Tally.TOO_LONG} & tally.places.keys()
        remedy = "Raise --max_length" if too_long else "Choose --unspellable keep, or another base model"
        raise UserError(f"no row is left: {'; '.join(line.strip() for line in tally.lines())}. {remedy}.")
    return kept, tally


def _keep_unspellable(origin: Origin, lost: Counter[str], unspellable: str, tally: Tally) -> bool:
    """Count a row whose correction the tokenizer cannot spell; whether it is kept."""
    if unspellable == "error":
        problem = f"'correction' holds what the tokenizer cannot spell ({told_losses(lost or {'': 1})})"
        raise DataError(*origin, problem, "Change the text or the base model, or choose --unspellable keep or drop")
    tally.add(Tally.NOT_SPELT if unspellable == "drop" else Tally.UNSPELT, origin)
    for character, count in (lost or {"": 1}).items():
        tally.lost[character] = tally.lost.get(character, 0) + count
    return unspellable != "drop"


def _fit(row: Tokens, max_length: int, overlength: str, tally: Tally) -> Tokens | None:
    if row.merged:
        tally.add(Tally.MERGED, row.origin)
    if len(row.ids) <= max_length:
        return row
    if overlength == "error":
        problem = f"has {len(row.ids):,} tokens and max_length is {max_length:,}"
        raise DataError(*row.origin, problem, "Shorten it, or choose --overlength cut or drop")
    if overlength == "drop" or row.prompt_length >= max_length:
        tally.add(Tally.NO_ROOM if row.prompt_length >= max_length else Tally.TOO_LONG, row.origin)
        return None
    tally.add(Tally.CUT, row.origin)
    return replace(row, ids=row.ids[:max_length], cut=True)
