"""An experiment on several sets: train its Aligners, some from others, and measure each on every set, and a route between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligner.console import progress
from aligner.files import COMPLETED, write_json, write_lines, write_text
from aligner.locks import take
from aligner.records import UserError
from aligner.reproduce.experiment import Experiment, digest_of, rows_by_side
from aligner.reproduce.rows import write_rows
from aligner.reproduce.steps import Step, model_of, run_step, training_steps, words_of
from aligner.routing.train import FEWEST
from aligner.terminal import print_lines


def run_adding(experiment: Experiment, data: Path, folder: Path, dry_run: bool) -> int:
    """Run it at the small scale, or print its estimate alone (`dry_run`). Killed, the same command goes on."""
    release = take(folder / "reproduce.lock", f"{folder}: another run of this experiment is writing it. Wait for it.")
    try:
        counts = write_rows(experiment, data, folder / "rows")
        held_out = write_sets(experiment, data, folder / "rows")
        steps = training_steps(experiment, folder, counts)
        if experiment.route:
            steps.append(route_step(experiment, folder, write_questions(experiment, data, folder / "rows")))
        steps.append(sets_step(experiment, folder, held_out))
        left = [step for step in steps if not step.product.exists()]
        print_lines(
            f"{experiment.name}: {experiment.about}",
            "rows held out: " + ", ".join(f"{count:,} {name}" for name, count in held_out.items()),
            f"{len(left):,} of {len(steps):,} steps left: about {sum(s.seconds for s in left) / 3600:.1f} hours on two quiet cores",
        )
        if dry_run:
            return 0
        for step in progress(steps, desc=experiment.name, unit=" steps"):
            run_step(step)
        table = (folder / "sets" / "sets.md").read_text(encoding="utf-8").splitlines()[2:]
        write_text(folder / "summary.md", "\n".join([f"# {experiment.name}", "", experiment.about, "", *table]) + "\n")
        print_lines(*table, f"{folder / 'summary.md'}")
        return 0
    finally:
        release()


def write_sets(experiment: Experiment, data: Path, folder: Path) -> dict[str, int]:
    """Write the rows of each set that no run is trained on. Returns how many of each. UserError where there are none."""
    counts = {}
    for name, files in experiment.sets.items():
        rows = rows_by_side(experiment, data, tuple(files))["report"]
        if not rows:
            raise UserError(f"{experiment.name}: the set '{name}' has no rows to report. Raise questions: report.")
        counts[name] = min(len(rows), experiment.answers.get(name, len(rows)))
        write_lines(folder / f"report-{name}.jsonl", by_turns(rows)[: counts[name]])
    return counts


def by_turns(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in an order in which the first of every question come before any second, so that few rows are of many questions."""
    seen, turns = Counter[str](), []
    for row in sorted(rows, key=lambda row: digest_of(row["question"])):
        turns.append((seen[row["question"]], row))
        seen[row["question"]] += 1
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])]


def write_questions(experiment: Experiment, data: Path, folder: Path) -> dict[str, int]:
    """Write the questions that the classifier of the route learns from: of each run's files those to train on, each with an
    answer, whether or not the run has them. Returns how many of each."""
    counts, unbounded = {}, {side: 1000 * most for side, most in experiment.questions.items()}  # in the same shares
    for name in experiment.route:
        files = tuple(experiment.scales["small"].runs[name].get("rows", experiment.rows))
        rows = rows_by_side(replace(experiment, questions=unbounded), data, files)["train"]
        most = None if experiment.limit is None else max(experiment.limit, FEWEST)
        first = {row["question"]: row["answer"] for row in reversed(rows)}
        asked = list(dict.fromkeys(row["question"] for row in rows))[:most]
        write_lines(folder / f"route-{name}.jsonl", ({"question": each, "answer": first[each]} for each in asked))
        counts[name] = len(asked)
    return counts


def route_step(experiment: Experiment, folder: Path, questions: dict[str, int]) -> Step:
    """Train the classifier between the runs of the route, on so many questions of each."""
    scale, file = experiment.scales["small"], folder / "rows" / "routes.yaml"
    aligners: dict[str, Any] = {
        name: {"model": str(model_of(scale, name, folder)), "rows": str(folder / "rows" / f"route-{name}.jsonl")}
        for name in questions
    }
    write_json(
        file, {"aligners": aligners, "with_answer": True, "classifier": str(folder / "classifier")}
    )  # JSON is YAML
    seconds = 0.1 * sum(questions.values())
    return Step("route", ("aligner", "route", str(file), "--train"), folder / "classifier" / COMPLETED, seconds, file)


def sets_step(experiment: Experiment, folder: Path, held_out: dict[str, int]) -> Step:
    """The losses of every run, and of the route, on every set. The first run is the one before."""
    scale, output = experiment.scales["small"], folder / "sets"
    flags: dict[str, Any] = {
        "sets": [f"{name}={folder / 'rows' / f'report-{name}.jsonl'}" for name in held_out],
        "models": [f"{name}={model_of(scale, name, folder)}" for name in scale.runs],
    }
    flags |= {"route": folder / "rows" / "routes.yaml"} if experiment.route else {}
    words = ("aligner", "evaluate", *words_of({**flags, "dtype": "bfloat16", "output": output}))  # as it was trained
    seconds = scale.seconds.get("pair", 1) * sum(held_out.values()) * len(scale.runs)
    return Step("losses by set", words, output / "sets.json", seconds, folder / "rows")
