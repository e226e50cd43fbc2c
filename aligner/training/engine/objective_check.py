"""At the start of a run: is the objective that is about to be minimised the model's own? A few tokens of a few rows tell.

Names of families and settings cannot: a wrapper may leave out what its inner configuration asks for, a head may be scaled or
capped in code, a model may look ahead. So the logits decide, through the engine, once. Called by all ranks, on equal rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from aligner.records import UserError
from aligner.training.datasets.supervised import Tokens
from aligner.training.datasets.token_table import lengths_of
from aligner.training.engine.batching import Layout, MicroBatch, collate
from aligner.training.engine.engine import Engine

LONGEST = 24  # tokens of a row that are looked at
ROWS = 3
log = logging.getLogger("aligner")


def check_objective(engine: Engine, tokens: Sequence[Tokens], rows: int, pad: int) -> None:
    """Compare the flattened objective with the model's own logits, row by row; where it differs rows are padded from here on.

    `rows`: of a padded micro-batch. UserError where padded rows give another loss too, or a token sees those behind it, or the
    model's code computes no loss of a row.
    """
    few = _few(tokens)
    if not few:
        return
    with torch.no_grad():
        own = _own_loss(engine, few, tokens[int(np.argmax(lengths_of(tokens)))], pad)
        engine.deepspeed.eval()
        if engine.flat:
            flat = _loss(engine, collate(few, [1.0] * len(few), Layout(True, rows, 0, pad)), flat=True)
            # Padding costs time alone, so a doubt is enough; and ranks must agree on it, since each pass is a pass of all.
            if engine.ranks.any(not _equal(flat, own, engine, 0.005)):
                padded = _padded_loss(engine, few, rows, pad)
                if engine.ranks.any(not _is_rounding(flat, own, padded, engine)):
                    engine.pad_rows()
                    log.warning(
                        "  rows are padded: without padding the loss of %s tokens is %.4f, and by the model's own logits "
                        "%.4f",
                        sum(row.target_length for row in few),
                        flat,
                        own,
                    )
        if not engine.flat:
            _check_padded(engine, few, rows, pad, own)
        _check_order(engine, few[0], pad)
        _tell_the_rest(engine, few[0], pad)


def _own_loss(engine: Engine, few: Sequence[Tokens], longest: Tokens, pad: int) -> float:
    """The loss of each row alone, not padded. UserError with the model's own words where its code has none for such rows."""
    alone = [collate([row], [1.0], Layout(False, 1, 0, pad)) for row in (longest, *few)]
    try:
        engine.deepspeed.train()  # some take rows to use that they do not take to train
        _loss(engine, alone[0], flat=False)
        engine.deepspeed.eval()
        return sum(_loss(engine, batch, flat=False) for batch in alone[1:])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's code may raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{_name(engine)}: its own code computes no loss of a row of {len(longest.ids)} tokens ({type(error).__name__}: "
            f"{reason}). Train another base model, or correct its config.json."
        ) from error


def _few(tokens: Sequence[Tokens]) -> list[Tokens]:
    """The beginnings of rows of unequal length, each with something to learn."""
    few: list[Tokens] = []
    for place in np.linspace(0, len(tokens) - 1, min(ROWS, len(tokens))).astype(int):
        row, most = tokens[place], LONGEST - 7 * len(few)
        ids = np.asarray(row.ids)[-most:]  # the end: there the correction is
        few.append(Tokens(ids, min(4, len(ids) - 1), row.origin, False, False))
    return [row for row in few if len(row.ids) > 1]


def _loss(engine: Engine, batch: MicroBatch, flat: bool, own: bool = False) -> float:
    """The summed negative log-likelihood of a micro-batch, on this rank."""
    objective = engine.deepspeed.module
    before = objective.flat
    objective.set_flat(flat)
    try:
        return float(engine.deepspeed(batch.to(engine.ranks.device), own))
    finally:
        objective.set_flat(before)


def _equal(one: float, other: float, engine: Engine, narrow: float = 0.03) -> bool:
    """Whether two losses differ by rounding alone. `narrow`: what 16 bit may make of it, relative."""
    if next(engine.model.parameters()).dtype in (torch.float16, torch.bfloat16):
        limit = narrow
    else:
        limit = 1e-3 if engine.ranks.device.type == "cuda" else 2e-5  # a GPU may multiply in tf32
    return abs(one - other) <= limit * abs(other)


def _is_rounding(flat: float, own: float, padded: float, engine: Engine) -> bool:
    """Whether a flattened loss is off by no more than 16 bits make of the same sums in another order, as padded rows have them (on
    an H100 0.7 % of the loss of 39 tokens was seen)."""
    return _equal(flat, own, engine) and abs(flat - own) <= 2 * abs(padded - own)


def _padded_loss(engine: Engine, few: Sequence[Tokens], rows: int, pad: int) -> float:
    layout = Layout(False, rows, 0, pad)
    parts = [few[start : start + rows] for start in range(0, len(few), rows)]
    return sum(_loss(engine, collate(part, [1.0] * len(part), layout), flat=False) for part in parts)


def _check_padded(engine: Engine, few: Sequence[Tokens], rows: int, pad: int, own: float) -> None:
    padded = _padded_loss(engine, few, rows, pad)
    if not _equal(padded, own, engine):
        raise UserError(
            f"{_name(engine)}: rows that are padded have another loss than alone ({padded:.4f} and {own:.4f} over the same "
            "tokens): this model sees its padding, or rows see each other. --per_device_train_batch_size 1 "
            "--per_device_eval_batch_size 1 trains it row by row."
        )


def _check_order(engine: Engine, row: Tokens, pad: int) -> None:
    """UserError where the first tokens are predicted otherwise when others stand behind them: the model would learn to copy."""
    half = len(row.ids) // 2
    if half < 2:
        return
    whole, first = (
        collate([replace(row, ids=ids, prompt_length=1)], [1.0], Layout(False, 1, 0, pad))
        for ids in (row.ids, row.ids[:half])
    )
    learned = slice(0, half - 1)
    whole = replace(
        whole,
        target_positions_T=whole.target_positions_T[learned],
        targets_T=whole.targets_T[learned],
        weights_T=whole.weights_T[learned],
    )
    with_rest, alone = _loss(engine, whole, flat=False), _loss(engine, first, flat=False)
    if not _equal(with_rest, alone, engine):
        raise UserError(
            f"{_name(engine)}: its tokens see those behind them (their loss is {with_rest:.4f} with the rest of the row and "
            f"{alone:.4f} without): it is no causal model as it is configured, and cannot be trained to write."
        )


def _tell_the_rest(engine: Engine, row: Tokens, pad: int) -> None:
    """Say, once, what the model's own loss has that this objective has not."""
    batch = collate([row], [1.0 / max(1, len(row.ids) - max(row.prompt_length, 1))], Layout(False, 1, 0, pad))
    plain = _loss(engine, batch, flat=False)
    try:
        own = _loss(engine, batch, flat=False, own=True)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError, NotImplementedError):
        return  # a loss of its own is nothing that a model must have
    if not _equal(own, plain, engine):
        log.warning(
            "  the model's own loss is %.4f where the objective is %.4f: %s (the objective is the likelihood of the "
            "correction alone)",
            own,
            plain,
            _left_out(engine.model.config.get_text_config()),
        )


def _left_out(text: object) -> str:
    """What a model's own loss has beside the likelihood, by its configuration's names."""
    names = [
        name
        for name, value in vars(text).items()
        if ("loss" in name or name.endswith("_coef"))
        and isinstance(value, int | float)
        and value
        and "type" not in name
    ]
    return f"what {' and '.join(sorted(names))} weighs is left out" if names else "its class computes another"


def _name(engine: Engine) -> str:
    return engine.model.config._name_or_path or type(engine.model).__name__
