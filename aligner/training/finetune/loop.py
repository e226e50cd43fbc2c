"""The algorithm. For every update: its records, their gradient, one step of the weights; now and then evaluate and save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from aligner.records import UserError
from aligner.training.checkpoint.state_writer import StateWriter
from aligner.training.config import DataConfig, OptimizationConfig
from aligner.training.datasets.supervised import Tokens
from aligner.training.datasets.token_table import lengths_of, target_lengths_of
from aligner.training.distributed.stop_signals import Stopped
from aligner.training.engine.batching import Layout, MicroBatch, micro_batches, prefetch, row_weights, rows_of_update
from aligner.training.engine.engine import Engine, seed_dropout
from aligner.training.finetune.metrics import Metrics, throughput
from aligner.training.plan import Plan


@dataclass(frozen=True)
class TrainState:
    """What the loop works with: the engine, the records as tokens, the plan, and where figures and resume states go."""

    engine: Engine
    train: Sequence[Tokens]
    held_out: Sequence[Tokens]
    plan: Plan
    optimization: OptimizationConfig
    data: DataConfig
    layout: Layout
    evaluation_layout: Layout
    metrics: Metrics | None  # on the first rank
    states: StateWriter
    stop_requested: Callable[[], bool]  # whether this rank knows that the run is to stop


@dataclass(frozen=True)
class Update:
    """An update to be made: its number (from 0), its records in order, and this rank's share of them as micro-batches."""

    number: int
    epoch: int
    rows: np.ndarray
    batches: list[MicroBatch]

    def numbers(self) -> dict[str, int]:
        """Update and epoch as the log counts them, from 1."""
        return {"update": self.number + 1, "epoch": self.epoch + 1}


class Signals(NamedTuple):
    """What some rank knows after an update: a stop is requested; a state is still being written; --save_minutes have passed."""

    stop: bool
    writing: bool
    save_due: bool


def train(state: TrainState, start: int) -> None:
    """Make updates `start` to the last one (counted from 0); the last state is whole at the end. Raises Stopped, after saving,
    where any rank was asked to stop."""
    if start == 0:
        evaluate(state, 0)
    for update in prefetch(partial(prepare_update, state), range(start, state.plan.updates)):
        signals = make_update(state, update)
        done = update.number + 1
        if not signals.writing:
            state.states.settle()
        if signals.stop:  # whole before an evaluation: who asks for a stop may not wait for long
            state.states.begin(done)
            state.states.settle()
        evaluated = is_evaluation_due(state, done)
        if evaluated:
            evaluate(state, done)
        if not signals.stop and (signals.save_due or state.states.is_due(done, state.plan.updates, evaluated)):
            state.states.begin(done)
        if signals.stop and done < state.plan.updates:
            raise Stopped(f"update {done}")
    state.states.settle()


def prepare_update(state: TrainState, number: int) -> Update:
    """Choose an update's records, weigh their target tokens, and lay out this rank's share."""
    ranks = state.engine.ranks
    epoch, rows = rows_of_update(state.plan, state.optimization.seed, number)
    lengths = [state.train[row].target_length for row in rows]
    weights = row_weights(lengths, state.plan.micro_batch_size, state.optimization.loss_reduction)
    return Update(number, epoch, rows, micro_batches(state.train, rows, weights, state.layout, ranks.count, ranks.rank))


def own_signals(state: TrainState) -> Signals:
    """What this rank knows, in the order of Signals."""
    return Signals(state.stop_requested(), state.states.is_writing(), state.states.is_save_due())


def make_update(state: TrainState, update: Update) -> Signals:
    """This rank's share of the gradient, the step, and one line of the log. Returns what some rank knows after it."""
    began = time.perf_counter()
    seed_dropout(state.optimization.seed, update.number, state.engine.ranks.rank)
    try:
        loss, known = state.engine.accumulate(update.batches, partial(own_signals, state))
    except FloatingPointError as error:
        return handle_nonfinite(state, update, str(error))
    rate, norm = state.engine.update()
    if state.engine.overflowed():
        reason = "its gradient is too large for fp16, whose loss scale is lowered; the weights were not changed"
        record_skipped(state, update, reason)
        return Signals(*known)
    if state.metrics:
        step = {"loss": loss, "lr": rate, "grad_norm": norm if math.isfinite(norm) else None}
        seconds = time.perf_counter() - began
        state.metrics.record({**update.numbers(), **step, **throughput(state.train, update.rows, seconds)})
    return Signals(*known)


def handle_nonfinite(state: TrainState, update: Update, problem: str) -> Signals:
    """An update that is not finite: the weights stay as they are, and the run stops or goes on, as configured."""
    places = ", ".join(str(state.train[row].origin) for row in update.rows[:4])
    text = f"{problem}; the weights were not changed. Its records begin with {places}"
    if state.optimization.on_nonfinite == "stop":
        state.states.settle()  # what was saved before it is not lost
        remedy = "Try a lower --lr, --bf16 instead of --fp16, or --on_nonfinite skip."
        raise UserError(f"update {update.number + 1}: {text}. {remedy}")
    state.engine.skip()
    record_skipped(state, update, text)
    return Signals(*(state.engine.ranks.any(signal) for signal in own_signals(state)))


def record_skipped(state: TrainState, update: Update, reason: str) -> None:
    """The line in the log of an update that changed nothing."""
    if state.metrics:
        state.metrics.record({**update.numbers(), "skipped": f"update {update.number + 1}: {reason}"})


def is_evaluation_due(state: TrainState, done: int) -> bool:
    """Whether to evaluate after `done` updates: at the end, and at each epoch's or interval's end as configured."""
    every = {"epoch": state.plan.updates_per_epoch, "steps": state.data.eval_interval, "none": state.plan.updates}
    return done == state.plan.updates or done % every[state.data.eval_strategy] == 0


def evaluate(state: TrainState, done: int) -> None:
    """The held-out loss: the mean over all target tokens of the real corrections, in every stage."""
    if not state.held_out:
        return
    ranks = state.engine.ranks
    rows = np.argsort(lengths_of(state.held_out), kind="stable")  # neighbours in length together
    weights = np.ones(len(rows))
    batches = micro_batches(state.held_out, rows, weights, state.evaluation_layout, ranks.count, ranks.rank)
    loss = state.engine.evaluate(batches) / int(target_lengths_of(state.held_out).sum())
    if state.metrics:
        state.metrics.record({"update": done, "eval_loss": loss if math.isfinite(loss) else None})
