"""An evaluation from files to files: pairs, verdicts, figures and the report. Its cost is printed before and after."""

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
from aligner.evaluation.alpaca_eval import AlpacaEval, run_alpaca_eval
from aligner.evaluation.checkpoint_sweep import CheckpointSweep, sweep_lines
from aligner.evaluation.figures import copying, figure_lines, verdict_figures
from aligner.evaluation.judges.dimensions import dimensions_named
from aligner.evaluation.judges.human import HumanJudge
from aligner.evaluation.judges.judge import Judge, JudgeReply, JudgeRequest
from aligner.evaluation.judging import Verdict, judge_pairs, open_requests
from aligner.evaluation.pairs import Pair, named_fields, read_pairs
from aligner.evaluation.replies import ReplyStore
from aligner.evaluation.report import curves_of, scores_of, write_report
from aligner.evaluation.systems import System, match_pairs, standing_lines, standings, unpooled
from aligner.files import read_json, write_json, write_lines
from aligner.locks import take
from aligner.records import DataError, UserError
from aligner.terminal import print_lines
from aligner.training.datasets.options import QAC, Columns

CHARACTERS = 4.0  # a token, about, in English
FIRST = 16  # replies after which the time for the others is estimated


@dataclass(frozen=True)
class EvaluationJob:
    """What is to be evaluated: the corrections in `after`, or `systems` against each other.

    `price`: of a million tokens in and out; `max_tokens`: of a reply, 0 where the judge writes none; `labels`: a file of people's
    labels to compare with; `sweep`: Aligners to measure on the same rows.
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
    sweep: CheckpointSweep | None = None
    columns: Columns = QAC


def run_job(job: EvaluationJob) -> int:
    """Judge, count, write the report and print its tables. Returns the exit status: 1 where rows could not be used or replies are
    missing."""
    fields = named_fields(job.columns)
    pairs, faults = (
        match_pairs(job.systems, job.limit) if job.systems else read_pairs(job.after or "", job.before, **fields)
    )
    if not job.systems and len(pairs) > (job.limit or len(pairs)):
        pairs = pairs[: job.limit]
        last = pairs[-1].origin.row
        faults = [fault for fault in faults if (fault.row or 0) <= last]  # rows behind the limit are not looked at
    curves = curves_of(job.run_folder) if job.run_folder else None
    people = HumanJudge.load(job.labels) if job.labels and not isinstance(job.judge, HumanJudge) else None
    if job.output.exists() and not job.output.is_dir():
        raise UserError(f"{job.output}: is a file. Name a folder.")
    release = take(job.output / "evaluation.lock", f"{job.output}: another evaluation is writing it. Wait for it.")
    try:
        check_folder(job)
        verdicts = _judge(job, job.judge, pairs) if job.judge else []
        return _write(job, pairs, faults, verdicts, _figures(job, pairs, verdicts, people), curves)
    finally:
        release()


def check_folder(job: EvaluationJob) -> None:
    """UserError where the folder holds the report of other files, which would be lost."""
    file = job.output / "report.json"
    earlier = read_json(file) if file.is_file() else {}
    for name, now in (("after", job.after), ("before", job.before)):
        was = earlier.get(name)
        if was and now and Path(was).exists() and Path(was).resolve() != Path(now).resolve():
            raise UserError(f"{job.output}: holds the report on {was}. Name another --output, or remove {file}.")


def _figures(
    job: EvaluationJob, pairs: Sequence[Pair], verdicts: Sequence[Verdict], people: HumanJudge | None
) -> dict[str, Any]:
    """The figures of the report, by their names in report.json."""
    figures: dict[str, Any] = {"verdicts": verdict_figures(verdicts, people), "copying": copying(pairs)}
    figures["unfinished"] = sum(pair.unfinished for pair in pairs)
    if scores := {} if job.systems else scores_of(verdicts):
        figures["scores"] = {name: shift(before, after) for name, (before, after) in scores.items()}
    if job.systems:
        figures["elo"], figures["verdicts"] = standings(job.systems, verdicts), unpooled(figures["verdicts"])
    if job.sweep:
        figures["course"] = job.sweep.measure(pairs, job.output / "models", partial(progress, delay=2))
    if job.alpaca:
        figures["alpaca_eval"] = run_alpaca_eval(job.alpaca, pairs, job.output / "alpaca_eval")
    return figures


def _write(
    job: EvaluationJob,
    pairs: Sequence[Pair],
    faults: Sequence[DataError],
    verdicts: Sequence[Verdict],
    figures: dict[str, Any],
    curves: list[dict[str, Any]] | None,
) -> int:
    """Write the report's files and print its tables; the exit status."""
    write_lines(job.output / "verdicts.jsonl", (_line(verdict) for verdict in verdicts))
    report = {
        "after": job.after,
        "before": job.before,
        "systems": [asdict(system) for system in job.systems],
        "judge": job.judge.identity if job.judge else None,
        "faults": [str(fault) for fault in faults],
        **figures,
    }
    write_json(job.output / "report.json", report)
    write_report(job.output / "report.html", report, pairs, verdicts, curves)
    print_lines(*_tables(report, len(pairs)), f"report: {job.output / 'report.html'}")
    unread = [name for name in job.dimensions if verdicts and is_unreadable(name, verdicts)]
    if unread:
        names = ", ".join(unread)
        print_lines(
            f"no verdict could be read of {names}: the judge does not reply in the form it should; see the replies in the report"
        )
    return 1 if faults or unread or any(verdict.error for verdict in verdicts) else 0


def _judge(job: EvaluationJob, judge: Judge, pairs: Sequence[Pair]) -> list[Verdict]:
    """Have the pairs judged; print what it will take before, and what it took after."""
    store = ReplyStore(job.output / "replies.jsonl")
    try:
        dimensions = dimensions_named(job.dimensions)
        requests = open_requests(pairs, dimensions, judge, store)
        print_lines(estimate(requests, judge, job.price, job.max_tokens))
        began = time.monotonic()
        verdicts = judge_pairs(pairs, dimensions, judge, store, watched)
        if replies := [reply for request in requests if (reply := store.get(judge, request))]:
            print_lines(spent(replies, job.price, time.monotonic() - began))
        return verdicts
    finally:
        store.close()


def watched(replies: Iterable[Any], total: int, **bar: Any) -> Iterator[Any]:
    """The replies as they come, with a progress bar; after the first ones the time for the others is estimated."""
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


def _tables(report: dict[str, Any], pairs: int) -> Iterator[str]:
    """The tables for a terminal."""
    faults = report["faults"]
    if endless := report["unfinished"]:
        share = endless / pairs
        yield f"{endless:,} of {pairs:,} answers ({share:.0%}) have no correction that ended: they count as they are in 'corrected'"
    yield from (f"left out: {fault}" for fault in faults[:5])
    if faults:
        yield f"{len(faults):,} of {len(faults) + pairs:,} rows were left out"
    yield from figure_lines(report["verdicts"], report["copying"])
    for name, moved in report.get("scores", {}).items():
        means = f"{moved['before']:.3f} before and {moved['after']:.3f} after"
        yield f"scores, {name}: {means}, of {moved['changed']:,} changed answers"
    yield from standing_lines(report.get("elo", {}))
    yield from sweep_lines(report.get("course", []))
    if rates := report.get("alpaca_eval"):
        yield "AlpacaEval: " + ", ".join(f"{name} {value:g}" for name, value in rates.items())


def is_unreadable(dimension: str, verdicts: Sequence[Verdict]) -> bool:
    """Whether there were replies in a dimension and none of them held a verdict."""
    replied = [each for each in verdicts if each.dimension == dimension and each.changed and not each.error]
    return bool(replied) and all(each.outcome is None for each in replied)


def estimate(requests: Sequence[JudgeRequest], judge: Judge, price: Sequence[float] | None, longest: int) -> str:
    """The cost of the requests: replies, tokens in (a token being about four characters), money at most where the price is known.
    Of a judge that writes nothing (`longest` 0) the replies alone."""
    if not requests:
        return "no requests: every reply is known"
    if not longest:
        return f"{len(requests):,} replies to request"
    tokens = sum(len(judge.prompt(each)) for each in requests) / CHARACTERS
    most = (tokens * price[0] + len(requests) * longest * price[1]) / 1e6 if price else 0
    cost = f": at most about {most:,.2f}" if price else ""
    return f"{len(requests):,} replies to request, about {tokens:,.0f} tokens in{cost}"


def spent(replies: Sequence[JudgeReply], price: Sequence[float] | None, seconds: float) -> str:
    """The time, tokens and money that the requests took."""
    tokens_in, tokens_out = sum(reply.tokens_in for reply in replies), sum(reply.tokens_out for reply in replies)
    line = f"{len(replies):,} replies in {seconds:,.0f} s"
    if tokens_in:
        line += f", {tokens_in:,} tokens in and {tokens_out:,} out (median {statistics.median(r.tokens_out for r in replies):,.0f})"
    if price and tokens_in:
        line += f": {(tokens_in * price[0] + tokens_out * price[1]) / 1e6:,.2f}"
    return line


def _line(verdict: Verdict) -> dict[str, Any]:
    """A line of verdicts.jsonl."""
    pair = verdict.pair
    return {
        "row": pair.origin.row,
        "dimension": verdict.dimension,
        "outcome": verdict.outcome,
        "read": verdict.read,
        "error": verdict.error,
        "upstream": pair.upstream,
        "category": pair.category,
        "question": pair.question,
        "answer": pair.before,
        "corrected": pair.after,
        "replies": verdict.replies,
    }
