"""A stage of a round: a folder that says COMPLETED, made by a process of its own.

`stage.json` in it has what decides the result. A stage that is complete is not made again, and one that was made with other
settings ends the command, so that a killed run goes on with the same command and no other.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.evaluation.subprocess_step import StepFailed, the_same
from aligner.files import COMPLETED, is_completed, read_json, remove_folder, write_json, write_text
from aligner.launch.watch import end_session, start_guard
from aligner.locks import take
from aligner.parsing import json_value
from aligner.records import UserError

ABOUT = "stage.json"
LOCK = ".lock"  # of the process that makes it; a training's own is called so too
PARTS = "parts"  # of a stage that works on rows: what is done of them
PATIENCE = 60.0  # seconds that an earlier start, whose command was killed, has to end
JOB = "job.json"  # how it is made, beside what decides the result: addresses, numbers of threads


@dataclass(frozen=True)
class RoundStage:
    """words: of `python -m`, which leaves the folder complete, where `make` does not make it here. decides: what its result follows
    from. job: what the process needs besides."""

    name: str
    folder: Path
    decides: dict[str, Any]
    words: tuple[str, ...] = ()
    job: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Path], None] | None = None


def run_round_stage(stage: RoundStage) -> bool:
    """Make a stage that is not there; whether it had to be. UserError where it was made with other settings, StepFailed where its
    process fails."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    about = stage.folder / ABOUT
    if not is_completed(stage.folder) and about.exists() and read_json(about) != json_value(json.dumps(stage.decides)):
        remove_folder(stage.folder / PARTS)  # begun with other settings
    the_same(about, stage.decides, stage.folder / COMPLETED)
    if is_completed(stage.folder):
        return False
    write_json(stage.folder / JOB, stage.job)
    if stage.make:
        stage.make(stage.folder)
        write_text(stage.folder / COMPLETED, "")
        return True
    wait_for_earlier_start(stage.folder)
    status = status_of(stage.words)
    if status not in (0, 1) or not is_completed(stage.folder):
        raise StepFailed(f"{stage.name} ended with {status}: see above. The same command goes on from there.")
    return True


def status_of(words: Sequence[str]) -> int:
    """Run `python -m WORDS`; its exit status. It does not outlive this process, however that ends; stopped by a signal, this ends
    when the other has: a training saves its state first."""
    process = subprocess.Popen([sys.executable, "-m", *words], start_new_session=True)
    guard = start_guard(process.pid)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is Ctrl-C
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        end_session(process)
        guard.communicate(b"ended")


def wait_for_earlier_start(folder: Path) -> None:
    """Return when nobody writes into a stage: what a killed command had started is about to end. UserError where it does not."""
    busy = f"{folder}: another process is writing this stage. Wait for its end, or stop it."
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            take(folder / LOCK, busy)()
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
