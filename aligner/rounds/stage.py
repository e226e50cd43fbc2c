"""A stage of a round: a folder that says COMPLETED, made by a process of its own.

`stage.json` in it has what decides the result. A stage that is complete is not made again, and one that was made with other
settings ends the command, so that a killed run goes on with the same command and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.evaluation.subprocess_step import StepFailed, status_of, the_same
from aligner.files import COMPLETED, is_completed, write_json, write_text

ABOUT = "stage.json"
JOB = "job.json"  # how it is made, beside what decides the result: addresses, numbers of threads


@dataclass(frozen=True)
class RoundStage:
    """words: of `python -m`, which leaves the folder complete, where `make` does not make it here. decides: what its result follows
    from. job: what the process needs besides."""

    name: str
    folder: Path
    decides: Mapping[str, Any]
    words: tuple[str, ...] = ()
    job: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[Path], None] | None = None


def run_round_stage(stage: RoundStage) -> bool:
    """Make a stage that is not there; whether it had to be. UserError where it was made with other settings, StepFailed where its
    process fails."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    the_same(stage.folder / ABOUT, dict(stage.decides), stage.folder / COMPLETED)
    if is_completed(stage.folder):
        return False
    write_json(stage.folder / JOB, dict(stage.job))
    if stage.make:
        stage.make(stage.folder)
        write_text(stage.folder / COMPLETED, "")
        return True
    status = status_of(stage.words)
    if status not in (0, 1) or not is_completed(stage.folder):
        raise StepFailed(f"{stage.name} ended with {status}: see above. The same command goes on from there.")
    return True
