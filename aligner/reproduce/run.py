"""`aligner reproduce NAME`: an estimate first, then every step that is not done, then the figures of the chosen recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner.console import progress
from aligner.evaluation.measures.table import markdown_lines, measure_lines, report_lines
from aligner.files import read_json, write_json, write_text
from aligner.locks import take
from aligner.plots import draw_sweep
from aligner.reproduce.compare import comparison_lines
from aligner.reproduce.experiment import RUN_KEYS, Experiment, Scale
from aligner.reproduce.steps import Step, answering_steps, measuring_steps, run_step, steps_of, words_of, write_rows
from aligner.terminal import print_lines


def run_small(experiment: Experiment, data: Path, folder: Path, dry_run: bool) -> int:
    """Run an experiment at the small scale, or print its estimate alone (`dry_run`). Killed, the same command goes on."""
    release = take(folder / "reproduce.lock", f"{folder}: another run of this experiment is writing it. Wait for it.")
    try:
        answering = answering_steps(experiment, data, folder)
        if not dry_run:
            for step in progress(answering, desc=f"{experiment.name}, answers", unit=" steps"):
                run_step(step)
        counts = write_rows(experiment, data, folder / "rows")
        steps = [*answering, *steps_of(experiment, folder, counts)]
        reported = 0.0  # of recipes the chosen one's report takes as long as any other's
        if experiment.chooses:
            last = measuring_steps(experiment, folder, _recipes(experiment)[0], "report", counts["report"], 1)
            reported = sum(step.seconds for step in last)
        print_lines(*estimate_lines(experiment, steps, counts, reported))
        if dry_run:
            return 0
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


def write_reports(experiment: Experiment, folder: Path) -> list[str]:
    """summary.json and summary.md with every run's report, where there is no recipe to choose; and the lines for a terminal."""
    places = {
        (run, m): folder / "measures" / run / "report" / m for run in _recipes(experiment) for m in experiment.measures
    }
    reports = {f"{run}, {measure}": read_json(place / "measure.json") for (run, measure), place in places.items()}
    write_json(folder / "summary.json", {"experiment": experiment.name, "reports": reports})
    bodies = [f"## {run}\n\n{(place / 'measure.md').read_text()}" for (run, _), place in places.items()]
    write_text(folder / "summary.md", "\n".join([f"# {experiment.name}", "", experiment.about, "", *bodies]))
    lines = [line for name, report in reports.items() for line in (name, *report_lines(report))]
    return [*lines, f"{folder / 'summary.md'}"]


def choose_recipe(experiment: Experiment, folder: Path) -> tuple[str, int]:
    """The run with the largest gain on the questions to choose by, in the experiment's first measure; and how many there were."""
    gains = {name: _gain(folder, name, "choose", experiment.measures[0]) for name in _recipes(experiment)}
    return max(gains, key=lambda name: gains[name]), len(gains)


def _recipes(experiment: Experiment) -> list[str]:
    return [name for name, run in experiment.scales["small"].runs.items() if not run.get("shuffled")]


def _gain(folder: Path, name: str, side: str, measure: str) -> float:
    return float(_own(folder, name, side, measure)["gain"]["value"])


def _own(folder: Path, name: str, side: str, measure: str) -> dict[str, Any]:
    """The Aligner's row in the first part of a measure."""
    report = read_json(folder / "measures" / name / side / measure / "measure.json")
    row: dict[str, Any] = next(iter(report["parts"].values()))["systems"][0]
    return row


def write_summary(experiment: Experiment, folder: Path, chosen: str, tried: int) -> list[str]:
    """summary.json, and out of it summary.md and the lines for a terminal: every recipe on the questions to choose by, and the
    chosen one on those to report."""
    recipes = {name: _recipe(experiment, folder, name) for name in _recipes(experiment)}
    reports = {m: read_json(folder / "measures" / chosen / "report" / m / "measure.json") for m in experiment.measures}
    summary = {"experiment": experiment.name, "chosen": chosen, "tried": tried, "recipes": recipes, "report": reports}
    write_json(folder / "summary.json", summary)
    _draw(recipes, folder / "summary.png")
    table = _recipe_table(recipes, chosen)
    body = [line for report in reports.values() for line in markdown_lines(report)]
    write_text(
        folder / "summary.md", "\n".join([f"# {experiment.name}", "", experiment.about, "", *table, "", *body]) + "\n"
    )
    lines = [line for report in reports.values() for line in measure_lines(report)]
    return [
        *table,
        f"chosen of {tried}: {chosen}; on the questions to report, measured once:",
        *lines,
        f"{folder / 'summary.md'}",
    ]


def _draw(recipes: dict[str, dict[str, Any]], file: Path) -> None:
    """The recipes one after another: the gain by each measure, the losses by kind of token, the share left alone."""
    each = list(recipes.values())
    series = {f"gain, {measure}": [r["gains"][measure]["value"] for r in each] for measure in each[0]["gains"]}
    series |= {f"loss on {kind} tokens": [r["loss"][kind] for r in each] for kind in ("copied", "edited")}
    draw_sweep(list(recipes), {**series, "share left alone": [r["left_alone"] for r in each]}, file)


def _recipe(experiment: Experiment, folder: Path, name: str) -> dict[str, Any]:
    """A run's figures on the questions to choose by."""
    [losses] = read_json(folder / "measures" / name / "choose" / "losses" / "report.json")["course"]
    copied = losses["copying"]["all"]
    return {
        "flags": dict(experiment.scales["small"].runs[name]),
        "gains": {measure: _own(folder, name, "choose", measure)["gain"] for measure in experiment.measures},
        "loss": {kind: losses["loss"]["all"][kind]["loss"] for kind in ("copied", "edited")},
        "loss_by_upstream": {key: value for key, value in losses["loss"].items() if key != "all"},
        "left_alone": copied["identical"] / copied["pairs"],
    }


def _recipe_table(recipes: dict[str, dict[str, Any]], chosen: str) -> list[str]:
    measures = list(next(iter(recipes.values()))["gains"])
    heads = ["run", *(f"gain, {measure} (95 %)" for measure in measures), "loss copied", "loss edited", "left alone"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, recipe in recipes.items():
        gains = [f"{g['value']:+.3f} ({g['low']:+.3f} to {g['high']:+.3f})" for g in recipe["gains"].values()]
        losses = ["-" if value is None else f"{value:.3f}" for value in recipe["loss"].values()]
        cells = [f"**{name}**" if name == chosen else name, *gains, *losses, f"{recipe['left_alone']:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


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
