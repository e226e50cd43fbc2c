"""A real run of two CPU ranks that tests watch and disturb, and the table of what its user saw."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE
from test_resume import losses, processes_of, weights

TABLE: list[tuple[str, str, int, str]] = []  # what was done, what the user saw, the exit status, what survived


class Run:
    """A real run of two CPU ranks that can be watched and disturbed."""

    def __init__(self, model: Path, out: Path, *flags: object, script: bool = False, **variables: str):
        self.out = out
        self.flags = ["--train_datasets", str(TEMPLATE), "--model_name_or_path", str(model), "--output_dir", str(out),
                      "--records_per_update", "8", "--max_length", "512", "--save_interval", "4", "--gpus", "2", "--bf16",
                      "False", "--log_type", "none", *map(str, flags)]  # fmt: skip
        self.command = [sys.executable, "-m", "aligner.launch", *self.flags]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # a package may lie there
        self.variables = {**os.environ, "PYTHONPATH": paths, **variables}
        self.said = ""

    def start(self) -> Run:
        self.process = subprocess.Popen(
            self.command, env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        return self

    def until(self, updates: int) -> Run:
        """Wait until so many updates are made."""
        deadline = time.monotonic() + 120
        while self.made() < updates:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[0].decode()
            time.sleep(0.05)
        return self

    def made(self) -> int:
        log = self.out / "train_log.jsonl"
        return log.read_text().count('"loss"') if log.is_file() else 0

    def end(self, timeout: float = 200) -> int:
        """Wait for its end; its exit status. Nothing of it may be left."""
        self.said = self.process.communicate(timeout=timeout)[0].decode().replace("\r", "\n")
        deadline = time.monotonic() + 10
        while processes_of(self.out) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes_of(self.out), "an orphan is left"
        return self.process.returncode

    def rank(self, number: int) -> int:
        """The process of a rank."""
        return int(json.loads((self.out / "ranks" / f"{number:05}.json").read_text())["process"])

    def line(self, pattern: str) -> str:
        """The line a user reads."""
        assert "Traceback" not in self.said, self.said
        found = [line for line in self.said.splitlines() if re.search(pattern, line)]
        assert found, self.said
        return found[-1].strip()

    def states(self) -> list[str]:
        return (
            sorted(p.name for p in (self.out / "checkpoints").glob("*")) if (self.out / "checkpoints").is_dir() else []
        )


def goes_on(run: Run, whole: Path) -> None:
    """The same command again ends as the run that nothing disturbed."""
    assert run.start().end() == 0, run.said
    assert losses(run.out) == losses(whole) and weights(run.out) == weights(whole)
    assert (
        not list(run.out.rglob("*.partial*")) and not (run.out / "STOP").exists() and not (run.out / "ranks").exists()
    )


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of this size."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
