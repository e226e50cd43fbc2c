"""record -> tokens: the ids a model sees in training, and which of them are learned.

Prompt and correction are tokenised together; where that begins with the prompt's own ids, it is used as it is. Where
the tokenizer merges across the border ('ASSISTANT:' and a leading quotation mark), the prompt's ids are followed by the
correction encoded on its own. So training and inference see the same prompt ids. Labels come from lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from aligner.prompts import PromptTemplate
from aligner.records import Correction, DataError, Origin, UserError

BATCH = 512
IGNORED = -100  # the label of a token that is not learned, as in transformers and torch
# A correction encoded on its own is encoded behind one of these, whose ids are then removed: behind nothing, a
# SentencePiece tokenizer would add a space that the text does not have.
ANCHORS = ("\n", "a", "1")


@dataclass(frozen=True, slots=True)
class Tokens:
    """One record as ids: `ids[:prompt_length]` is the prompt, the rest is learned. `merged`: see the module's text."""

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


@dataclass
class Tally:
    """What became of the rows: counts, and for each reason the first places it was met."""

    rows: int = 0
    kept: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    NO_ROOM = "dropped: the prompt leaves no room for a target"
    TOO_LONG = "dropped: longer than max_length"
    CUT = "cut: the correction ends without end-of-text"
    MERGED = "border: the tokenizer merges prompt and correction"
    SPECIAL = "special: a field holds a special token's string, kept as text"

    def add(self, reason: str, origin: Origin) -> None:
        """Count one row under a reason."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        places = self.examples.setdefault(reason, [])
        if len(places) < 3:
            places.append(str(origin))

    def lines(self) -> list[str]:
        """The tally for a reader, a line per reason."""
        head = f"{self.kept:,} of {self.rows:,} rows kept"
        return [head, *(f"  {count:,} {r} ({', '.join(self.examples[r])})" for r, count in self.counts.items())]


class Encoder:
    """A tokenizer as this project uses it: text is text, and what the tokenizer itself puts in front (BOS) stays."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token, so a model could never learn to stop.")
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        bare, full = self._encode(["a"])[0], tokenizer("a", add_special_tokens=True)["input_ids"]
        self.start: list[int] = (
            list(full[: len(full) - len(bare)]) if full[-len(bare) :] == bare else self._front(full, bare)
        )
        self.special_strings = tuple(tokenizer.all_special_tokens)

    @staticmethod
    def _front(full: Sequence[int], bare: Sequence[int]) -> list[int]:
        """What stands before the text where the tokenizer also puts something behind it."""
        for start in range(len(full) - len(bare) + 1):
            if list(full[start : start + len(bare)]) == list(bare):
                return list(full[:start])
        return []

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of prompts, as training and inference both see them."""
        return [self.start + ids for ids in self._encode(texts)]

    def pairs(self, prompts: Sequence[str], corrections: Sequence[str]) -> Iterator[tuple[list[int], list[int], bool]]:
        """For each pair: the prompt's ids, the correction's ids with end-of-text, and whether the border merged."""
        joint = self._encode([p + c for p, c in zip(prompts, corrections, strict=True)])
        for prompt, whole, correction in zip(self._encode(prompts), joint, corrections, strict=True):
            merged = whole[: len(prompt)] != prompt
            target = self._tail(correction) if merged else whole[len(prompt) :]
            yield self.start + prompt, [*target, self.eos], merged

    def _tail(self, text: str) -> list[int]:
        for anchor in ANCHORS:
            front, whole = self._encode([anchor, anchor + text])
            if whole[: len(front)] == front:
                return whole[len(front) :]
        return self._encode([text])[0]

    def holds_special(self, record: Correction) -> bool:
        """Whether a field holds the string of a special token."""
        return any(s in t for s in self.special_strings for t in (record.question, record.answer, record.correction))


def check_template(template: PromptTemplate, encoder: Encoder) -> None:
    """UserError where the template's own text holds a special token's string, which would be read as text."""
    for special in encoder.special_strings:
        if special in template.literals():
            raise UserError(
                f"prompt template '{template.name}' holds '{special}', a special token of this tokenizer. "
                "Prompts are plain text; leave it out."
            )


def tokenise(
    records: Sequence[Correction],
    template: PromptTemplate,
    encoder: Encoder,
    max_length: int,
    overlength: str = "cut",
    progress: Any = iter,
) -> tuple[list[Tokens], Tally]:
    """Turn records into tokens. `overlength` says what happens to a row above `max_length` tokens: cut, drop or error.

    Raises DataError under 'error', and UserError where no row is left. `progress` wraps the batches (tqdm does).
    """
    check_template(template, encoder)
    tally, kept = Tally(rows=len(records)), []
    for start in progress(range(0, len(records), BATCH)):
        batch = records[start : start + BATCH]
        prompts = [template.render(record.question, record.answer) for record in batch]
        pairs = encoder.pairs(prompts, [record.correction for record in batch])
        for record, (prompt, target, merged) in zip(batch, pairs, strict=True):
            row = Tokens(np.array(prompt + target, dtype=np.int32), len(prompt), record.origin, False, merged)
            if encoder.holds_special(record):
                tally.add(Tally.SPECIAL, record.origin)
            if fitted := _fit(row, max_length, overlength, tally):
                kept.append(fitted)
    tally.kept = len(kept)
    if not kept:
        raise UserError(f"no row is left to train on: {'; '.join(tally.lines())}. Raise --max_length.")
    return kept, tally


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
