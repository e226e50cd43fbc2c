"""A measure's table: every system's scores and gain, the Aligner's lead over each control, and what follows from it.

Pure functions from scores to figures that can be written as JSON; the page, the terminal and a README's table come out of those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aligner.evaluation.measures.controls import IDENTITY
from aligner.evaluation.measures.gain import balanced_mean, share_gone
from aligner.evaluation.measures.items import MeasuredAnswer
from aligner.evaluation.measures.matrix import matrix_lines

ALIGNER = "the Aligner"
HELPS, FOOLED, NULL, UNCLEAR = "helps", "fooled", "null", "unclear"
HEADS = ("needed help", "did not")  # the columns of a measure that says nothing else
FEW = 20  # questions below which a bootstrap says too little to claim anything
Scores = Mapping[int, float]  # an item's place -> its score under a system; a costly system has some of the items alone


def part_figures(items: Sequence[MeasuredAnswer], scores: Mapping[str, Scores], error: bool) -> dict[str, Any]:
    """The figures of one part: a row for each system, and the verdict. `scores` holds ALIGNER and IDENTITY for all items."""
    rows = [_row(name, items, each, scores, error) for name, each in scores.items() if each]
    return {
        "answers": len(items),
        "needed": sum(item.needs_help for item in items),
        "questions": len({item.question for item in items}),
        "systems": rows,
        **verdict(rows, len({item.question for item in items})),
        "by_kind": _by_kind(items, scores),
    }


def _row(
    name: str, items: Sequence[MeasuredAnswer], own: Scores, scores: Mapping[str, Scores], error: bool
) -> dict[str, Any]:
    places = sorted(own)
    needed, questions = [items[p].needs_help for p in places], [items[p].question for p in places]
    gain = balanced_mean([own[p] - scores[IDENTITY][p] for p in places], needed, questions)
    lead = balanced_mean([scores[ALIGNER][p] - own[p] for p in places], needed, questions)
    row = {
        "system": name,
        "answers": len(places),
        "needed": _mean(own[p] for p in places if items[p].needs_help),
        "not_needed": _mean(own[p] for p in places if not items[p].needs_help),
        "gain": asdict(gain),
        "aligner_ahead": None if name == ALIGNER else asdict(lead),
    }
    damaged = [p for p in places if items[p].needs_help]
    if error and damaged:
        before, after = [-scores[IDENTITY][p] for p in damaged], [-own[p] for p in damaged]
        row["gone"] = asdict(share_gone(before, after, [items[p].question for p in damaged]))
        row["exact"] = _mean(float(own[p] == 0) for p in damaged)
        row["touched"] = _mean(float(own[p] != 0) for p in places if not items[p].needs_help)
    return row


def _mean(values: Any) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None


def verdict(
    rows: Sequence[Mapping[str, Any]], questions: int, baseline: str = "leaving the answers alone"
) -> dict[str, Any]:
    """What the table shows: `helps` where the Aligner's gain is above zero and above every control's, each by its interval;
    `fooled` where a control that gains something does as well as the Aligner or better; `null` where the gain may be none;
    `unclear` where a control may be as good, or the questions are few. With the strongest control and one sentence. baseline: what
    a gain is over."""
    own = next(row for row in rows if row["system"] == ALIGNER)
    controls = [row for row in rows if row["system"] not in (ALIGNER, IDENTITY)]
    strongest = max(controls, key=lambda row: -row["aligner_ahead"]["value"], default=None)
    winners = [row for row in controls if row["gain"]["value"] > 0 and row["aligner_ahead"]["value"] <= 0]
    close = [row for row in controls if row["aligner_ahead"]["low"] <= 0]
    if winners:
        names = ", ".join(row["system"] for row in winners)
        kind, text = (
            FOOLED,
            f"the measure is fooled: {names} gains as much as the Aligner or more, so its gain shows nothing",
        )
    elif own["gain"]["low"] <= 0:
        kind, text = NULL, f"a null: the Aligner's gain over {baseline} may be none"
    elif close:
        kind, text = UNCLEAR, f"above zero, but {close[0]['system']} may be as good: its interval reaches the Aligner's"
    elif questions < FEW:
        kind, text = UNCLEAR, f"above zero, but of {questions} questions alone: at least {FEW} are needed to claim it"
    else:
        kind, text = HELPS, "the Aligner gains more than nothing and more than every control, by the intervals"
    return {"verdict": kind, "says": text, "strongest_control": strongest["system"] if strongest else None}


def _by_kind(items: Sequence[MeasuredAnswer], scores: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """For every kind of answer: how many, and the mean scores before and after the Aligner."""
    counts = Counter(item.kind for item in items if item.kind)
    figures = {}
    for kind, count in sorted(counts.items()):
        places = [p for p, item in enumerate(items) if item.kind == kind]
        before, after = (_mean(scores[name][p] for p in places) or 0.0 for name in (IDENTITY, ALIGNER))
        figures[kind] = {"answers": count, "before": before, "after": after}
    return figures


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """All of a report for a terminal: its matrix, where it has one, and the tables."""
    return [*matrix_lines(report), *measure_lines(report)]


def measure_lines(report: Mapping[str, Any]) -> list[str]:
    """The tables for a terminal."""
    lines, (needed, others) = [], report.get("heads", HEADS)
    for name, part in report["parts"].items():
        lines.append(
            f"{report['measure']}{f', {name}' if name else ''} ({report['unit']}; {part['questions']:,} questions)"
        )
        width = max(len(row["system"]) for row in part["systems"])
        lines.append(
            f"  {'':<{width}}  {'answers':>7}  {needed:>11}  {others:>8}  gain (95 %)               "
            "Aligner ahead by (95 %)"
        )
        lines += [_line(row, width) for row in part["systems"]]
        lines.append(f"  {part['verdict'].upper()}: {part['says']}.")
        own = part["systems"][0]
        if gone := own.get("gone"):
            lines.append(
                f"  {_percent(gone['value'])} of the damage is gone ({_percent(gone['low'])} to {_percent(gone['high'])}); "
                f"{_percent(own['exact'])} restored exactly; {_percent(own['touched'])} of undamaged answers touched"
            )
    lines += [f"  {note}" for note in report["notes"]]
    return lines


def _line(row: Mapping[str, Any], width: int) -> str:
    ahead = _interval(row["aligner_ahead"]) if row["aligner_ahead"] else ""
    return (
        f"  {row['system']:<{width}}  {row['answers']:>7,}  {_number(row['needed']):>11}  {_number(row['not_needed']):>8}  "
        f"{_interval(row['gain']):<24}  {ahead}".rstrip()
    )


def markdown_lines(report: Mapping[str, Any]) -> list[str]:
    """The tables as a README shows them, out of the same figures."""
    lines, heads = [], " | ".join(report.get("heads", HEADS))
    for name, part in report["parts"].items():
        title = f"{report['measure']}{f', {name}' if name else ''}"
        lines += [f"**{title}**: {part['says']}.", ""]
        lines += [
            f"| system | answers | {heads} | gain (95 %) | Aligner ahead by (95 %) |",
            "|---|---|---|---|---|---|",
        ]
        for row in part["systems"]:
            ahead = _interval(row["aligner_ahead"]) if row["aligner_ahead"] else ""
            cells = [row["system"], f"{row['answers']:,}", _number(row["needed"]), _number(row["not_needed"])]
            lines.append(f"| {' | '.join([*cells, _interval(row['gain']), ahead])} |")
        lines.append("")
    return [*lines, *(f"- {note}" for note in report["notes"])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})"
