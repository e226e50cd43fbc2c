"""Step 2: losses and gradient norms of the first updates on the GPU, at every ZeRO stage and offload, against plain torch on
the CPU; and that a finished stage gives its memory back."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import torch

from aligner.models import quiet_libraries
from aligner.training.config import OFFLOAD_STAGES
from aligner.training.distributed.hardware import resolved
from aligner.training.distributed.launcher_variables import single_rank
from aligner.training.distributed.ranks import connect
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse
from aligner.training.train_log import read_log
from tests.acceptance.common import CUDA, TINY, report
from tests.acceptance.model_folder import rows, save_model, save_rows
from tests.plain_loop import plain_trajectory

UPDATES, ROWS = 3, 8  # updates, and rows of each
CLOSE = {"fp32": 1e-5, "bf16": 2e-2}
LEFT = 100e6  # bytes on the GPU after a stage is closed


def train(folder: Path, data: Path, out: Path, kind: str, stage: int, offload: str) -> list[dict[str, float]]:
    """The log of the first updates at one setting, and of what is left on the GPU after each."""
    flags = ["--model_name_or_path", folder, "--train_datasets", data, "--output_dir", out, "--epochs", 1, "--lr", 1e-3,
             "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", ROWS // 4, "--zero_stage", stage,
             "--offload", offload, "--save_interval", 0, "--bf16", kind == "bf16", "--tf32", False,
             "--log_type", "none"]  # fmt: skip
    config = resolved(parse([str(flag) for flag in flags]))
    train_run(config, connect(config.launch.local_rank))
    return [line for line in read_log(out) if "loss" in line]


def main() -> None:
    quiet_libraries()
    os.environ.update(single_rank())
    worst, missed, settings = dict.fromkeys(CLOSE, 0.0), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = save_model(Path(scratch) / "model"), save_rows(Path(scratch) / "rows.json", UPDATES * ROWS)
        expected, _ = plain_trajectory(
            folder, rows(UPDATES * ROWS), per_update=ROWS, micro_batch=4, reduction="micro_batch", epochs=1, lr=1e-3
        )
        offloads = [(offload, stage) for offload in ("none", "optimizer", "all") for stage in OFFLOAD_STAGES[offload]]
        if TINY:  # what needs a GPU's time rather than its presence
            offloads = [("none", 0), ("none", 3), ("optimizer", 2)]
        left = []
        for kind, (offload, stage) in itertools.product(CLOSE, offloads):
            found = train(folder, data, Path(scratch) / f"{kind}-{stage}-{offload}", kind, stage, offload)
            pairs = [(line[key], want[place]) for line, want in zip(found, expected, strict=True)
                     for place, key in enumerate(("loss", "grad_norm"))]  # fmt: skip
            error = max(abs(a / b - 1) for a, b in pairs)
            worst[kind], settings = max(worst[kind], error), settings + 1
            if not error < CLOSE[kind]:
                missed.append(f"{kind}, stage {stage}, offload {offload}: {error:.1e}")
            left.append(torch.cuda.memory_allocated() if CUDA else 0)
            report(
                settings=settings, worst=worst, left_mb=round(max(left) / 1e6, 1)
            )  # kept where the limit cuts it off
    if max(left) > LEFT:
        missed.append(f"{max(left) / 1e6:,.0f} MB are left on the GPU after a stage")
    report(missed=missed)


if __name__ == "__main__":
    main()
