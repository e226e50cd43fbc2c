"""The original's training step against this project's, on one CPU thread: first equal, then timed.

    python -m tests.benchmarks.step [--rows 16] [--rounds 2] [--only 32k ...] [--picture FILE.png]

The original's step is written here from its description: rows padded to the longest of four, logits of every place in
fp32, transformers' loss, the mean over micro-batches, one backward each. Both are checked for equal loss and gradient, then
run in turns (A B B A); CPU seconds, the median, and the spread of the repeats: a ratio whose repeats differ by more than 5 %
is printed as refused. The limit is the ratio of floating-point operations: padded places against real ones, and the head at
every place against the learned ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aligner.records import Origin
from aligner.training.datasets.supervised import Tokens
from aligner.training.finetune.batching import Layout, collate, micro_batches, row_weights
from aligner.training.finetune.loss import Objective

ROWS_OF_MICRO_BATCH = 4  # the original's
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "qac_aligner2b_alpacaeval.json"


@dataclass(frozen=True)
class Workload:
    """A vocabulary size and how long the rows are."""

    name: str
    vocabulary: int
    lengths: str


WORKLOADS = [
    Workload("12k, lognormal", 12_288, "lognormal"),
    Workload("32k, lognormal", 32_000, "lognormal"),
    Workload("49k, lognormal", 49_152, "lognormal"),
    Workload("12k, short", 12_288, "short"),
    Workload("12k, constant", 12_288, "constant"),
    Workload("12k, real", 12_288, "real"),
]


def triples(kind: str, count: int, seed: int) -> list[tuple[int, int]]:
    """Tokens of prompt and of correction for each row."""
    draw = np.random.default_rng(seed)
    if kind == "constant":
        return [(230, 200)] * count
    if kind == "real":
        chosen = draw.permutation(json.loads(REAL.read_text()))[:count]
        words = [[len(str(row[key]).split()) for key in ("question", "answer", "correction")] for row in chosen]
        return [(min(1000, int(1.4 * (q + a)) + 20), min(1000, int(1.4 * c) + 2)) for q, a, c in words]
    means = {"lognormal": (30, 200, 200), "short": (20, 40, 35)}[kind]
    parts = [np.exp(draw.normal(np.log(mean), 0.65, count)).astype(int) for mean in means]
    return [(int(min(q + a + 20, 1024)), int(max(2, min(c, 1024)))) for q, a, c in zip(*parts, strict=True)]


def rows_of(kind: str, count: int, vocabulary: int, seed: int = 0) -> list[Tokens]:
    """Random ids of these lengths."""
    draw = np.random.default_rng(seed + 1)
    return [
        Tokens(draw.integers(1, vocabulary, p + c).astype(np.int32), p, Origin("f", n), False, False)
        for n, (p, c) in enumerate(triples(kind, count, seed), 1)
    ]


def model_of(vocabulary: int) -> LlamaForCausalLM:
    """Hidden 384, 10 layers: the head's share of the operations at 12,288 tokens is that of Gemma-2B."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, hidden_size=384, intermediate_size=1024, num_hidden_layers=10,
                    num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=True)
    ).train()  # fmt: skip


def original_step(model: LlamaForCausalLM, rows: list[Tokens]) -> float:
    """The original's: padded, full fp32 logits, the mean over micro-batches of four rows."""
    loss = 0.0
    starts = range(0, len(rows), ROWS_OF_MICRO_BATCH)
    for start in starts:
        four = rows[start : start + ROWS_OF_MICRO_BATCH]
        longest = max(len(row.ids) for row in four)
        ids = torch.zeros(len(four), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for place, row in enumerate(four):
            ids[place, : len(row.ids)] = torch.from_numpy(row.ids)
            labels[place, row.prompt_length : len(row.ids)] = torch.from_numpy(row.ids[row.prompt_length :])
        part = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels, use_cache=False).loss / len(starts)
        part.backward()
        loss += part.item()
    return loss


def our_step(model: LlamaForCausalLM, rows: list[Tokens], flat: bool = True, tokens: int = 2048) -> float:
    """This project's: the update's micro-batches through its objective."""
    objective = Objective(model, flat)
    weights = row_weights([row.target_length for row in rows], ROWS_OF_MICRO_BATCH, "micro_batch")
    layout = Layout(flat, ROWS_OF_MICRO_BATCH, tokens, 0, target_cost=0.2)
    loss = torch.zeros(())
    for batch in micro_batches(rows, np.arange(len(rows)), weights, layout, ranks=1, rank=0):
        part = objective(batch)
        part.backward()
        loss += part.detach()
    return float(loss)


def flat_with_all_logits(model: LlamaForCausalLM, rows: list[Tokens]) -> float:
    """Ablation: no padding, but the head at every place."""
    objective = Objective(model, True)
    weights = row_weights([row.target_length for row in rows], ROWS_OF_MICRO_BATCH, "micro_batch")
    loss = 0.0
    for start in range(0, len(rows), ROWS_OF_MICRO_BATCH):
        chosen = slice(start, start + ROWS_OF_MICRO_BATCH)
        batch = collate(rows[chosen], weights[chosen], Layout(True, 4, 8192, 0))
        hidden = objective.model.get_decoder()(
            input_ids=batch.ids_BL, position_ids=batch.positions_BL, segments=batch.segments, use_cache=False
        ).last_hidden_state
        logits = objective.model.lm_head(hidden)[0].float()
        nll = torch.nn.functional.cross_entropy(logits[batch.places_T], batch.targets_T, reduction="none")
        part = (nll * batch.weights_T).sum()
        part.backward()
        loss += float(part.detach())
    return loss


def padded_with_learned_logits(model: LlamaForCausalLM, rows: list[Tokens]) -> float:
    """Ablation: padded, but the head at the learned places alone."""
    weights = row_weights([row.target_length for row in rows], ROWS_OF_MICRO_BATCH, "micro_batch")
    model.set_attn_implementation("sdpa")
    loss = 0.0
    for start in range(0, len(rows), ROWS_OF_MICRO_BATCH):
        chosen = slice(start, start + ROWS_OF_MICRO_BATCH)
        batch = collate(rows[chosen], weights[chosen], Layout(False, 4, 8192, 0))
        hidden = model.get_decoder()(input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False)
        logits = model.lm_head(hidden.last_hidden_state.flatten(0, 1)[batch.places_T]).float()
        nll = torch.nn.functional.cross_entropy(logits, batch.targets_T, reduction="none")
        part = (nll * batch.weights_T).sum()
        part.backward()
        loss += float(part.detach())
    return loss


Step = Callable[[LlamaForCausalLM, list[Tokens]], float]


def gradient_after(model: LlamaForCausalLM, step: Step, rows: list[Tokens]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step."""
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    loss = step(model, rows)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def cpu_seconds(model: LlamaForCausalLM, step: Step, rows: list[Tokens]) -> float:
    """CPU time of one step."""
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    began = time.process_time()
    step(model, rows)
    return time.process_time() - began


def limit(model: LlamaForCausalLM, rows: list[Tokens]) -> float:
    """Floating-point operations of the original's step over ours, from places, learned places and the model's size."""
    head = model.lm_head.weight.numel()
    body = sum(p.numel() for p in model.parameters()) - head  # tied: the table is the head
    starts = range(0, len(rows), ROWS_OF_MICRO_BATCH)
    fours = [[len(row.ids) for row in rows[s : s + ROWS_OF_MICRO_BATCH]] for s in starts]
    padded = sum(len(four) * max(four) for four in fours)
    real, learned = sum(map(sum, fours)), sum(row.target_length for row in rows)
    return padded * (body + head) / (real * body + learned * head)


def compare(workload: Workload, count: int, rounds: int) -> dict[str, object]:
    """One line of the table. AssertionError where the steps are not equal."""
    model, rows = model_of(workload.vocabulary), rows_of(workload.lengths, count, workload.vocabulary)
    plain_loss, plain = gradient_after(model, original_step, rows)
    ours_loss, ours = gradient_after(model, our_step, rows)
    error = float((ours - plain).norm() / plain.norm())
    assert abs(ours_loss / plain_loss - 1) < 1e-6 and error < 1e-6, (plain_loss, ours_loss, error)
    steps: dict[str, Step] = {
        "original": original_step, "ours": our_step,
        "only no padding": flat_with_all_logits, "only learned logits": padded_with_learned_logits,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in (*steps, *reversed(steps)):
            times[name].append(cpu_seconds(model, steps[name], rows))
    medians = {name: statistics.median(found) for name, found in times.items()}
    spread = max((max(times[n]) - min(times[n])) / medians[n] for n in ("original", "ours"))
    ratios = {name: medians["original"] / medians[name] for name in steps if name != "original"}
    return {"workload": workload.name, "original": medians["original"], "ours": medians["ours"], "error": error,
            "spread": spread, "limit": limit(model, rows), **{f"x {name}": ratio for name, ratio in ratios.items()}}  # fmt: skip


def line_of(found: dict[str, object]) -> str:
    """A line of the table."""
    refused = "" if float(str(found["spread"])) <= 0.05 else "  refused: repeats differ by more than 5 %"
    return (
        f"{found['workload']:<16}{found['original']:>9.2f}{found['ours']:>8.2f}{found['x ours']:>8.2f}"
        f"{found['limit']:>8.2f}{found['x only no padding']:>12.2f}{found['x only learned logits']:>12.2f}"
        f"{found['error']:>10.1e}{found['spread']:>8.1%}{refused}"
    )


def draw(table: list[dict[str, object]], file: str) -> None:
    """The ratios beside the limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [str(found["workload"]) for found in table]
    places = np.arange(len(names))
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for offset, key, label in ((-0.2, "x ours", "measured"), (0.2, "limit", "limit by operations")):
        axes.bar(places + offset, [float(str(found[key])) for found in table], 0.4, label=label)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xticks=places, xticklabels=names, ylabel="CPU seconds, original's step / ours")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="rows of the update (16)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of A B B A (2)")
    parser.add_argument("--only", nargs="+", default=[], help="workloads whose name holds one of these, as 32k")
    parser.add_argument("--picture", help="write the ratios as a picture")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("vocabulary, lengths original    ours   ratio   limit  no padding     learned  gradient  spread")
    table = []
    for workload in WORKLOADS:
        wanted = not args.only or any(part in workload.name for part in args.only)
        if wanted and (workload.lengths != "real" or REAL.is_file()):
            table.append(compare(workload, args.rows, args.rounds))
            print(line_of(table[-1]), flush=True)
    if args.picture:
        draw(table, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
