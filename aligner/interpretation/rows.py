"""The rows of an interpretation: which say something, which are fitted on, which are held out, and which are steered on."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from random import Random

from aligner.evaluation.pairs import Pair, named_fields, read_pairs
from aligner.inference.corrector import Corrector
from aligner.interpretation.config import FEWEST, InterpretConfig
from aligner.interpretation.directions import Tokens
from aligner.models import positions_of
from aligner.records import UserError
from aligner.terminal import print_errors
from aligner.training.datasets.options import QAC, parse_columns


def chosen_rows(config: InterpretConfig) -> tuple[list[Pair], list[str]]:
    """The rows that say something, in a random order of their questions, and what became of the others."""
    columns = parse_columns(config.columns, "") or QAC
    pairs, faults = read_pairs(config.input, None, **named_fields(columns))
    for fault in faults[:3]:
        print_errors(f"warning: {fault}")
    changed = [pair for pair in pairs if pair.before != pair.after and pair.after.strip()]
    order = sorted({pair.question for pair in changed})
    Random(config.seed).shuffle(order)
    place = {question: number for number, question in enumerate(order)}
    notes = [f"{len(faults):,} rows cannot be used"] if faults else []
    if same := len(pairs) - len(changed):
        notes.append(f"{same:,} rows left out: their correction is their answer, or empty")
    return sorted(changed, key=lambda pair: place[pair.question]), notes


def split(
    config: InterpretConfig, corrector: Corrector, rows: Sequence[Pair]
) -> tuple[list[Pair], list[Pair], list[str]]:
    """The rows to fit on and those held out, no question on both sides. UserError where too few have room in the model."""
    positions = positions_of(corrector.model.config) or 10**9
    wanted = config.fit_rows + config.held_out_rows
    kept: list[Pair] = []
    for number, pair in enumerate(rows):
        if len(kept) == wanted:
            rows = rows[:number]
            break
        tokens = tokens_of(corrector, pair)
        longest = max(len(ids[: config.tokens]) for ids in (tokens.copy, tokens.correction))
        if len(tokens.prompt) + longest <= positions:
            kept.append(pair)
    middle = config.fit_rows if len(kept) == wanted else len(kept) // 3
    while 0 < middle < len(kept) and kept[middle].question == kept[middle - 1].question:
        middle += 1
    if min(middle, len(kept) - middle) < FEWEST:
        questions = len({pair.question for pair in kept})
        raise UserError(
            f"{config.input}: {len(kept):,} usable rows of {questions:,} different questions; {FEWEST} rows to fit on and {FEWEST} "
            "of other questions are the fewest. Give more."
        )
    lost = len(rows) - len(kept)
    return kept[:middle], kept[middle:], [f"{lost:,} rows left out: longer than the model's positions"] if lost else []


def tokens_of(corrector: Corrector, pair: Pair) -> Tokens:
    """A row as ids: the prompt, and behind it the answer and the correction as training would have them."""
    prompt = corrector.encoder.render(corrector.template, pair.question, pair.before, "")
    (ids, copy, _), (_, correction, _) = corrector.encoder.pairs([prompt, prompt], [pair.before, pair.after])
    return Tokens(ids, copy, correction)


def effect_pairs(config: InterpretConfig, corrector: Corrector, held: Sequence[Pair]) -> list[tuple[str, str]]:
    """Held-out answers to steer on: those that leave a correction room to be half as long again."""
    rooms = [ceil(1.5 * len(tokens_of(corrector, pair).copy)) for pair in held]
    short = [
        (pair.question, pair.before)
        for pair, room in zip(held, rooms, strict=True)
        if room <= config.options.max_new_tokens
    ]
    if len(short) < FEWEST:
        raise UserError(
            f"{config.input}: {len(short):,} of {len(held):,} held-out answers are short enough to be corrected in "
            f"{config.options.max_new_tokens:,} tokens, and {FEWEST} are needed. Give "
            f"--max_new_tokens {sorted(rooms)[FEWEST - 1]}."
        )
    return short[: config.effect_rows]
