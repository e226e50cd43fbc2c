"""What tests share because it takes long to start: a launch of ranks, and a process that has the heavy imports behind it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "transformers", "aligner.inference.corrector", "aligner.evaluation.evaluate"]


def environment(ranks: int) -> dict[str, str]:
    """The environment of CPU ranks, and the project on their path."""
    variables = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    path = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **variables, "PYTHONPATH": ":".join(path)}


class Launch:
    """CPU ranks under the real DeepSpeed launcher that do one job after another (programs/ranks.py)."""

    def __init__(self, ranks: int) -> None:
        from aligner.training.distributed.launcher_variables import free_port

        self.ranks, self.jobs = ranks, 0
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self.scratch.name)
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", str(ranks)]
        command += ["--master_port", str(free_port()), "--module", "programs.ranks", str(self.folder)]
        with (self.folder / "launcher.log").open("w") as log:
            self.process = subprocess.Popen(
                command, env={**environment(ranks), "OWNER": str(os.getpid())}, stdout=log, stderr=subprocess.STDOUT
            )

    def run(self, module: str, arguments: Sequence[object], timeout: float) -> tuple[set[int], str]:
        """The ranks' exit statuses, and what the launcher and they said."""
        number, self.jobs = self.jobs, self.jobs + 1
        job, deadline = self.folder / f"{number}.json", time.monotonic() + timeout
        job.with_suffix(".partial").write_text(json.dumps([module, [str(a) for a in arguments]]))
        job.with_suffix(".partial").rename(job)
        files = [self.folder / f"{number}-{rank}.status" for rank in range(self.ranks)]
        while self.process.poll() is None and not all(file.exists() for file in files):
            assert time.monotonic() < deadline, f"{module} took longer than {timeout} s\n{self.said(number)}"
            time.sleep(0.01)
        statuses = {int(file.read_text()) if file.exists() else 1 for file in files}
        if 1 in statuses:
            self.end()
        return statuses, self.said(number)

    def said(self, number: int) -> str:
        logs = [self.folder / "launcher.log", *(self.folder / f"{number}-{rank}.log" for rank in range(self.ranks))]
        return "".join(log.read_text() for log in logs if log.exists())

    def end(self) -> None:
        """Every process has ended when this returns."""
        (self.folder / "end").touch()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.terminate()  # the launcher kills its ranks
            self.process.wait(60)

    def close(self) -> None:
        """End it and remove what it wrote."""
        self.end()
        self.scratch.cleanup()


class Launches:
    """The launches that are open, one for a number of ranks. One that failed is started anew."""

    def __init__(self) -> None:
        self.open: dict[int, Launch] = {}

    def of(self, ranks: int) -> Launch:
        if ranks in self.open and self.open[ranks].process.poll() is not None:
            self.open.pop(ranks).close()
        if ranks not in self.open:
            self.open[ranks] = Launch(ranks)
        return self.open[ranks]

    def close(self) -> None:
        for launch in self.open.values():
            (launch.folder / "end").touch()  # all end at once
        while self.open:
            self.open.popitem()[1].close()


LAUNCHES = Launches()


@cache
def forks() -> BaseContext:
    """Processes of their own that fork from one with the heavy imports behind it, which does nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"  # the process that is forked from reads this alone
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return context


def _aligner(words: Sequence[str], variables: dict[str, str], folder: str, out: str, err: str) -> None:
    """`aligner WORDS` in this process, with its output in files."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    from aligner.cli import main

    status = main(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_aligner(command: Sequence[str], **_: Any) -> SimpleNamespace:
    """In place of `subprocess.run` of `python -m aligner ...`: the same command, from the same files, in a process of its own."""
    assert list(command[:3]) == [sys.executable, "-m", "aligner"]
    with tempfile.TemporaryDirectory() as scratch:
        files = [str(Path(scratch) / name) for name in ("out", "err")]
        process = forks().Process(target=_aligner, args=(command[3:], dict(os.environ), str(Path.cwd()), *files))
        process.start()
        process.join()
        said = [Path(file).read_bytes() if Path(file).exists() else b"" for file in files]
        for descriptor, text in zip((1, 2), said, strict=True):
            os.write(descriptor, text)
    return SimpleNamespace(returncode=process.exitcode, stdout=said[0].decode(), stderr=said[1].decode())
