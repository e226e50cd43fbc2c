"""What an experiment has shown: summary.json, and out of it summary.md, a picture, and the lines for a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.evaluation.measures.table import markdown_lines, measure_lines, report_lines
from aligner.files import read_json, write_json, write_text
from aligner.plots import draw_sweep
from aligner.readers.rows import read_rows
from aligner.records import Row
from aligner.reproduce.experiment import Experiment


def write_reports(experiment: Experiment, folder: Path) -> list[str]:
    """summary.json and summary.md with every run's report, where there is no recipe to choose; and the lines for a terminal."""
    places = {
        (run, m): folder / "measures" / run / "report" / m
        for run in recipes_of(experiment)
        for m in experiment.measures
    }
    reports = {f"{run}, {measure}": read_json(place / "measure.json") for (run, measure), place in places.items()}
    write_json(folder / "summary.json", {"experiment": experiment.name, "reports": reports})
    bodies = [f"## {run}\n\n{(place / 'measure.md').read_text()}" for (run, _), place in places.items()]
    write_text(folder / "summary.md", "\n".join([f"# {experiment.name}", "", experiment.about, "", *bodies]))
    lines = [line for name, report in reports.items() for line in (name, *report_lines(report))]
    return [*lines, f"{folder / 'summary.md'}"]


def choose_recipe(experiment: Experiment, folder: Path) -> tuple[str, int]:
    """The run with the largest gain on the questions to choose by, in the experiment's first measure; and how many there were."""
    gains = {name: _gain(folder, name, "choose", experiment.measures[0]) for name in recipes_of(experiment)}
    return max(gains, key=lambda name: gains[name]), len(gains)


def recipes_of(experiment: Experiment) -> list[str]:
    """The runs that are compared: all but the control."""
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
    recipes = {name: _recipe(experiment, folder, name) for name in recipes_of(experiment)}
    reports = {m: read_json(folder / "measures" / chosen / "report" / m / "measure.json") for m in experiment.measures}
    summary = {"experiment": experiment.name, "chosen": chosen, "tried": tried, "recipes": recipes, "report": reports}
    write_json(folder / "summary.json", summary)
    _draw(recipes, folder / "summary.png")
    table = [*_recipe_table(recipes, chosen), *_upstream_table(recipes), *_passes_table(recipes)]
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
    """A run's figures on the questions to choose by. One that corrects like another has its losses, and what it leaves alone is
    not measured."""
    run = experiment.scales["small"].runs[name]
    like = run.get("like", name)
    [losses] = read_json(folder / "measures" / like / "choose" / "losses" / "report.json")["course"]
    copied = losses["copying"]["all"]
    passes = folder / "measures" / name / "choose" / "passes.jsonl"
    return {
        "flags": dict(run),
        "gains": {measure: _own(folder, name, "choose", measure)["gain"] for measure in experiment.measures},
        "loss": {kind: losses["loss"]["all"][kind]["loss"] for kind in ("copied", "edited")},
        "loss_by_upstream": {key: value for key, value in losses["loss"].items() if key != "all"},
        "left_alone": copied["identical"] / copied["pairs"] if like == name else None,
        "left_by_pass": left_by_pass(passes) if experiment.passes > 1 else [],
    }


def left_by_pass(file: Path) -> list[float]:
    """Of an output of `aligner correct --passes`: for each pass the share of rows that it left as they were."""
    rows = [row.value for row in read_rows(file) if isinstance(row, Row)]
    texts = [[row["answer"], *row["passes"]] for row in rows if row.get("passes")]
    return [
        sum(before == after for before, after in pairs) / len(texts)
        for pairs in zip(*(itertools.pairwise(each) for each in texts), strict=True)
    ]


def _recipe_table(recipes: dict[str, dict[str, Any]], chosen: str) -> list[str]:
    measures = list(next(iter(recipes.values()))["gains"])
    heads = ["run", *(f"gain, {measure} (95 %)" for measure in measures), "loss copied", "loss edited", "left alone"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, recipe in recipes.items():
        gains = [f"{g['value']:+.3f} ({g['low']:+.3f} to {g['high']:+.3f})" for g in recipe["gains"].values()]
        losses = ["-" if value is None else f"{value:.3f}" for value in recipe["loss"].values()]
        cells = [
            f"**{name}**" if name == chosen else name,
            *gains,
            *losses,
            "-" if recipe["left_alone"] is None else f"{recipe['left_alone']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _upstream_table(recipes: Mapping[str, dict[str, Any]]) -> list[str]:
    """Losses on copied and edited tokens by the upstream whose answers are corrected; none where there is one alone."""
    upstreams = sorted({name for recipe in recipes.values() for name in recipe["loss_by_upstream"] if name})
    if len(upstreams) < 2:
        return []
    lines = ["", f"| loss copied, edited | {' | '.join(upstreams)} |", "|" + "---|" * (len(upstreams) + 1)]
    for name, recipe in recipes.items():
        only = recipe["flags"].get("upstream")
        by = {
            each: [recipe["loss_by_upstream"][each][kind]["loss"] for kind in ("copied", "edited")]
            for each in upstreams
        }
        cells = [", ".join("-" if x is None else f"{x:.3f}" for x in by[each]) for each in upstreams]
        seen = [f"{cell} (trained on)" if each == only else cell for each, cell in zip(upstreams, cells, strict=True)]
        lines.append(f"| {' | '.join([name, *seen])} |")
    return lines


def _passes_table(recipes: Mapping[str, dict[str, Any]]) -> list[str]:
    """The share of answers that each pass left as they were: all, and the corrections are a fixed point."""
    most = max(len(recipe["left_by_pass"]) for recipe in recipes.values())
    if not most:
        return []
    lines = [
        "",
        f"| left as it was in pass | {' | '.join(str(n + 1) for n in range(most))} |",
        "|" + "---|" * (most + 1),
    ]
    return lines + [
        f"| {' | '.join([name, *(f'{x:.0%}' for x in each['left_by_pass'])])} |" for name, each in recipes.items()
    ]
