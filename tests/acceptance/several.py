"""Step 6: several GPUs: the same norms at 1, 2 and all ranks, and tokens a second of all over one. One GPU: nothing to do."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from aligner.training.train_log import read_log
from tests.acceptance.common import CUDA, TINY, report
from tests.acceptance.model_folder import save_model, save_rows

CLOSE = 1e-2


def main() -> None:
    gpus = torch.cuda.device_count() if CUDA else 2
    if gpus < 2:
        report(gpus=gpus, missed=[], note="needs several GPUs")
        return
    missed, norms, speeds = [], {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = save_model(Path(scratch) / "model"), save_rows(Path(scratch) / "rows.json", 48 if TINY else None)
        for ranks in sorted({1, 2, gpus}):
            out = Path(scratch) / str(ranks)
            flags = ["--model_name_or_path", folder, "--train_datasets", data, "--output_dir", out, "--gpus", ranks,
                     "--records_per_update", 16, "--epochs", 1 if TINY else 3, "--save_interval", 0,
                     "--log_type", "none"]  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-m", "aligner.launch", *map(str, flags)], stdout=sys.stderr, check=False
            )
            lines = [line for line in read_log(out) if "grad_norm" in line]
            if done.returncode or not lines:
                missed.append(f"{ranks} ranks: exit status {done.returncode}")
                continue
            norms[ranks] = [line["grad_norm"] for line in lines]
            speeds[ranks] = round(statistics.median(line["tokens_per_second"] for line in lines))
    worst = max(
        (abs(a / b - 1) for other in norms.values() for a, b in zip(other, norms.get(1, other), strict=True)),
        default=1.0,
    )
    if worst > CLOSE:
        missed.append(f"norms differ by {worst:.1e}")
    report(gpus=gpus, worst=worst, tokens_per_second=speeds, missed=missed)


if __name__ == "__main__":
    main()
