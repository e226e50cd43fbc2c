"""What the pure parts of a run take as rows and ranks grow: seconds, and the memory of a rank's process.

python -m tests.benchmarks.growth [--rows 10000000] [--ranks 1024]

Each part runs in a process of its own, on rows whose lengths are drawn (lognormal, 200 tokens in the middle).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS_OF_A_RANK = 4 * 8  # the paper's recipe: four rows eight times
Part = Callable[[int, int, Path], Any]


def table(rows: int, middle: int = 200) -> Any:
    """Rows as a run has them once they are tokens, with `middle` tokens in the middle."""
    from aligner.training.datasets.token_table import TokenTable

    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(middle), 0.7, rows), 8, 2048).astype(np.int64)
    columns, ends = np.zeros((rows, 6), dtype=np.int64), np.cumsum(lengths)
    columns[:, 0], columns[:, 1], columns[:, 3] = ends, lengths // 2, np.arange(1, rows + 1)
    return TokenTable(np.zeros(int(ends[-1]), dtype=np.int32), columns, ("rows.jsonl",))


def plan_of(rows: int, ranks: int) -> Any:
    """The arithmetic of a run by the paper's recipe."""
    from aligner.training.plan import Plan

    return Plan(rows, ROWS_OF_A_RANK * ranks, 4, ranks, 3, 0.03)


def mixture(rows: int, ranks: int, folder: Path) -> Callable[[], Any]:
    """Records -> the training and the held-out side, and the warm-up's share. The records share their text: it is not counted."""
    from aligner.records import Correction, Origin
    from aligner.training.datasets.mixture import identity, sample, split

    text = "a" * 200
    records = [Correction(f"question {n}", text, text, Origin("rows.jsonl", n)) for n in range(rows)]
    return lambda: identity(split(sample(records, rows, "0"), 0.05, 0)[0], 0.2, 0)


def order(rows: int, ranks: int, folder: Path) -> Callable[[], Any]:
    """The order of an epoch, once an epoch."""
    from aligner.training.engine.batching import order_of_epoch

    return lambda: order_of_epoch(rows, 0, 0)


def one_update(rows: int, ranks: int, folder: Path) -> Callable[[], Any]:
    """A rank's micro-batches of an update, made while the update before it is computed."""
    from aligner.training.datasets.token_table import target_lengths_of
    from aligner.training.engine.batching import Layout, micro_batches, row_weights, rows_of_update

    plan, tokens, layout = plan_of(rows, ranks), table(rows), Layout(True, 4, 8192, 0, 0.5)
    rows_of_update(plan, 0, 0)  # the epoch's order is there

    def update() -> object:
        _, chosen = rows_of_update(plan, 0, 1)
        weights = row_weights(target_lengths_of(tokens)[chosen], 4, "micro_batch")
        return micro_batches(tokens, chosen, weights, layout, ranks, ranks - 1)

    return update


def cache(rows: int, ranks: int, folder: Path) -> Callable[[], Any]:
    """Tokens from the cache, mapped: their memory is the host's, whatever the number of its ranks. (Rows of 20 tokens.)"""
    from aligner.training.datasets import cache as kept
    from aligner.training.datasets.supervised import Tally

    file = folder / "tokens.safetensors"
    if not file.exists():
        kept._write(file, table(rows, 20), Tally())
        subprocess.run([sys.executable, *sys.argv], check=True)  # a process that has never had the rows
        sys.exit()
    return lambda: kept._read(file)


PARTS: dict[str, Part] = {"mixture": mixture, "order": order, "one update": one_update, "cache": cache}


def measure(part: str, rows: int, ranks: int, folder: Path) -> dict[str, float]:
    """Seconds of a part, the peak memory of the process above what it had without the rows, and mapped files, in MB."""
    import aligner.training.engine.batching  # noqa: F401  (torch: not of this part)

    before, work = memory("VmHWM"), PARTS[part](rows, ranks, folder)
    began = time.process_time()
    kept = work()
    seconds = time.process_time() - began
    shared = memory("RssFile")  # mapped files, which all processes of a host share
    del kept
    return {"seconds": round(seconds, 2), "memory": round(memory("VmHWM") - before), "mapped": round(shared)}


def memory(name: str) -> float:
    """A figure of this process by its name in /proc/self/status, in MB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1e3


def main() -> None:
    """Print the table, or with --part measure one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.rows, options.ranks, options.folder)))
        return
    print(
        "| part | rows | ranks | CPU seconds | peak memory of the process, MB | mapped files, MB |\n|---|---|---|---|---|---|"
    )
    for part in PARTS:
        for rows, ranks in ((options.rows // 10, 8), (options.rows, options.ranks)):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "tests.benchmarks.growth", "--part", part, "--folder", folder]
                command += ["--rows", str(rows), "--ranks", str(ranks)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            cost = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {part} | {rows:,} | {ranks:,} | {cost['seconds']} | {cost['memory']:,} | {cost['mapped']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
