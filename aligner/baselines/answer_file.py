"""A file of questions -> a file of a method's answers, in order, with what each cost. Killed, the same job goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aligner.baselines.converse import Conversation, Open, Progress, begin, converse
from aligner.baselines.methods import FAILURES, METHODS, MethodSettings
from aligner.baselines.protocol import Candidate, Cost, Outcome, Question, Usage, added
from aligner.files import sha256_of, write_json, write_lines
from aligner.inference.journal import Journal
from aligner.inference.published_answers import read_answers
from aligner.records import DataError, Origin, UserError
from aligner.texts import kind_of, text_fault
from aligner.training.datasets.options import QAC, Columns

OWN = (
    "method",
    "answer",
    "draft",
    "finished",
    "failure",
    "steps",
    "candidates",
    "reward",
    "reward_model",
    "corrected",
    "correction_finished",
    "cost",
    "error",
)


@dataclass(frozen=True)
class BaselineJob:
    """What is answered, by which method, and who replies. about: what decides the replies, by name; reward_model: by what
    candidates are rewarded."""

    method: str
    input: str
    output: str
    settings: MethodSettings
    responders: Open
    about: dict[str, Any] = field(default_factory=dict)
    aligner: bool = False
    columns: Columns = QAC
    reward_model: str = ""


@dataclass(frozen=True)
class BaselineSummary:
    """rows; those that were answered; by failure how many; unchanged ones (a revision equal to its draft); answers that the
    Aligner's correction did not replace because it did not end; what was paid for all; the faults in order."""

    rows: int
    answered: int
    failures: dict[str, int]
    unchanged: int
    kept: int
    cost: Cost
    faults: list[UserError]


@dataclass
class BaselineRow:
    """A row as it was read: the fields that stay, and the question; or its fault."""

    origin: Origin
    fields: dict[str, Any]
    question: Question = Question("")
    fault: UserError | None = None


def answer_file(job: BaselineJob, progress: Progress) -> BaselineSummary:
    """Run the job. UserError where no row can be answered, or a server is gone: the same job, run again, goes on."""
    journal_file = Path(f"{job.output}.journal")
    if Path(job.output).is_file() and not journal_file.exists():
        raise UserError(f"{job.output}: is already there. Name another output, or remove it to answer anew.")
    rows = read_questions(job)
    if all(row.fault for row in rows):
        raise next((row.fault for row in rows if row.fault), UserError(f"{job.input}: has no rows. Check the path."))
    about = {"method": job.method, "input": sha256_of(job.input), **job.about}
    journal = Journal(journal_file, about)
    try:
        talks = {
            number: begin(number, row.question, METHODS[job.method], job.settings, job.aligner)
            for number, row in enumerate(rows)
            if row.fault is None
        }
        converse(list(talks.values()), job.responders, journal, progress)
        written = [_output(job, row, talks.get(number)) for number, row in enumerate(rows)]
        write_json(f"{job.output}.about.json", about)
        write_lines(job.output, written)
    except BaseException:
        journal.close()
        raise
    journal.close(remove=True)
    return _summary(rows, list(talks.values()))


def read_questions(job: BaselineJob) -> list[BaselineRow]:
    """The rows of the input, unusable ones with their fault. Of an earlier output of a baseline the answer, its cost and the
    candidates are taken up. UserError where those were rewarded by another model."""
    rows = []
    for row in read_answers(job.input):
        if isinstance(row, DataError):
            if row.row is None:
                raise row
            rows.append(BaselineRow(Origin(row.file, row.row), {}, fault=row))
            continue
        fields = row.value if isinstance(row.value, dict) else {}
        fault: UserError | None = None
        if not isinstance(row.value, dict):
            fault = DataError(*row.origin, f"holds {kind_of(row.value)} where an object should be", "Write a question")
        else:
            fault = _fault(job, row.origin, fields)
        rows.append(
            BaselineRow(row.origin, _plain(job, fields), _question(job, fields) if not fault else Question(""), fault)
        )
    return rows


def _fault(job: BaselineJob, origin: Origin, fields: dict[str, Any]) -> UserError | None:
    if "method" not in fields and (taken := [name for name in OWN if name in fields and name != "answer"]):
        raise DataError(*origin, f"has a field '{taken[0]}', which this program writes", "Rename it in all rows")
    name = job.columns.question
    if fields.get(name) is None:
        return DataError(
            *origin, f"the field '{name}' is missing", "Each row needs one; by another name: --columns question=NAME"
        )
    if fault := text_fault(origin, name, fields[name]):
        return fault
    if fields.get("candidates") and fields.get("reward_model") != job.reward_model and job.method == "bon":
        raise DataError(
            *origin, "has candidates rewarded by another model", "Use the same --reward, or an input without candidates"
        )
    return None


def _plain(job: BaselineJob, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that stay."""
    return {name: value for name, value in fields.items() if name not in OWN and name != job.columns.answer}


def _question(job: BaselineJob, fields: dict[str, Any]) -> Question:
    answer = fields.get(job.columns.answer)
    given = answer if isinstance(answer, str) and answer.strip() else None
    if "method" not in fields:
        return Question(fields[job.columns.question], given)
    candidates = [
        Candidate(each["text"], each["finished"], each["reward"], _cost(each["cost"]))
        for each in fields.get("candidates") or []
    ]
    cost = {payee: usage for payee, usage in _cost(fields.get("cost") or {}).items() if payee != "aligner"}
    return Question(fields[job.columns.question], given, cost, tuple(candidates))


def _cost(value: dict[str, Any]) -> dict[str, Usage]:
    return {payee: Usage(**usage) for payee, usage in value.items()}


def _output(job: BaselineJob, row: BaselineRow, talk: Conversation | None) -> dict[str, Any]:
    """A row of the output: its own fields, the answer, what went wrong, and what it cost."""
    outcome = row.fault if talk is None else talk.outcome
    head = {**row.fields, "method": job.method}
    if talk is None or not isinstance(outcome, Outcome):
        cost = {} if talk is None else _written(talk.cost)
        return {**head, "answer": None, "cost": cost, "error": str(outcome)}
    more = dict(outcome.shown)
    if row.question.answer and "draft" not in more:
        more["draft"] = row.question.answer
    if "candidates" in more:
        more["reward_model"] = job.reward_model
    result = {"answer": outcome.text, "finished": outcome.finished, "failure": outcome.failure}
    error = {} if outcome.text else {"error": "the upstream gave no text"}
    return {**head, **result, **more, "cost": _written(added(outcome.carried, talk.cost)), **error}


def _written(cost: Cost) -> dict[str, Any]:
    return {payee: {**asdict(usage), "seconds": round(usage.seconds, 4)} for payee, usage in cost.items()}


def _summary(rows: Sequence[BaselineRow], talks: Sequence[Conversation]) -> BaselineSummary:
    outcomes = [talk.outcome for talk in talks if isinstance(talk.outcome, Outcome)]
    counts = Counter(outcome.failure for outcome in outcomes)
    faults = [row.fault for row in rows if row.fault]
    for talk in talks:
        if isinstance(talk.outcome, UserError):
            origin = rows[talk.row].origin
            faults.append(DataError(*origin, str(talk.outcome).rstrip("."), "The other rows went on"))
    return BaselineSummary(
        len(rows),
        sum(outcome.text is not None for outcome in outcomes),
        {failure: counts[failure] for failure in FAILURES},
        sum("steps" in o.shown and o.failure is None and o.text == o.shown.get("draft") for o in outcomes),
        sum(outcome.shown.get("correction_finished") is False for outcome in outcomes),
        added(*(talk.cost for talk in talks)),
        faults,
    )
