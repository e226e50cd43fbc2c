"""A whole run of real rows with the embedded model under DeepSpeed: the original's step against this project's.

    python -m tests.benchmarks.whole_run DATA.json [--rows 400] [--ranks 2] [--zero_stage 3] [--bf16]

The same loop, engine, optimiser and updates on both sides; the original's pads each four rows and takes the loss of
transformers from all logits in fp32. (Its gradient checkpointing and its reading of the loss after each micro-batch are left
out.) First to last update, model loading left out: CPU seconds of all ranks, seconds by the clock, and the losses of both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from aligner.demo import locate
from aligner.models import load_config, load_model, quiet_libraries
from aligner.training.checkpoint.state_writer import StateWriter
from aligner.training.config import DataConfig, LaunchConfig, OptimizationConfig, OutputConfig
from aligner.training.datasets.supervised import IGNORED
from aligner.training.distributed.launcher_variables import free_port
from aligner.training.distributed.ranks import Ranks, connect
from aligner.training.engine.batching import Layout, MicroBatch
from aligner.training.engine.engine import Engine, load_partitioned
from aligner.training.engine.zero import deepspeed_config
from aligner.training.finetune.loop import TrainState, train
from aligner.training.stages import plan_of
from tests.benchmarks import original
from tests.benchmarks.step import TOKENS
from tests.benchmarks.workloads import real_rows

ROWS_PER_UPDATE = 64
SIDES = ("original", "ours")


@dataclass
class Losses:
    """Stands where the run's metrics go."""

    found: list[float] = field(default_factory=list)

    def record(self, values: dict[str, Any]) -> None:
        """Keep an update's loss."""
        self.found.append(values["loss"])


def original_loss(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """The loss of a padded micro-batch as the original takes it, as its share of the update's mean of means."""
    assert batch.attention_BL is not None
    labels_BL = torch.full_like(batch.ids_BL, IGNORED)
    labels_BL.view(-1)[batch.target_positions_T + 1] = batch.targets_T
    found = model(input_ids=batch.ids_BL, attention_mask=batch.attention_BL, labels=labels_BL, use_cache=False)
    share: torch.Tensor = batch.weights_T.sum() if len(batch.weights_T) else found.loss.new_zeros(())
    return found.loss.nan_to_num() * share


def engine_of(side: str, o: OptimizationConfig, plan: Any, stage: int, ranks: Ranks) -> Engine:
    """The real engine with one side's loss in it."""
    folder, kind = locate("embedded"), torch.bfloat16 if o.bf16 else torch.float32
    ds_config = deepspeed_config(o, LaunchConfig(zero_stage=stage), load_config(folder, False))
    model = load_partitioned(ds_config, partial(load_model, folder, kind, False), lambda loaded: None)
    engine = Engine(model, ds_config, o, plan, side == "ours", ranks)
    if side == "original":
        engine.deepspeed.module.forward = partial(original_loss, model)
    return engine


def run_side(args: argparse.Namespace) -> None:
    """One rank of one side."""
    quiet_libraries()
    ranks = connect(-1)
    rows = real_rows(Path(args.data), args.rows)
    o = OptimizationConfig(epochs=1, records_per_update=ROWS_PER_UPDATE, bf16=args.bf16, lr=1e-5)
    plan = plan_of(o, len(rows), ROWS_PER_UPDATE, ranks.count)
    engine, losses = engine_of(args.side, o, plan, args.zero_stage, ranks), Losses()
    layout = Layout(args.side == "ours", original.ROWS, TOKENS, 0, target_cost=0.2)
    writer = StateWriter(engine, Path(args.data).parent, {}, OutputConfig(save_interval=0), keep_best=False)
    state = TrainState(engine, rows, [], plan, o, DataConfig(), layout, layout, losses, writer, lambda: False)  # type: ignore[arg-type]
    ranks.wait()
    began, used = time.perf_counter(), time.process_time()
    train(state, 0)
    cpu = ranks.sum(torch.tensor([time.process_time() - used]))[0]
    if ranks.first:
        tokens = sum(len(row.ids) for row in rows)
        print(json.dumps({"cpu": cpu, "wall": time.perf_counter() - began, "losses": losses.found, "tokens": tokens}))


def launch(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """One side under DeepSpeed's launcher, a thread a rank."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", str(args.ranks)]
    command += ["--master_port", str(free_port()), "--module", "tests.benchmarks.whole_run", args.data, "--side", side]
    command += ["--rows", str(args.rows), "--zero_stage", str(args.zero_stage), *(["--bf16"] if args.bf16 else [])]
    threads = {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": str(args.ranks),
        "PYTHONWARNINGS": "ignore",
    }
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(1 << 28)}  # as the launcher
    done = subprocess.run(command, env={**os.environ, **threads, **kept}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return found


def main(arguments: list[str]) -> int:
    """Run both sides and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a JSON array of Q-A-C rows")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero_stage", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.side:
        run_side(args)
        return 0
    found = {}
    for side in SIDES:
        found[side] = values = launch(side, args)
        losses = " ".join(f"{loss:.4f}" for loss in values["losses"])
        print(f"{side:<9}{values['cpu']:>9.1f} CPU s {values['wall']:>8.1f} s   losses {losses}", flush=True)
    first, second = (found[side] for side in SIDES)
    apart = max(abs(a / b - 1) for a, b in zip(first["losses"], second["losses"], strict=True))
    print(f"{first['tokens']:,} tokens; losses differ by {apart:.1e}; the original's over ours: "
          f"{first['cpu'] / second['cpu']:.2f} in CPU seconds, {first['wall'] / second['wall']:.2f} by the clock")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
