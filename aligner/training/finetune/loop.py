"""The algorithm. For every update: its records, their gradient, one move of the weights; now and then look and save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from aligner.records import UserError
from aligner.training.config import DataConfig, OptimizationConfig
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.stop_signals import Stopped
from aligner.training.engine.batching import Layout, MicroBatch, micro_batches, one_ahead, row_weights, rows_of_update
from aligner.training.engine.engine import Engine
from aligner.training.finetune.metrics import Metrics
from aligner.training.plan import Plan


@dataclass(frozen=True)
class Parts:
    """What the loop is given: the engine, the records as tokens, the plan, and where figures and states go."""

    engine: Engine
    train: Sequence[Tokens]
    held_out: Sequence[Tokens]
    plan: Plan
    optimization: OptimizationConfig
    data: DataConfig
    layout: Layout
    evaluation_layout: Layout
    metrics: Metrics | None
    save: Callable[[int], None]
    save_interval: int
    asked: Callable[[], bool]  # whether this rank has heard that the run is to stop


def train(parts: Parts, start: int) -> None:
    """Make updates `start` to the last one (counted from 0). Raises Stopped after saving, where a rank was asked to stop."""
    plan = parts.plan
    if start == 0:
        evaluate(parts, 0)
    for prepared in one_ahead(partial(prepare, parts), range(start, plan.updates)):
        stop = make_update(parts, prepared)
        done = prepared.update + 1
        if stop:  # who asks may not wait for long
            parts.save(done)
        if is_evaluation_due(parts, done):
            evaluate(parts, done)
        if not stop and parts.save_interval and (done % parts.save_interval == 0 or done == plan.updates):
            parts.save(done)
        if stop and done < plan.updates:
            raise Stopped(done)


@dataclass(frozen=True)
class Prepared:
    """An update before it is made: its records in order, and this rank's share of them as micro-batches."""

    update: int
    epoch: int
    rows: np.ndarray
    batches: list[MicroBatch]


def prepare(parts: Parts, update: int) -> Prepared:
    """Choose an update's records, weigh them, and lay out this rank's share."""
    plan, o, ranks = parts.plan, parts.optimization, parts.engine.ranks
    epoch, rows = rows_of_update(plan, o.seed, update)
    lengths = [parts.train[row].target_length for row in rows]
    weights = row_weights(lengths, plan.micro_batch_size, o.loss_reduction)
    return Prepared(
        update, epoch, rows, micro_batches(parts.train, rows, weights, parts.layout, ranks.count, ranks.rank)
    )


def make_update(parts: Parts, prepared: Prepared) -> bool:
    """One update: this rank's share of the gradient, the step, and what is said of it. Returns whether to stop after it."""
    began = time.perf_counter()
    engine, o, update, rows = parts.engine, parts.optimization, prepared.update, prepared.rows
    seed_dropout(o.seed, update, engine.ranks.rank)
    try:
        loss, stop = engine.accumulate(prepared.batches, parts.asked)
    except FloatingPointError as error:
        return give_up(parts, prepared, str(error))
    rate, norm = engine.update()
    if engine.overflowed():
        what = f"update {update + 1}: its gradient is too large for fp16, whose loss scale is lowered; the weights were not changed"
        if parts.metrics:
            parts.metrics.record({"update": update + 1, "epoch": prepared.epoch + 1, "skipped": what})
        return stop
    tokens = sum(len(parts.train[row].ids) for row in rows)
    targets = sum(parts.train[row].target_length for row in rows)
    seconds = time.perf_counter() - began
    if parts.metrics:
        parts.metrics.record(
            {
                "update": update + 1, "epoch": prepared.epoch + 1, "loss": loss, "lr": rate,
                "grad_norm": norm if math.isfinite(norm) else None,
                "target_tokens": targets, "tokens": tokens, "seconds": round(seconds, 4),
                "tokens_per_second": round(tokens / seconds, 1),
            }
        )  # fmt: skip
    return stop


def give_up(parts: Parts, prepared: Prepared, found: str) -> bool:
    """An update that is not finite: the weights stay as they are, and the run stops or goes on, as it was told."""
    places = ", ".join(str(parts.train[row].origin) for row in prepared.rows[:4])
    what = f"update {prepared.update + 1}: {found}; the weights were not changed. Its records begin with {places}"
    if parts.optimization.on_nonfinite == "stop":
        raise UserError(f"{what}. Try a lower --lr, --bf16 instead of --fp16, or --on_nonfinite skip.")
    parts.engine.skip()
    if parts.metrics:
        parts.metrics.record({"update": prepared.update + 1, "epoch": prepared.epoch + 1, "skipped": what})
    return parts.engine.ranks.sum(torch.tensor([float(parts.asked())]))[0] > 0


def seed_dropout(seed: int, update: int, rank: int) -> None:
    """Make dropout a function of (seed, update, rank), so that resuming needs no random state."""
    torch.manual_seed(int(np.random.SeedSequence([seed, update, rank]).generate_state(1)[0]))


def is_evaluation_due(parts: Parts, done: int) -> bool:
    """Whether to evaluate after `done` updates: at the end, and at each epoch's or interval's end as configured."""
    every = {"epoch": parts.plan.updates_per_epoch, "steps": parts.data.eval_interval, "none": parts.plan.updates}
    return done == parts.plan.updates or done % every[parts.data.eval_strategy] == 0


def evaluate(parts: Parts, done: int) -> None:
    """The held-out loss: the mean over all target tokens of the corrections, in both stages."""
    if not parts.held_out:
        return
    loss = parts.engine.evaluate(evaluation_batches(parts)) / sum(row.target_length for row in parts.held_out)
    if parts.metrics:
        parts.metrics.record({"update": done, "eval_loss": loss})


def evaluation_batches(parts: Parts) -> list[MicroBatch]:
    """This rank's share of the held-out records, neighbours in length together, each target token weighing one."""
    rows = np.argsort([len(row.ids) for row in parts.held_out], kind="stable")
    ranks = parts.engine.ranks
    return micro_batches(parts.held_out, rows, np.ones(len(rows)), parts.evaluation_layout, ranks.count, ranks.rank)
