"""The acceptance run of a GPU: what a CPU cannot settle, step by step, within ten minutes on one GPU.

    bash scripts/test.sh --gpu [--tiny] [--only kernel losses ...] [--output DIR]

Each step is a program of its own with its own limit (`python -m tests.acceptance.kernel`), so that one that fails or hangs ends
alone. Those that take no times run side by side. Each prints one line, and appends one JSON object to DIR/acceptance.jsonl. --tiny
rehearses every step on a CPU at sizes that show that the programs work and nothing else. Exit status 1: a step failed or missed
its mark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from aligner.launch.command import ALLOCATION

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {  # seconds; the first step decides whether the others make sense
    "device": 60, "kernel": 90, "losses": 150, "command": 200, "throughput": 240, "memory": 90, "several": 240, "decoding": 180,
}  # fmt: skip
TOGETHER = ("losses", "command")  # small models, and no times: most of it is the host's work


def run(step: str, tiny: bool, output: Path) -> dict[str, object]:
    """Run one step. Its figures are the lines of JSON that it prints; they and what it says besides lie in a log of its own."""
    command = [sys.executable, "-m", f"tests.acceptance.{step}", *(["--tiny"] if tiny else [])]
    limit = LIMITS[step] * (3 if tiny else 1)  # of a rehearsal, which may be on a busy CPU
    began, log = time.monotonic(), output / f"{step}.log"
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=file,
                timeout=limit,
                check=False,
                env={**ALLOCATION, **os.environ},
            )
            status = done.returncode
        except subprocess.TimeoutExpired:
            status = 124
    figures: dict[str, object] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{"):  # each adds to the figures: what a step measured before it failed is kept
            figures |= json.loads(line)
    missed = figures.pop("missed", [])
    if status:
        missed = [*missed, f"exit status {status}; see {log}"]  # type: ignore[misc]
    return {"step": step, "seconds": round(time.monotonic() - began, 1), "missed": missed, **figures}


def run_all(steps: Sequence[str], tiny: bool, output: Path) -> Iterator[dict[str, object]]:
    """Run the steps in order, those side by side where the first of them stands; nothing more where no GPU is seen."""
    together = [step for step in steps if step in TOGETHER and not tiny]
    for step in steps:
        if step not in together:
            yield (result := run(step, tiny, output))
            if step == "device" and result["missed"]:
                return
        elif step == together[0]:
            with ThreadPoolExecutor(len(together)) as pool:
                for each in as_completed([pool.submit(run, other, tiny, output) for other in together]):
                    yield each.result()


def main(arguments: list[str]) -> int:
    """Run the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU at tiny sizes")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS), help="these steps alone")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output" / "acceptance", help="folder of logs and figures"
    )
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    with (args.output / "acceptance.jsonl").open("a", encoding="utf-8") as file:
        for result in run_all(args.only, args.tiny, args.output):
            results.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(json.dumps(result), flush=True)
    passed = sum(not result["missed"] for result in results)
    print(f"{passed} of {len(results)} steps passed")
    return int(passed < len(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
