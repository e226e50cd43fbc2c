"""`aligner reproduce NAME`: an estimate first, then every step that is not done, then the figures of the chosen recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner.console import progress
from aligner.locks import take
from aligner.reproduce.compare import comparison_lines
from aligner.reproduce.experiment import RUN_KEYS, Experiment, Scale
from aligner.reproduce.rows import write_rows
from aligner.reproduce.steps import Step, answering_steps, measuring_steps, run_step, steps_of, words_of
from aligner.reproduce.summary import choose_recipe, recipes_of, write_reports, write_summary
from aligner.terminal import print_lines


def run_small(experiment: Experiment, data: Path, folder: Path, dry_run: bool) -> int:
    """Run an experiment at the small scale, or print its estimate alone (`dry_run`). Killed, the same command goes on."""
    release = take(folder / "reproduce.lock", f"{folder}: another run of this experiment is writing it. Wait for it.")
    try:
        answering = answering_steps(experiment, data, folder)
        counts = write_rows(experiment, data, folder / "rows")
        steps = [*answering, *steps_of(experiment, folder, counts)]
        reported = 0.0  # of recipes the chosen one's report takes as long as any other's
        if experiment.chooses:
            last = measuring_steps(experiment, folder, recipes_of(experiment)[0], "report", counts["report"], 1)
            reported = sum(step.seconds for step in last)
        print_lines(*estimate_lines(experiment, steps, counts, reported))
        if dry_run:
            return 0
        for step in answering:
            run_step(step)
        if answering:  # now with the answers
            counts = write_rows(experiment, data, folder / "rows")
            steps = steps_of(experiment, folder, counts)
        for step in progress(steps, desc=experiment.name, unit=" steps"):
            run_step(step)
        if not experiment.chooses:
            print_lines(*write_reports(experiment, folder))
            return 0
        chosen, tried = choose_recipe(experiment, folder)
        last = measuring_steps(experiment, folder, chosen, "report", counts["report"], tried)
        for step in progress(last, desc=f"{experiment.name}, report", unit=" steps"):
            run_step(step)
        print_lines(*write_summary(experiment, folder, chosen, tried))
        return 0
    finally:
        release()


def estimate_lines(experiment: Experiment, steps: Sequence[Step], counts: dict[str, int], reported: float) -> list[str]:
    """What the experiment is, its rows by side, and the hours that are left, with the seconds that the report takes."""
    left = [step for step in steps if not step.product.exists()]
    hours = (sum(step.seconds for step in left) + reported) / 3600
    sides = ", ".join(f"{counts[side]:,} to {side}" for side in ("train", "choose", "report"))
    return [
        f"{experiment.name}: {experiment.about}",
        f"rows: {sides} (no question is on two sides)",
        f"{len(left):,} of {len(steps):,} steps left, and the report: about {hours:.1f} hours on two quiet cores",
    ]


def paper_lines(experiment: Experiment) -> list[str]:
    """The paper's size: for each run its hours by the plan, the command that says what it needs, and the one that trains; then the
    commands that are no training. Nothing is run."""
    scale = experiment.scales["paper"]
    lines = [f"# {experiment.name}: {experiment.about}"]
    for name in scale.runs:
        flags = _paper_flags(experiment, scale, name)
        request = {"rows": scale.runs[name].get("records", scale.records)}
        request |= {key: getattr(scale, key) for key in ("gpu_memory", "tokens_per_row", "tflops")}
        recipe = words_of({"gpus": scale.gpus, **{key: flags[key] for key in flags if key != "train_datasets"}})
        lines.append(f"# {name}, {request['rows']:,} rows: {_hours(recipe, request)}")
        lines.append(shlex.join(["aligner", "plan", *words_of(request), *recipe]))
        lines.append(shlex.join(["bash", "scripts/sft-correction.sh", *words_of(flags)]))
    return [*lines, *scale.commands, *(comparison_lines(experiment) if experiment.comparison else [])]


def _hours(recipe: Sequence[str], request: dict[str, Any]) -> str:
    """The plan's last line, which is of time."""
    from aligner.training.planning.report import (
        PlanRequest,
        report,
    )  # with torch, which the small scale starts elsewhere

    lines, _ = report([*recipe, "--gradient_checkpointing", "True"], PlanRequest(**request))
    return lines[-1]


def _paper_flags(experiment: Experiment, scale: Scale, name: str) -> dict[str, Any]:
    output = f"output/reproduce/{experiment.name}/{name}"
    run = {key: value for key, value in scale.runs[name].items() if key not in RUN_KEYS}
    return {**scale.train, **run, "output_dir": output}
