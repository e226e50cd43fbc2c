"""What was kept: every stage's rows in, its rows out, and each reason with its number, so that all add up to the row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.building.config import BuildConfig
from aligner.building.stage import StageResult
from aligner.records import UserError

QUESTIONS, PAIRS = "questions", "pairs"
OF_QUESTIONS = ("questions", "leaks", "shares")  # stages whose rows are questions; from the answers on they are pairs


@dataclass(frozen=True)
class Flow:
    """What a stage does to the rows. unit: what they are."""

    stage: str
    unit: str
    into: int
    kept: int
    dropped: dict[str, int]


def flows_of(results: Sequence[StageResult]) -> list[Flow]:
    """The flows of all stages. UserError where they do not add up: a folder was changed by hand."""
    flows: list[Flow] = []
    for result in results:
        unit = QUESTIONS if result.name in OF_QUESTIONS else PAIRS
        counts = result.counts
        flow = Flow(result.name, unit, counts["into"], counts["kept"], dict(counts["dropped"]))
        before = flows[-1] if flows else None
        whole = flow.into == flow.kept + sum(flow.dropped.values()) and len(result.rows) == flow.kept
        if not whole or (before and before.unit == unit and before.kept != flow.into):
            raise UserError(f"{result.folder}: its counts do not add up. Remove the folder, and it is written anew.")
        flows.append(flow)
    return flows


def flow_table(config: BuildConfig, results: Sequence[StageResult]) -> list[str]:
    """The tables of kept.md, line by line."""
    flows = flows_of(results)
    return [
        f"# {config.name}: what was kept",
        "",
        *_stage_lines(flows),
        "",
        *_sum_lines(flows, results),
        "",
        *_by_source(config, results),
        "",
        *_by_model(results),
        *_cost_lines(config, results),
    ]


def _stage_lines(flows: Sequence[Flow]) -> Iterator[str]:
    yield "| stage | rows | in | kept | dropped | why |"
    yield "|---|---|---|---|---|---|"
    for flow in flows:
        why = "; ".join(f"{count:,} {reason}" for reason, count in flow.dropped.items()) or "-"
        yield f"| {flow.stage} | {flow.unit} | {flow.into:,} | {flow.kept:,} | {flow.into - flow.kept:,} | {why} |"


def _sum_lines(flows: Sequence[Flow], results: Sequence[StageResult]) -> Iterator[str]:
    """The sums from the first row to the last."""
    for unit in (QUESTIONS, PAIRS):
        some = [flow for flow in flows if flow.unit == unit]
        removed = sum(flow.into - flow.kept for flow in some)
        yield f"{some[0].into:,} {unit} = {some[-1].kept:,} kept + {removed:,} dropped"
        if unit == QUESTIONS:
            asked = results[len(some)].counts["questions"]
            yield f"{asked:,} questions became {flows[len(some)].into:,} pairs, an upstream and a question each"


def _by_source(config: BuildConfig, results: Sequence[StageResult]) -> Iterator[str]:
    """Each source with its licence, from its rows to what is left of them."""
    yield "| source | licence | read | questions | pairs | rows | share asked for | share of the questions |"
    yield "|---|---|---|---|---|---|---|---|"
    first, drawn, answers, last = (results[at].counts["sources"] for at in (0, 2, 3, -1))
    weights = sum(each.share or 0 for each in config.sources)
    total = sum(each["kept"] for each in drawn.values()) or 1
    for source in config.sources:
        numbers = [_of(first, source.label, "into"), _of(drawn, source.label), _of(answers, source.label, "into")]
        numbers.append(_of(last, source.label))
        asked = f"{source.share / weights:.1%}" if source.share else "-"
        cells = [f"{number:,}" for number in numbers] + [asked, f"{numbers[1] / total:.1%}"]
        yield f"| {source.label} | {source.licence or 'not said'} | {' | '.join(cells)} |"


def _by_model(results: Sequence[StageResult]) -> Iterator[str]:
    """How many rows each upstream and each annotator has in the end."""
    rows = results[-1].rows
    for role in ("upstream", "annotator"):
        yield f"| {role} | rows | answers left as they were |"
        yield "|---|---|---|"
        for name in dict.fromkeys(row[role] for row in rows):
            some = [row for row in rows if row[role] == name]
            same = sum(row["answer"] == row["correction"] for row in some)
            yield f"| {name} | {len(some):,} | {same:,} |"
        yield ""


def costs_of(results: Sequence[StageResult]) -> dict[str, dict[str, Any]]:
    """What each model's replies cost, by stage and name."""
    return {
        f"{result.name}: {name}": cost for result in results for name, cost in result.counts.get("cost", {}).items()
    }


def _cost_lines(config: BuildConfig, results: Sequence[StageResult]) -> Iterator[str]:
    yield f"| model | replies | tokens read | written | {config.currency} |"
    yield "|---|---|---|---|---|"
    for name, cost in costs_of(results).items():
        cells = [f"{cost[field]:,}" for field in ("calls", "prompt_tokens", "completion_tokens")]
        yield f"| {name} | {' | '.join(cells)} | {cost['money']:,.2f} |"


def _of(counts: dict[str, Any], name: str, field: str = "kept") -> int:
    return int(counts.get(name, {}).get(field, 0))
