"""Step 5: what a worst-case update takes on the GPU, beside what `aligner plan` says it will."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from aligner.records import Origin
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.launcher_variables import single_rank
from aligner.training.distributed.ranks import connect
from aligner.training.flags import parse
from aligner.training.planning.memory import LEARNED, size_of
from aligner.training.planning.memory_plan import Hardware, need_of
from aligner.training.planning.shapes import Shape
from tests.acceptance import throughput
from tests.acceptance.common import CUDA, TINY, gemma_2b, report

CLOSE = (1.0, 1.25)  # the plan over what is reserved
LENGTH = 64 if TINY else 2048


def planned(checkpointing: bool, rows: int, stage: int) -> int:
    """Bytes of the plan for one GPU."""
    config = parse(["--zero_stage", str(stage), "--bf16", str(CUDA), "--gradient_checkpointing", str(checkpointing),
                    "--per_device_train_batch_size", str(rows), "--max_length", str(LENGTH)])  # fmt: skip
    shape = Shape(gemma_2b(), None)
    return need_of(config, shape, size_of(shape), Hardware(1, 1)).gpu


def taken(checkpointing: bool, rows: int, stage: int) -> dict[str, Any]:
    """Bytes allocated, reserved, and used of the device, at their peak over three updates of the worst rows."""
    engine = throughput.engine_of(connect(0), checkpointing, stage)
    prompt = int(LENGTH * (1 - LEARNED))
    worst = [Tokens(np.random.default_rng(n).integers(1, 700, LENGTH).astype(np.int32), prompt, Origin("worst", n), False, False)
             for n in range(2 * rows)]  # fmt: skip
    for _ in range(3):
        engine.accumulate(throughput.our_batches(worst, rows * LENGTH))
        engine.update()
    figures: dict[str, Any] = {}
    if CUDA:
        free, whole = torch.cuda.mem_get_info()
        figures = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
                   "device": whole - free, "retries": torch.cuda.memory_stats()["num_alloc_retries"]}  # fmt: skip
    engine.close()
    del engine
    throughput.forget()
    return figures


def main() -> None:
    os.environ.update(single_rank())
    missed = []
    for checkpointing, rows, stage in ((True, 4, 3), (True, 4, 1), (False, 1, 1)):
        name = f"{'recomputing' if checkpointing else 'plain'}, {rows} rows, stage {stage}"
        plan, found = planned(checkpointing, rows, stage), taken(checkpointing, rows, stage)
        figures = {
            "plan_gb": round(plan / 1e9, 2),
            **{k: round(v / 1e9, 2) if v > 1e6 else v for k, v in found.items()},
        }
        if found:
            figures["plan_over_reserved"] = round(plan / found["reserved"], 3)
            if not CLOSE[0] <= plan / found["reserved"] <= CLOSE[1]:
                missed.append(f"{name}: the plan is {figures['plan_over_reserved']} of what is reserved")
        report(**{name: figures})
    report(missed=missed)


if __name__ == "__main__":
    main()
