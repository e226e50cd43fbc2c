"""An evaluation from files to files: pairs, judged, counted, and the report. What it costs is said before and after."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aligner.console import progress
from aligner.evaluation.alpaca_eval import AlpacaEval, run
from aligner.evaluation.course import Course
from aligner.evaluation.course import lines as course_lines
from aligner.evaluation.dimensions import DIMENSIONS
from aligner.evaluation.figures import copying, lines, verdicts
from aligner.evaluation.judges.human import HumanJudge
from aligner.evaluation.judges.judge import Asked, Judge, Said
from aligner.evaluation.judging import Judged, judge_pairs, to_ask
from aligner.evaluation.pairs import Pair, read_pairs
from aligner.evaluation.replies import Replies
from aligner.evaluation.report import curves_of, scores_of, write_report
from aligner.evaluation.systems import System, matches, standings, unpooled
from aligner.evaluation.systems import lines as systems_lines
from aligner.files import write_json, write_lines
from aligner.locks import take
from aligner.records import DataError, UserError

CHARACTERS = 4.0  # a token, about, in English
FIRST = 16  # replies after which it is said how long the others take


@dataclass(frozen=True)
class Work:
    """What is to be evaluated: the corrections in `after`, or `systems` against each other.

    `price`: of a million tokens in and out; `max_tokens`: of a reply, 0 where none is written; `labels`: people's, to agree
    with; `course`: Aligners to measure on the same rows.
    """

    after: str | None
    before: str | None
    systems: tuple[System, ...]
    output: Path
    dimensions: tuple[str, ...]
    judge: Judge | None
    labels: str | None = None
    price: tuple[float, ...] | None = None
    max_tokens: int = 0
    limit: int | None = None
    run_folder: str | None = None
    alpaca: AlpacaEval | None = None
    course: Course | None = None


def evaluate(work: Work) -> int:
    """Do the work and print its table. Returns the exit status: 1 where rows could not be used or replies are missing."""
    pairs, faults = matches(work.systems, work.limit) if work.systems else read_pairs(work.after or "", work.before)
    if not work.systems and len(pairs) > (work.limit or len(pairs)):
        pairs = pairs[: work.limit]
        faults = [
            fault for fault in faults if (fault.row or 0) <= pairs[-1].origin.row
        ]  # those behind are not asked for
    curves = curves_of(work.run_folder) if work.run_folder else None
    people = HumanJudge.load(work.labels) if work.labels and not isinstance(work.judge, HumanJudge) else None
    if work.output.exists() and not work.output.is_dir():
        raise UserError(f"{work.output}: is a file. Name a folder.")
    let_go = take(work.output / "evaluation.lock", f"{work.output}: another evaluation is writing it. Wait for it.")
    try:
        return _evaluate(work, pairs, faults, curves, people)
    finally:
        let_go()


def _evaluate(
    work: Work,
    pairs: Sequence[Pair],
    faults: Sequence[DataError],
    curves: list[dict[str, Any]] | None,
    people: HumanJudge | None,
) -> int:
    judged = _judged(work, work.judge, pairs) if work.judge else []
    figures: dict[str, Any] = {"verdicts": verdicts(judged, people), "copying": copying(pairs)}
    if scores := {} if work.systems else scores_of(judged):
        figures["scores"] = {name: shift(before, after) for name, (before, after) in scores.items()}
    if work.systems:
        figures["elo"], figures["verdicts"] = standings(work.systems, judged), unpooled(figures["verdicts"])
    if work.course:
        figures["course"] = work.course.run(pairs, work.output / "models", partial(progress, delay=2))
    if work.alpaca:
        figures["alpaca_eval"] = run(work.alpaca, pairs, work.output / "alpaca_eval")
    write_lines(work.output / "verdicts.jsonl", (_line(each) for each in judged))
    report = {
        "after": work.after, "before": work.before, "systems": [asdict(system) for system in work.systems],
        "judge": work.judge.identity if work.judge else None, "faults": [str(fault) for fault in faults], **figures,
    }  # fmt: skip
    write_json(work.output / "report.json", report)
    write_report(work.output / "report.html", report, pairs, judged, curves)
    print(*_said(report, len(pairs)), f"report: {work.output / 'report.html'}", sep="\n")
    mute = [name for name in work.dimensions if judged and nothing_read(name, judged)]
    if mute:
        print(f"no verdict could be read of {', '.join(mute)}: the judge does not do what it is asked; see the replies in the "
              "report")  # fmt: skip
    return 1 if faults or mute or any(each.error for each in judged) else 0


def _judged(work: Work, judge: Judge, pairs: Sequence[Pair]) -> list[Judged]:
    """Have the pairs judged, and say what it takes before and after."""
    replies = Replies(str(work.output / "replies.jsonl"))
    try:
        dimensions = [DIMENSIONS[name] for name in work.dimensions]
        asked = to_ask(pairs, dimensions, judge, replies)
        print(estimate(asked, judge, work.price, work.max_tokens), flush=True)
        began = time.monotonic()
        judged = judge_pairs(pairs, dimensions, judge, replies, watched)
        if said := [reply for each in asked if (reply := replies.get(judge, each))]:
            print(spent(said, work.price, time.monotonic() - began))
        return judged
    finally:
        replies.close()


def watched(replies: Iterable[Any], total: int, **bar: Any) -> Iterator[Any]:
    """The replies as they come, behind a bar; after the first ones it is said how long the others will take."""
    began = time.monotonic()
    for count, reply in enumerate(progress(replies, total=total, delay=2, **bar), 1):
        yield reply
        if count == FIRST and total >= 2 * FIRST:
            rest = (time.monotonic() - began) / FIRST * (total - FIRST)
            tqdm.write(f"about {duration(rest)} for the other {total - FIRST:,}, by the first {FIRST}")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, for a person."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def shift(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """The mean scores of changed answers and of their corrections."""
    return {"changed": len(before), "before": statistics.fmean(before), "after": statistics.fmean(after)}


def _said(report: dict[str, Any], pairs: int) -> Iterator[str]:
    """The tables for a terminal."""
    faults = report["faults"]
    yield from (f"left out: {fault}" for fault in faults[:5])
    if faults:
        yield f"{len(faults):,} of {len(faults) + pairs:,} rows were left out"
    yield from lines(report["verdicts"], report["copying"])
    for name, moved in report.get("scores", {}).items():
        means = f"{moved['before']:.3f} before and {moved['after']:.3f} after"
        yield f"scores, {name}: {means}, of {moved['changed']:,} changed answers"
    yield from systems_lines(report.get("elo", {}))
    yield from course_lines(report.get("course", []))
    if found := report.get("alpaca_eval"):
        yield "AlpacaEval: " + ", ".join(f"{name} {value:g}" for name, value in found.items())


def nothing_read(name: str, judged: Sequence[Judged]) -> bool:
    """Whether there were replies in a dimension and none of them held a verdict."""
    asked = [each for each in judged if each.dimension == name and each.changed and not each.error]
    return bool(asked) and all(each.outcome is None for each in asked)


def estimate(asked: Sequence[Asked], judge: Judge, price: Sequence[float] | None, longest: int) -> str:
    """What asking will take: replies, tokens in (a token being about four characters), money at most where the price is known.
    Of a judge that writes nothing (`longest` 0) the replies alone."""
    if not asked:
        return "nothing to ask: every reply is known"
    if not longest:
        return f"{len(asked):,} replies to ask for"
    tokens = sum(len(judge.prompt(each)) for each in asked) / CHARACTERS
    most = (tokens * price[0] + len(asked) * longest * price[1]) / 1e6 if price else 0
    cost = f": at most about {most:,.2f}" if price else ""
    return f"{len(asked):,} replies to ask for, about {tokens:,.0f} tokens in{cost}"


def spent(said: Sequence[Said], price: Sequence[float] | None, seconds: float) -> str:
    """What asking took."""
    tokens_in, tokens_out = sum(reply.tokens_in for reply in said), sum(reply.tokens_out for reply in said)
    line = f"{len(said):,} replies in {seconds:,.0f} s"
    if tokens_in:
        line += f", {tokens_in:,} tokens in and {tokens_out:,} out (median {statistics.median(r.tokens_out for r in said):,.0f})"
    if price and tokens_in:
        line += f": {(tokens_in * price[0] + tokens_out * price[1]) / 1e6:,.2f}"
    return line


def _line(judged: Judged) -> dict[str, Any]:
    pair = judged.pair
    return {"row": pair.origin.row, "dimension": judged.dimension, "outcome": judged.outcome, "read": judged.read,
            "error": judged.error, "upstream": pair.upstream, "category": pair.category, "question": pair.question,
            "answer": pair.before, "corrected": pair.after, "replies": judged.replies}  # fmt: skip
