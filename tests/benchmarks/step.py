"""The original's training step against this project's, on one CPU thread: first equal, then timed.

    python -m tests.benchmarks.step [--rows 16] [--rounds 2] [--only 32k ...] [--picture FILE.png]

Both are checked for equal loss and gradient, then run in turns (A B B A), with each idea alone between them: CPU seconds, the
median, and the spread of the repeats; a ratio whose repeats differ by more than 5 % is printed as refused. The limit is the
ratio of matrix operations: padded places against real ones, and the head at every place against the learned ones. Memory is
the peak of a process over the loaded model, gradients included, each step in a process of its own. At the end: how much of
eight ranks' time is spent on real tokens, by layout.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from aligner.training.datasets.supervised import Tokens
from aligner.training.engine.batching import (
    Layout,
    collate,
    micro_batches,
    row_weights,
)
from aligner.training.engine.objective import Objective
from tests.benchmarks import original
from tests.benchmarks.balance import balance_lines
from tests.benchmarks.workloads import WORKLOADS, Workload, available, model_of, rows_of

TOKENS = 2048  # of a flattened micro-batch
NOISE = 0.05  # a ratio whose repeats differ by more is refused
Step = Callable[[LlamaForCausalLM, Sequence[Tokens]], float]


def our_step(model: LlamaForCausalLM, rows: Sequence[Tokens]) -> float:
    """This project's: the update's micro-batches through its objective."""
    objective = Objective(model, True)
    weights = row_weights([row.target_length for row in rows], original.ROWS, "micro_batch")
    layout = Layout(True, original.ROWS, TOKENS, 0, target_cost=0.2)
    loss = torch.zeros(())
    for batch in micro_batches(rows, np.arange(len(rows)), weights, layout, ranks=1, rank=0):
        part = objective(batch)
        part.backward()
        loss += part.detach()
    return float(loss)


def only_flat(model: LlamaForCausalLM, rows: Sequence[Tokens]) -> float:
    """No padding alone: the original's micro-batches flattened, the head at every place in fp32."""
    objective = Objective(model, True)
    return _with_plain_loss(rows, True, lambda batch: objective.model(
        input_ids=batch.ids_BL, position_ids=batch.positions_BL, segments=batch.segments, use_cache=False
    ).logits.flatten(0, 1).float()[batch.target_positions_T])  # fmt: skip


def only_learned(model: LlamaForCausalLM, rows: Sequence[Tokens]) -> float:
    """The head at the learned places alone: padded rows otherwise."""
    return _with_plain_loss(rows, False, lambda batch: model.lm_head(
        model.get_decoder()(input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False)
        .last_hidden_state.flatten(0, 1)[batch.target_positions_T]
    ).float())  # fmt: skip


def both_plain(model: LlamaForCausalLM, rows: Sequence[Tokens]) -> float:
    """Both, but for the loss in pieces: the head's gradient by autograd."""
    objective = Objective(model, True)
    return _with_plain_loss(rows, True, lambda batch: model.lm_head(
        objective.model.get_decoder()(
            input_ids=batch.ids_BL, position_ids=batch.positions_BL, segments=batch.segments, use_cache=False
        ).last_hidden_state[0, batch.target_positions_T]
    ).float())  # fmt: skip


def _with_plain_loss(rows: Sequence[Tokens], flat: bool, logits_of: Callable[..., torch.Tensor]) -> float:
    weights, loss = row_weights([row.target_length for row in rows], original.ROWS, "micro_batch"), 0.0
    for start in range(0, len(rows), original.ROWS):
        chosen = slice(start, start + original.ROWS)
        batch = collate(rows[chosen], weights[chosen], Layout(flat, original.ROWS, 10**6, 0))
        nll_T = torch.nn.functional.cross_entropy(logits_of(batch), batch.targets_T, reduction="none")
        part = (nll_T * batch.weights_T).sum()
        part.backward()
        loss += float(part.detach())
    return loss


STEPS: dict[str, Step] = {
    "original": original.step,
    "flat": only_flat,
    "learned": only_learned,
    "both": both_plain,
    "ours": our_step,
}


def gradient_after(model: LlamaForCausalLM, step: Step, rows: Sequence[Tokens]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step."""
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    loss = step(model, rows)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def cpu_seconds(model: LlamaForCausalLM, step: Step, rows: Sequence[Tokens]) -> float:
    """CPU time of one step."""
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    began = time.process_time()
    step(model, rows)
    return time.process_time() - began


def peak_memory(task: tuple[Workload, int, str]) -> float:
    """MiB that one step takes over the loaded model, at its peak. For a process of its own."""
    workload, count, name = task
    torch.set_num_threads(1)
    model, rows = model_of(workload.vocabulary), rows_of(workload, count)
    model.set_attn_implementation("sdpa")
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    STEPS[name](model, rows)
    return _status("VmHWM") - before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) / 1024


def limit(model: LlamaForCausalLM, rows: Sequence[Tokens]) -> float:
    """Matrix operations of the original's step over ours, from places, learned places and the model's size."""
    head = model.lm_head.weight.numel()
    body = sum(p.numel() for p in model.parameters()) - head  # tied: the table is the head
    fours = [[len(row.ids) for row in rows[s : s + original.ROWS]] for s in range(0, len(rows), original.ROWS)]
    padded = sum(len(four) * max(four) for four in fours)
    real, learned = sum(map(sum, fours)), sum(row.target_length for row in rows)
    return padded * (body + head) / (real * body + learned * head)


@dataclass(frozen=True)
class Line:
    """A line of the table: ratios are the original's CPU seconds over a step's; memory is ours over the original's."""

    name: str
    seconds: float
    ratios: dict[str, float]
    spread: float
    limit: float
    error: float
    memory: float

    def text(self) -> str:
        """As printed."""
        refused = "" if self.spread <= NOISE else f"  refused: repeats differ by more than {NOISE:.0%}"
        ratios = "".join(f"{self.ratios[name]:>9.2f}" for name in ("ours", "flat", "learned", "both"))
        return (f"{self.name:<15}{self.seconds:>9.1f}{ratios}{self.limit:>8.2f}{self.memory:>8.2f}{self.error:>10.1e}"
                f"{self.spread:>8.1%}{refused}")  # fmt: skip


HEADING = "vocabulary, rows original     ours     flat  learned     both   limit  memory  gradient  spread"


def compare(workload: Workload, count: int, rounds: int) -> Line:
    """One line of the table. AssertionError where a step is not equal to the original's."""
    model, rows = model_of(workload.vocabulary), rows_of(workload, count)
    loss, plain = gradient_after(model, original.step, rows)
    error = 0.0
    for name in ("flat", "learned", "both", "ours"):
        other, gradient = gradient_after(model, STEPS[name], rows)
        error = float((gradient - plain).norm() / plain.norm())
        assert abs(other / loss - 1) < 1e-6 and error < 1e-6, (name, loss, other, error)
    times: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name in (*STEPS, *reversed(STEPS)):
            times[name].append(cpu_seconds(model, STEPS[name], rows))
    medians = {name: statistics.median(found) for name, found in times.items()}
    spread = max((max(times[n]) - min(times[n])) / medians[n] for n in ("original", "ours"))
    ratios = {name: medians["original"] / medians[name] for name in STEPS}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.map(peak_memory, [(workload, count, name) for name in ("original", "ours")], chunksize=1)
    return Line(workload.name, medians["original"], ratios, spread, limit(model, rows), error, peaks[1] / peaks[0])


def draw(table: Sequence[Line], file: str) -> None:
    """The ratios beside the limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = np.arange(len(table))
    figure, axes = pyplot.subplots(figsize=(8, 3.6))
    bars = (("flat", "no padding alone"), ("learned", "learned logits alone"), ("ours", "this project"))
    for offset, (key, label) in zip((-0.25, 0.0, 0.25), bars, strict=True):
        drawn = axes.bar(places + offset, [line.ratios[key] for line in table], 0.24, label=label)
        axes.bar_label(drawn, fmt="%.2f", fontsize=7)
    for place, line in zip(places, table, strict=True):
        axes.hlines(line.limit, place - 0.4, place + 0.4, color="black", linestyle="dotted", linewidth=1)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xticks=places, xticklabels=[line.name for line in table],
             ylabel="the original's CPU seconds / these", title="dotted: the ratio of matrix operations")  # fmt: skip
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="rows of the update (16)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of A B B A (2)")
    parser.add_argument("--only", nargs="+", default=[], help="workloads whose name holds one of these, as 32k")
    parser.add_argument("--picture", help="write the ratios as a picture")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [w for w in WORKLOADS if available(w) and (not args.only or any(part in w.name for part in args.only))]
    print(HEADING)
    table = []
    for workload in chosen:
        table.append(compare(workload, args.rows, args.rounds))
        print(table[-1].text(), flush=True)
    print(*balance_lines(list(dict.fromkeys(w.lengths for w in chosen))), sep="\n")
    if args.picture:
        draw([line for line in table if line.spread <= NOISE], args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
