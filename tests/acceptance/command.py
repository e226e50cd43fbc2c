"""Step 3: the whole command, warm-up and correction, stopped and gone on with, exported, and all stages in one process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aligner.files import is_completed
from aligner.training.train_log import read_log
from tests.acceptance.common import report
from tests.acceptance.model_folder import save_model, save_rows


def flags(folder: Path, data: Path, out: Path) -> list[str]:
    """Fifteen updates of the warm-up, and fifteen of the correction."""
    given = ["--model_name_or_path", folder, "--train_datasets", data, "--output_dir", out, "--identity_proportion", 1,
             "--epochs", 1, "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 1, "--save_interval", 2,
             "--log_type", "none"]  # fmt: skip
    return list(map(str, given))


def losses(out: Path) -> list[float]:
    """Of every update of both stages."""
    return [line["loss"] for folder in (out / "identity", out) for line in read_log(folder) if "loss" in line]


def stopped_and_resumed(command: list[str], out: Path) -> int:
    """Stop the command by Ctrl-C in its main stage, then run it again. Its exit status."""
    with subprocess.Popen(command, stdout=sys.stderr) as first:
        while first.poll() is None and len(read_log(out)) < 4:
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        first.wait()
    print(f"stopped: exit status {first.returncode}", file=sys.stderr)
    return (
        subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if first.returncode == 75
        else first.returncode
    )


def main() -> None:
    missed = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = save_model(Path(scratch) / "model"), save_rows(Path(scratch) / "rows.json")
        straight, disturbed, single = (Path(scratch) / name for name in ("straight", "disturbed", "single"))
        program, aligner = [sys.executable, "-m", "aligner.launch"], [sys.executable, "-m", "aligner"]
        began = time.monotonic()
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "1",
            "-m",
            "aligner.launch",
        ]
        runs = {
            "the command": subprocess.run(
                program + flags(folder, data, straight), stdout=sys.stderr, check=False
            ).returncode,
            "stopped and resumed": stopped_and_resumed(program + flags(folder, data, disturbed), disturbed),
            "torchrun": subprocess.run(
                torchrun + flags(folder, data, single), stdout=sys.stderr, check=False
            ).returncode,
        }
        states = sorted((straight / "checkpoints").glob("update-*"))
        exported = Path(scratch) / "exported"
        export = [*aligner, "export", str(states[-1]), "--output", str(exported)] if states else ["false"]
        runs["export"] = subprocess.run(export, stdout=sys.stderr, check=False).returncode
        missed += [f"{name}: exit status {status}" for name, status in runs.items() if status]
        expected = losses(straight)
        worst = 0.0
        for name, out in (("stopped and resumed", disturbed), ("torchrun", single)):
            found = losses(out)
            if len(found) != len(expected) or not expected or not is_completed(out):
                missed.append(f"{name}: {len(found)} updates of {len(expected)}")
            else:
                worst = max(worst, *(abs(a / b - 1) for a, b in zip(found, expected, strict=True)))
        # The kernel's backward pass adds in another order each time: bf16's differences, not a resume's.
        if worst > 2e-2:
            missed.append(f"losses differ by {worst:.1e}")
        report(updates=len(expected), worst=worst, seconds_of_runs=round(time.monotonic() - began, 1), missed=missed)


if __name__ == "__main__":
    main()
