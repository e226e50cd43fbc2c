"""Step 4: real tokens a second in training, on the same rows: the original's step, TRL tuned, and this project's with and
without recomputing; where ours goes (head, host reads, idle share)."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import deepspeed
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from aligner.training.config import LaunchConfig, OptimizationConfig
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.launcher_variables import single_rank
from aligner.training.distributed.ranks import Ranks, connect
from aligner.training.engine.batching import Layout, MicroBatch, micro_batches, row_weights
from aligner.training.engine.engine import Engine, release_memory
from aligner.training.engine.head_loss import weighted_nll_of_hidden
from aligner.training.engine.zero import deepspeed_config
from aligner.training.plan import Plan
from aligner.training.planning.memory import size_of
from aligner.training.planning.report import flops_per_token
from aligner.training.planning.shapes import Shape
from tests.acceptance.common import (
    CUDA,
    DEVICE,
    PEAK,
    TINY,
    gemma_2b,
    published_rows,
    random_model,
    report,
    seconds_of,
    synchronise,
    tokens_in,
)
from tests.benchmarks.original import padded

ROWS, MICRO = 32, 4  # of an update, and of the original's micro-batch
BEFORE, UPDATES = (1, 2) if TINY else (2, 6)
FEWER = (1, 2)  # of the original's way, which takes several times as long
TOKENS = (
    {False: 600, True: 600} if TINY else {False: 4096, True: 8192}
)  # of our micro-batches, without and with recomputing
STAGE = 1 if torch.cuda.device_count() == 1 else 3  # what `aligner plan` names for as many GPUs
MARKS = {"original": 1.6, "trl": 1.1}  # ours over these, in real tokens a second
MFU = 0.5


def optimization(checkpointing: bool) -> OptimizationConfig:
    """The recipe of the paper; bf16."""
    return OptimizationConfig(bf16=CUDA, gradient_checkpointing=str(checkpointing))


def engine_of(ranks: Ranks, checkpointing: bool, stage: int = STAGE) -> Engine:
    """A random Gemma-2B behind an engine, as a run has it."""
    o, launch = optimization(checkpointing), LaunchConfig(zero_stage=stage)
    config = deepspeed_config(o, launch, gemma_2b())
    model = random_model(gemma_2b())
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Engine(model, config, o, Plan(10**4, ROWS, MICRO, 1, 1, 0.03), True, ranks)


def updates(count: int = BEFORE + UPDATES) -> list[list[Tokens]]:
    """The rows of each update, the same for all."""
    rows = published_rows(ROWS * (BEFORE + UPDATES), gemma_2b().vocab_size, 256 if TINY else 2048)
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)][:count]


def speed_of(update: Callable[[list[Tokens]], object], before: int = BEFORE, counted: int = UPDATES) -> float:
    """Real tokens a second over the counted updates."""
    tokens, seconds = 0, 0.0
    for number, rows in enumerate(updates(before + counted)):
        synchronise()
        began = time.perf_counter()
        update(rows)
        synchronise()
        if number >= before:
            tokens, seconds = tokens + tokens_in(rows), seconds + time.perf_counter() - began
    return tokens / seconds


def our_batches(rows: list[Tokens], tokens: int) -> list[MicroBatch]:
    """An update's micro-batches on one rank, of so many tokens at most."""
    weights = row_weights([row.target_length for row in rows], MICRO, "micro_batch")
    layout = Layout(True, MICRO, tokens, 0, target_cost=0.25)
    return micro_batches(rows, np.arange(len(rows)), weights, layout, 1, 0)


def ours(ranks: Ranks, checkpointing: bool) -> dict[str, Any]:
    """Speed; what the update spends outside forward and backward; host reads a micro-batch; the device's idle share."""
    engine, tokens = engine_of(ranks, checkpointing), TOKENS[checkpointing]

    def update(rows: list[Tokens]) -> None:
        engine.accumulate(our_batches(rows, tokens))
        engine.update()

    figures: dict[str, Any] = {"tokens_per_second": round(speed_of(update)), "stage": STAGE, "tokens": tokens}
    if CUDA:
        rows = updates()[0]
        batches = our_batches(rows, tokens)
        figures |= {"micro_batches": len(batches), "host_reads": host_reads(engine, batches)}
        figures["optimizer_ms"] = round(1000 * seconds_of(lambda: step_alone(engine), 3, 1), 1)
        figures |= idle_share(lambda: update(rows))
        figures["peak_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 1)
    engine.close()
    return figures


def step_alone(engine: Engine) -> None:
    """The optimizer's step on a gradient of one short micro-batch."""
    engine.accumulate(our_batches(updates()[0][:1], min(TOKENS.values())))
    engine.update()


def host_reads(engine: Engine, batches: list[MicroBatch]) -> float:
    """Times a micro-batch that the host waits for the device, in forward and backward."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        engine.accumulate(batches)
    torch.cuda.set_sync_debug_mode("default")
    engine.update()
    waits = [str(w.filename) + ":" + str(w.lineno) for w in seen if "synchroniz" in str(w.message).lower()]
    report(host_waits={place: waits.count(place) for place in sorted(set(waits), key=waits.count)[-6:]})
    return round(len(waits) / len(batches), 2)


def idle_share(act: Callable[[], object]) -> dict[str, Any]:
    """The share of an update's time in which no kernel runs, and the kernels that take most of it."""
    synchronise()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        act()
        synchronise()
        wall = time.perf_counter() - began
    kernels = [event for event in seen.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    kernels.sort(key=lambda event: -event.self_device_time_total)
    top = {event.key[:60]: round(event.self_device_time_total / 1e6 / wall, 3) for event in kernels[:14]}
    return {"idle": round(max(0.0, 1 - busy / wall), 3), "profiled_s": round(wall, 3), "kernels": top}


class Padded(torch.nn.Module):
    """The original's objective: padded rows, transformers' own loss."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BL: torch.Tensor, attention_BL: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.model(
            input_ids=ids_BL, attention_mask=attention_BL, labels=labels_BL, use_cache=False
        ).loss
        return loss


def original() -> float:
    """Real tokens a second of the original's way: four padded rows, recomputing, the cache emptied and the loss read after each
    micro-batch; under the same DeepSpeed configuration."""
    o, launch = optimization(True), LaunchConfig(zero_stage=3)
    config = deepspeed_config(o, launch, gemma_2b())
    model = random_model(gemma_2b())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.lr, betas=(0.9, 0.95), fused=True)
    engine = deepspeed.initialize(model=Padded(model), optimizer=optimizer, config=config, dist_init_required=False)[0]
    engine.train()

    def update(rows: list[Tokens]) -> None:
        for start in range(0, ROWS, MICRO):
            engine.set_gradient_accumulation_boundary(start + MICRO == ROWS)
            loss = engine(*(part.to(DEVICE) for part in padded(rows[start : start + MICRO]))) / (ROWS // MICRO)
            engine.backward(loss, scale_wrt_gas=False)
            loss.item()
            if CUDA:
                torch.cuda.empty_cache()
        engine.step()

    found = speed_of(update, *FEWER)
    engine.destroy()
    return found


def forget() -> None:
    """Give the memory of what was closed back."""
    gc.collect()
    release_memory()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()


def head() -> dict[str, float]:
    """Milliseconds of the head and its loss, forward and backward, beside its three bare products."""
    config = gemma_2b()
    hidden, vocabulary, count = config.hidden_size, config.vocab_size, 64 if TINY else 2048
    kind = torch.bfloat16 if CUDA else torch.float32
    hidden_TH = torch.randn(count, hidden, device=DEVICE, dtype=kind, requires_grad=True)
    head_VH = (torch.randn(vocabulary, hidden, device=DEVICE, dtype=kind) * 0.02).requires_grad_()
    targets_T, weights_T = (
        torch.randint(vocabulary, (count,), device=DEVICE),
        torch.full((count,), 1 / count, device=DEVICE),
    )

    def loss() -> None:
        weighted_nll_of_hidden(hidden_TH, head_VH, None, None, targets_T, weights_T).backward()
        hidden_TH.grad = head_VH.grad = None

    logits_TV = torch.randn(count, vocabulary, device=DEVICE, dtype=kind)

    def products() -> None:
        with torch.no_grad():
            torch.nn.functional.linear(hidden_TH, head_VH)
            torch.mm(logits_TV, head_VH)
            torch.mm(logits_TV.t(), hidden_TH)

    return {
        "head_ms": round(1000 * seconds_of(loss, 5, 2), 2),
        "products_ms": round(1000 * seconds_of(products, 5, 2), 2),
    }


def ceiling() -> float:
    """TFLOP/s of a large product in the type that is trained in."""
    size = 256 if TINY else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16 if CUDA else torch.float32) for _ in range(2))
    return round(2 * size**3 / seconds_of(lambda: a @ b) / 1e12, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--ways", nargs="+", default=["ceiling", "head", "plain", "checkpointed", "original", "trl"])
    ways = parser.parse_args().ways
    made: dict[str, float] = {}
    if "trl" in ways and (figures := peer()):  # first: no process beside it holds the GPU's memory
        made |= figures
        report(**figures)
    os.environ.update(single_rank())
    ranks = connect(0)
    if "ceiling" in ways:
        report(ceiling_tflops=ceiling())
    if "head" in ways:
        report(head=head())
        forget()
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        if name in ways:
            figures = ours(ranks, checkpointing)
            forget()
            made[name] = figures["tokens_per_second"]
            report(**{f"ours_{name}": figures})
    if "original" in ways:
        made["original"] = original()
        forget()
        report(original=round(made["original"]))
    judge(made)


def peer() -> dict[str, float]:
    """TRL's figure, from a process of its own; none where it is not installed or fails."""
    if importlib.util.find_spec("trl") is None:
        return {}
    command = [sys.executable, "-m", "tests.acceptance.peer", *(["--tiny"] if TINY else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    figures: dict[str, float] = next(
        (json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"trl')), {}
    )
    return figures


def judge(made: dict[str, float]) -> None:
    """The ratios and the model's share of the device's peak, beside the marks."""
    best, missed = max(made.get("plain", 0), made.get("checkpointed", 0)), []
    ratios = {name: round(best / made[name], 2) for name in MARKS if name in made}
    figures: dict[str, Any] = {"ratios": ratios}
    peak = next((rate for name, rate in PEAK.items() if CUDA and name in torch.cuda.get_device_name()), None)
    if peak and best:
        shape = Shape(gemma_2b(), None)
        length = sum(len(r.ids) ** 2 for u in updates() for r in u) / sum(tokens_in(u) for u in updates())
        figures["mfu"] = round(best * flops_per_token(size_of(shape), shape, length, 0) / peak, 3)
        missed = [f"{name}: {ratio} of {MARKS[name]}" for name, ratio in ratios.items() if ratio < MARKS[name]]
        missed += [f"MFU {figures['mfu']} of {MFU}"] if figures["mfu"] < MFU else []
    report(**figures, missed=missed)


if __name__ == "__main__":
    main()
