"""A file of answers -> a file of corrected ones, in order. A job that is killed continues without losing or repeating a row.

First the upstream generates the answers that are missing. Then come the passes: every Aligner of the stack corrects the output
of the one before it, as many times through the stack as asked for. Finished rows are kept in a journal beside the output until
the output is complete.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aligner.files import sha256_of, write_lines
from aligner.inference.corrector import Aligner, Corrected, CorrectionRequest, NoRoom, Outcome
from aligner.inference.guard import Guard, KeepReason
from aligner.inference.items import Item, earlier_rows, is_missing, read_items
from aligner.inference.journal import Journal
from aligner.inference.served import UpstreamModel
from aligner.inference.summary import CorrectionSummary, input_of, pass_kind, summary_of
from aligner.objectives import sentences
from aligner.quality.edits import edits
from aligner.records import DataError, UserError
from aligner.routing.router import Choice
from aligner.training.datasets.options import QAC, Columns

KEPT = "answer kept"  # what the guard did, in the field `guard`
ROUTED = "routed"  # in the place of an Aligner's name, where each row has its own
ROUTED_TO_NONE = KeepReason("the route is to no Aligner", False)
Progress = Callable[..., Any]  # as tqdm: progress(iterable, total=..., desc=...)


@dataclass(frozen=True)
class StackedAligner:
    """One Aligner of a stack: its name, how to open it, its prompt's markers, and the sentences of the objectives it knows by
    name. It is opened when its pass begins and freed at its end."""

    name: str
    open: Callable[[], Aligner]
    takes_feedback: bool = False
    markers: tuple[str, ...] = ()
    objectives: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CorrectionJob:
    """A file to correct. `about`: everything that decides the result, by name; a job that is continued must agree in it. `route`:
    chooses which of the stack corrects a row, by its name, from its question and answer; then a pass is one Aligner's a row."""

    input: str
    output: str
    stack: Sequence[StackedAligner]
    passes: int = 1
    feedback: str | None = None
    upstream: UpstreamModel | None = None
    columns: Columns = QAC
    needs_answer: bool = True  # whether the first Aligner's prompt shows it
    about: dict[str, Any] = field(default_factory=dict)
    guard: Guard = Guard()
    questions: str | None = None
    retry_failed: bool = False
    objectives: tuple[str, ...] = ()
    route: Callable[[Sequence[str], Sequence[str]], Sequence[Choice]] | None = None


def correct_file(job: CorrectionJob, progress: Progress) -> CorrectionSummary:
    """Run the job. UserError where no row can be corrected, or a server is gone: the same job, run again, continues."""
    if Path(job.output).is_file() and not journal_of(job).exists() and not job.retry_failed:
        raise UserError(f"{job.output}: is already there. Name another output, or remove it to correct anew.")
    items = list(items_of(job))
    earlier = earlier_rows(job.output, job.input, items) if job.retry_failed else [None] * len(items)
    items = [item for item, row in zip(items, earlier, strict=True) if row is None]
    if all(item.fault for item in items):
        raise next((item.fault for item in items if item.fault), no_rows(job))
    about = {"input": sha256_of(job.input), **settings_of(job)}
    if job.retry_failed:
        about["output"] = sha256_of(job.output)
    return correct_items(job, items, about, progress, earlier)


def journal_of(job: CorrectionJob) -> Path:
    """Where the finished rows of a job are kept until its output is whole."""
    return Path(f"{job.output}.journal")


def no_rows(job: CorrectionJob) -> UserError:
    """What is wrong with an input that holds nothing."""
    return UserError(f"{job.input}: has no rows. Check the path.")


def items_of(job: CorrectionJob) -> Iterator[Item]:
    """The rows of a job's input, one by one; those that cannot be corrected have their fault."""
    may_ask = job.upstream is not None or not job.needs_answer
    for item in read_items(job.input, may_ask, job.columns, job.questions):
        item.fault = item.fault or unknown_objective(job, item)
        yield item


def settings_of(job: CorrectionJob) -> dict[str, Any]:
    """Everything but the rows that decides the result, by name, as JSON has it."""
    guard = {**asdict(job.guard), "scripts": list(job.guard.scripts)}
    return {
        "rounds": job.passes,
        "feedback": job.feedback,
        **job.about,
        "guard": {name: value for name, value in guard.items() if value is not None},
        **({"objectives": list(job.objectives)} if job.objectives else {}),
        **({"columns": asdict(job.columns)} if job.columns != QAC else {}),
    }


def correct_items(
    job: CorrectionJob,
    items: Sequence[Item],
    about: dict[str, Any],
    progress: Progress,
    earlier: Sequence[dict[str, Any] | None] | None = None,
) -> CorrectionSummary:
    """Correct these rows into the job's output, which is whole or not there. `earlier`: a row of an earlier output that stays, for
    every None an item. A job of the same `about` that was stopped goes on where it was."""
    journal = Journal(journal_of(job), about)
    try:
        upstream_answers = _ask(job.upstream, items, journal, progress) if job.upstream else 0
        _route(job, items, journal)
        names = [ROUTED] if job.route else [member.name for member in job.stack]
        count = job.passes * len(names)
        if len(job.stack) == 1:  # the same in every round: opened once
            job = replace(job, stack=[replace(job.stack[0], open=functools.cache(job.stack[0].open))])
        for number in range(count):
            _pass(job, number, items, journal, progress)
        hears = any(member.takes_feedback for member in job.stack)
        summary = summary_of(items, journal, upstream_answers, names * job.passes, hears)
        steered = {name: job.about[name] for name in ("steered",) if name in job.about}
        anew = (_output(item, row, journal, count) | steered for row, item in enumerate(items))
        write_lines(job.output, [next(anew) if row is None else row for row in earlier or [None] * len(items)])
    except BaseException:
        journal.close()
        raise
    journal.close(remove=True)
    return summary


def _ask(upstream: UpstreamModel, items: Sequence[Item], journal: Journal, progress: Progress) -> int:
    """Let the upstream answer where an answer is missing. Returns the number of such rows, those of earlier runs included."""
    missing = [row for row, item in enumerate(items) if not item.fault and is_missing(item.text("answer"))]
    left = [row for row in missing if ("answer", row) not in journal.done]
    if left:
        stream = upstream.stream([items[row].text("question") for row in left])
        for place, answer in progress(stream, total=len(left), desc="asking"):
            refused = {"refused": str(answer)}
            journal.add("answer", left[place], refused if isinstance(answer, UserError) else answer._asdict())
    for row in missing:
        if not _refused(items[row], answer := journal.done["answer", row]):
            items[row].fields[items[row].columns.answer] = answer["text"]
            if not answer.get("finished", True):
                items[row].fields["answer_finished"] = False
    return len(missing)


def _refused(item: Item, outcome: dict[str, Any]) -> bool:
    """Whether a row ends here: a request that was refused once is not sent again."""
    if "refused" in outcome:
        item.fault = DataError(*item.origin, outcome["refused"].rstrip("."), "The other rows went on")
    return item.fault is not None


def _route(job: CorrectionJob, items: Sequence[Item], journal: Journal) -> None:
    """Choose an Aligner for each row, where the job routes. What was chosen once holds for all passes, and after a kill."""
    left = [row for row, item in enumerate(items) if not item.fault and ("route", row) not in journal.done]
    if job.route and left:
        questions, answers = ([items[row].text(role) for row in left] for role in ("question", "answer"))
        for row, choice in zip(left, job.route(questions, answers), strict=True):
            journal.add("route", row, choice.about())


def _member(job: CorrectionJob, number: int, row: int, journal: Journal) -> StackedAligner | None:
    """The Aligner of a row in a pass; None where the route leaves the answer alone."""
    if not job.route:
        return job.stack[number % len(job.stack)]
    name = journal.done["route", row]["aligner"]
    return next((member for member in job.stack if member.name == name), None)


def _pass(job: CorrectionJob, number: int, items: Sequence[Item], journal: Journal, progress: Progress) -> None:
    """One pass over all rows, Aligner by Aligner. What an Aligner corrected in an earlier round it does not correct again."""
    kind, left = pass_kind(number), dict[str, list[int]]()
    for row, item in enumerate(items):
        if item.fault or (kind, row) in journal.done:
            continue
        member, known = _member(job, number, row, journal), _known(job, number, row, item, journal)
        text = input_of(number, row, item, journal)
        if known is None and (kept := job.guard.before(text) if member else ROUTED_TO_NONE):
            known = _kept(kept, Corrected.unchanged(text), text, None)
        if known is None and member:
            left.setdefault(member.name, []).append(row)
        else:
            journal.add(kind, row, known)
    for member in job.stack:
        if rows := left.get(member.name):
            _correct(job, number, member, rows, items, journal, progress)
    for row, item in enumerate(items):
        if not item.fault:
            _refused(item, journal.done[kind, row])


def _correct(
    job: CorrectionJob,
    number: int,
    member: StackedAligner,
    rows: Sequence[int],
    items: Sequence[Item],
    journal: Journal,
    progress: Progress,
) -> None:
    """The rows of one Aligner in a pass."""
    aligner, kind = member.open(), pass_kind(number)
    requests = [
        CorrectionRequest(
            items[row].text("question"),
            input_of(number, row, items[row], journal),
            feedback_of(job, member, items[row]),
        )
        for row in rows
    ]
    name = "correcting" if job.passes * len(job.stack) == 1 else f"{kind}, {member.name}"
    for place, outcome in progress(aligner.stream(requests), total=len(rows), desc=name):
        journal.add(kind, rows[place], _result(outcome, requests[place], job.guard, member.markers))


def _result(outcome: Outcome, request: CorrectionRequest, guard: Guard, markers: tuple[str, ...]) -> dict[str, Any]:
    """What is kept of a row: its correction, its answer where that stays, or why there is neither."""
    if isinstance(outcome, NoRoom):
        return _kept(KeepReason(str(outcome), True), Corrected.unchanged(request.answer), request.answer, None)
    if isinstance(outcome, UserError):
        return {"refused": str(outcome)}
    kept = guard.after(outcome, request.question, request.answer, markers)
    return _kept(kept, outcome, request.answer, outcome.text) if kept else asdict(outcome)


def _kept(kept: KeepReason, outcome: Corrected, answer: str, decoded: str | None) -> dict[str, Any]:
    """An answer that stays, with the text that was not taken."""
    return {**asdict(outcome), "text": answer, "finished": not kept.failed, "kept": kept.reason, "cut_off": decoded}


def feedback_of(job: CorrectionJob, member: StackedAligner, item: Item) -> str:
    """The feedback for this Aligner, if its prompt has a slot for it: the row's own or its objectives, else those for all rows."""
    if not member.takes_feedback:
        return ""
    text = item.text("feedback")
    if not text:
        text = sentences(item.objectives() or job.objectives, member.objectives) or job.feedback or ""
    return member.objectives.get(text, text)


def unknown_objective(job: CorrectionJob, item: Item) -> DataError | None:
    """What is wrong with the objectives of a row, for the Aligners that are asked for them."""
    try:
        for member in job.stack:
            if member.takes_feedback:
                sentences(item.objectives(), member.objectives)
    except (UserError, ValueError) as error:
        return DataError(*item.origin, str(error).rstrip("."), "Correct the row")
    return None


def _known(job: CorrectionJob, number: int, row: int, item: Item, journal: Journal) -> Any:
    """The same Aligner's correction of the same text in an earlier round, if decoding is greedy; else None."""
    text = input_of(number, row, item, journal)
    period = 1 if job.route else len(job.stack)
    for earlier in range(number % period, number, period):
        if input_of(earlier, row, item, journal) == text and "sampling" not in job.about:
            return journal.done[pass_kind(earlier), row]
    return None


def _output(item: Item, row: int, journal: Journal, passes: int) -> dict[str, Any]:
    """A row of the output: its own fields, and the last correction with its figures against the answer."""
    if item.fault:
        return {**item.fields, "corrected": None, "error": str(item.fault)}
    corrections = [journal.done[pass_kind(number), row] for number in range(passes)]
    corrected = corrections[-1]["text"]
    figures = asdict(edits(item.text("answer"), corrected))
    more: dict[str, Any] = {"passes": [each["text"] for each in corrections]} if passes > 1 else {}
    if "kept" in corrections[-1]:
        more |= {"guard": KEPT, "guard_reason": corrections[-1]["kept"], "cut_off": corrections[-1]["cut_off"]}
    if corrections[-1].get("nats_ahead") is not None:
        more["nats_ahead"] = round(corrections[-1]["nats_ahead"], 3)
    if ("route", row) in journal.done:
        more["route"] = journal.done["route", row]
    rounded = {name: value if isinstance(value, bool) else round(value, 4) for name, value in figures.items()}
    return {**item.fields, "corrected": corrected, "finished": corrections[-1]["finished"], "edits": rounded, **more}
