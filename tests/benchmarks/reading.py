"""What `aligner check` of many rows takes: CPU seconds, wall seconds and peak memory, by format, and the ratio to plain JSON lines.

python -m tests.benchmarks.reading [--rows 1000000] [--before REVISION]    a column for an earlier revision of the package

A command's peak memory is never below that of the process that started it: this one imports nothing large, and another one
writes the files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("question", "answer", "correction")
WORDS = [f"word{n}" for n in range(3000)]
TITLES = {"rows.jsonl": "JSON lines", "rows.jsonl.gz": "JSON lines, gz", "rows.parquet": "Parquet"}


@dataclass(frozen=True)
class Cost:
    """CPU and wall seconds, and the peak resident memory in MB, of one command."""

    cpu: float
    wall: float
    memory: float

    def __str__(self) -> str:
        return f"{self.cpu:.1f} s ({self.wall:.0f} s), {self.memory:.0f} MB"


def rows(count: int) -> Iterator[dict[str, str]]:
    """Records of some 530 bytes whose questions differ, of words drawn by a seed."""
    draw = random.Random(0)
    for number in range(count):
        words = draw.choices(WORDS, k=72)
        texts = (f"{number} {' '.join(words[:12])}", " ".join(words[12:42]), " ".join(words[42:]))
        yield dict(zip(NAMES, texts, strict=True))


def write_files(folder: Path, count: int) -> None:
    """The same rows as JSON lines, the same compressed, and Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain, packed, columns = (folder / name for name in TITLES)
    schema = pa.schema([(name, pa.string()) for name in NAMES])
    group: list[dict[str, str]] = []
    with plain.open("w") as lines, gzip.open(packed, "wt", 6) as archive, pq.ParquetWriter(columns, schema) as writer:
        for number, row in enumerate(rows(count), 1):
            line = json.dumps(row) + "\n"
            lines.write(line)
            archive.write(line)
            group.append(row)
            if len(group) == 50_000 or number == count:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []


def checked(file: Path, count: int, package: Path = ROOT) -> Cost | None:
    """The cost of `aligner check` with the package of a checkout; None where it refuses the file."""
    command = [sys.executable, "-m", "aligner", "check", str(file)]
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile("w+") as said:
        variables = {**os.environ, "PYTHONPATH": str(package), "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        began = time.monotonic()
        program = subprocess.Popen(command, stdout=said, stderr=said, env=variables, cwd=package)
        _, status, usage = os.wait4(program.pid, 0)
        wall = time.monotonic() - began
        program.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if program.returncode == 2:
        return None
    assert program.returncode == 0 and f"{count:,} of {count:,} rows are usable" in text, text[-500:]
    assert count < 100_000 or "reading" in text, "the progress bar"
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def table(files: list[Path], count: int, packages: dict[str, Path]) -> Iterator[str]:
    """The table, a line as soon as it is measured; the ratio is of CPU seconds to the first file's, with the last package."""
    yield f"| | {' | '.join(packages)} | to plain |"
    yield "|---" * (2 + len(packages)) + "|"
    plain = 0.0
    for file in files:
        costs = [checked(file, count, package) for package in packages.values()]
        plain = plain or (costs[-1].cpu if costs[-1] else 0.0)
        ratio = f"{costs[-1].cpu / plain:.2f}" if costs[-1] else ""
        yield f"| {TITLES[file.name]} | {' | '.join(str(cost or 'refused') for cost in costs)} | {ratio} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--before", help="an earlier revision, measured too")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        writer = get_context("spawn").Process(target=write_files, args=(Path(scratch), flags.rows))
        writer.start()
        writer.join()
        assert writer.exitcode == 0
        files = [Path(scratch, name) for name in TITLES]
        packages, earlier = {"now": ROOT}, Path(scratch) / "earlier"
        print(", ".join(f"{file.name}: {file.stat().st_size / 1e6:,.0f} MB" for file in files), flush=True)
        if flags.before:
            add = ["git", "worktree", "add", "--detach", str(earlier), flags.before]
            subprocess.run(add, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            packages = {"before": earlier, **packages}
        try:
            for line in table(files, flags.rows, packages):
                print(line, flush=True)
        finally:
            if flags.before:
                subprocess.run(["git", "worktree", "remove", "--force", str(earlier)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
