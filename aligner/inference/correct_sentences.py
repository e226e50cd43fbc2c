"""`aligner correct --sentences`: a file of questions -> answers that the upstream and the Aligner wrote in turns.

An answer that a row has already is corrected the same way, but nothing of it is asked for anew. Every turn is kept in a journal
beside the output, so a job that is killed goes on from the last corrected sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aligner.files import sha256_of, write_lines
from aligner.inference.continuing import Continuing, Place
from aligner.inference.correct_file import (
    KEPT,
    CorrectionJob,
    Progress,
    feedback_of,
    journal_of,
    no_rows,
    unknown_objective,
)
from aligner.inference.corrector import Aligner, CorrectionRequest, NoRoom, Outcome
from aligner.inference.guard import Guard
from aligner.inference.items import Item, read_items
from aligner.inference.journal import Journal
from aligner.inference.summary import CorrectionSummary
from aligner.inference.turns import Turn, Turns
from aligner.prompts import PromptTemplate
from aligner.quality.edits import edits
from aligner.records import DataError, UserError

OWN = "by_sentence"  # the field of a row with its turns


@dataclass
class Answer:
    """A row in progress. `left`: tokens that the upstream may still write; `cut`: it reached them, or a limit of its own."""

    row: int
    item: Item
    left: int
    turns: Turns = field(default_factory=Turns)
    cut: bool = False

    @property
    def over(self) -> bool:
        """Whether there is nothing more to do."""
        return self.item.fault is not None or self.turns.over


def correct_by_sentence(
    job: CorrectionJob, upstream: Callable[[], Continuing] | None, most: int, at_once: int, progress: Progress
) -> CorrectionSummary:
    """Run the job. `most`: tokens that the upstream may write for an answer; `at_once`: answers in progress.

    UserError where no row can be corrected, or a server is gone: the same job, run again, continues.
    """
    if Path(job.output).is_file() and not journal_of(job).exists():
        raise UserError(f"{job.output}: is already there. Name another output, or remove it to correct anew.")
    items = list(read_items(job.input, upstream is not None, job.columns, job.questions))
    for item in items:
        item.fault = item.fault or unknown_objective(job, item)
    if all(item.fault for item in items):
        raise next((i.fault for i in items if i.fault), no_rows(job))
    guard = {name: value for name, value in asdict(job.guard).items() if value is not None}
    about = {"input": sha256_of(job.input), "feedback": job.feedback, "objectives": list(job.objectives), **job.about}
    about |= {"sentences": True, "guard": {**guard, "scripts": list(job.guard.scripts)}, "columns": asdict(job.columns)}
    journal = Journal(journal_of(job), about)
    try:
        answers = [_begun(row, item, most, journal) for row, item in enumerate(items)]
        left = [answer for answer in answers if not answer.over]
        work = _work(job, upstream, left, at_once, journal) if left else iter(())
        for _ in progress(work, total=len(left), desc="correcting"):
            pass
        write_lines(job.output, (_output(answer) for answer in answers))
    except BaseException:
        journal.close()
        raise
    journal.close(remove=True)
    return _summary(answers)


def _begun(row: int, item: Item, most: int, journal: Journal) -> Answer:
    """A row with the turns of earlier runs."""
    given = item.text("answer") if not item.fault else ""
    answer = Answer(row, item, most, Turns(pending=given, ended=bool(given), given=bool(given)))
    turns = answer.turns
    while kept := journal.done.get((f"turn {len(turns.turns) + 1}", row)):
        turn = Turn(**kept["turn"])
        if given:
            turns.take(turn.upstream, turn)
        else:  # what the upstream had written behind it is lost, and asked for again
            turns.turns.append(turn)
            turns.said, turns.ended, answer.left, answer.cut = kept["said"], kept["over"], kept["left"], kept["cut"]
    if refused := journal.done.get(("refused", row)):
        _refuse(answer, refused)
    return answer


def _work(
    job: CorrectionJob,
    open_upstream: Callable[[], Continuing] | None,
    left: Sequence[Answer],
    at_once: int,
    journal: Journal,
) -> Iterator[Answer]:
    """Write all answers, so many at a time, turn by turn; yield each as it ends."""
    [member] = job.stack
    aligner, upstream = member.open(), open_upstream() if open_upstream else None
    waiting, live = iter(left), list[Answer]()
    while True:
        live += [answer for _, answer in zip(range(at_once - len(live)), waiting, strict=False)]
        if not live:
            return
        if upstream:
            _ask(upstream, live, journal)
        _correct(job, aligner, upstream, [answer for answer in live if not answer.over], journal)
        for answer in live:
            if answer.over:
                if upstream:
                    upstream.leave(answer.row)
                yield answer
        live = [answer for answer in live if not answer.over]


def _ask(upstream: Continuing, live: Sequence[Answer], journal: Journal) -> None:
    """Let the upstream write until every answer has a whole sentence, or is at its end."""
    needing = [answer for answer in live if not answer.turns.ended and answer.turns.sentence() is None]
    for answer in needing:
        if answer.left <= 0:
            answer.turns.ended = answer.cut = True
    needing = [answer for answer in needing if not answer.turns.ended]
    places = [
        Place(a.row, a.item.text("question"), a.turns.said, a.turns.pending, a.left, a.turns.first) for a in needing
    ]
    for at, piece in upstream.more(places) if places else ():
        answer = needing[at]
        if isinstance(piece, UserError):
            _refuse(answer, str(piece), journal)
            continue
        answer.left -= max(1, piece.tokens)
        answer.cut = piece.ended and not piece.whole
        answer.turns.add(piece.text, piece.ended)
        if answer.turns.over and not answer.turns.turns:
            _refuse(answer, "the upstream gave no text for it", journal)


def _refuse(answer: Answer, why: str, journal: Journal | None = None) -> None:
    """Give a row up, and keep why."""
    if journal:
        journal.add("refused", answer.row, why)
    answer.item.fault = DataError(*answer.item.origin, why.rstrip("."), "The other rows went on")


def _correct(
    job: CorrectionJob, aligner: Aligner, upstream: Continuing | None, live: Sequence[Answer], journal: Journal
) -> None:
    """One turn of the Aligner for every answer that has a sentence."""
    [member] = job.stack
    asked: list[tuple[Answer, str, CorrectionRequest]] = []
    for answer in live:
        if (sentence := answer.turns.sentence()) is None:
            continue
        if kept := job.guard.before(sentence.strip()):
            _finish(answer, sentence, Turn(sentence, sentence, kept.reason), upstream, journal)
            continue
        question, feedback = answer.item.text("question"), feedback_of(job, member, answer.item)
        asked.append((answer, sentence, CorrectionRequest(question, sentence.strip(), feedback, answer.turns.said)))
    for at, outcome in aligner.stream([request for _, _, request in asked]) if asked else ():
        answer, sentence, request = asked[at]
        turn = turn_of(outcome, sentence, request, job.guard, member.markers)
        if isinstance(turn, Turn):
            _finish(answer, sentence, turn, upstream, journal)
        else:
            _refuse(answer, str(turn), journal)


def turn_of(
    outcome: Outcome, sentence: str, request: CorrectionRequest, guard: Guard, markers: Sequence[str]
) -> Turn | UserError:
    """What becomes of a sentence; an error where its row cannot go on. The first sentence has no empty correction: nothing would be
    left of the answer."""
    if isinstance(outcome, NoRoom):
        return Turn(sentence, sentence, str(outcome), True)
    if isinstance(outcome, UserError):
        return outcome
    said = f"{request.question}\n{request.prefix}\n{request.answer}"
    if kept := guard.after(outcome, said, request.answer, markers):
        return Turn(sentence, sentence, kept.reason, kept.failed)
    if not outcome.text.strip() and not request.prefix:
        return Turn(sentence, sentence, "the correction of the first sentence is empty", True)
    return Turn(sentence, outcome.text)


def _finish(answer: Answer, sentence: str, turn: Turn, upstream: Continuing | None, journal: Journal) -> None:
    """Keep a turn, then go on behind it."""
    turns = answer.turns
    turns.take(sentence, turn)
    if turn.changed:
        answer.cut = answer.cut and turns.over
        if upstream:
            upstream.leave(answer.row)
    state = {"said": turns.said, "over": turns.over, "left": answer.left, "cut": answer.cut}
    journal.add(f"turn {len(turns.turns)}", answer.row, {"turn": turn._asdict(), **state})


def _output(answer: Answer) -> dict[str, Any]:
    """A row of the output: its own fields, both texts, the figures, and the turns."""
    item, turns = answer.item, answer.turns
    if item.fault:
        return {**item.fields, "corrected": None, "error": str(item.fault)}
    before = item.text("answer") if turns.given else turns.upstream
    figures = asdict(edits(before, turns.said))
    failed = any(turn.failed for turn in turns.turns)
    shown = [{name: value for name, value in turn._asdict().items() if value} for turn in turns.turns]
    row = {**item.fields, item.columns.answer: before, "corrected": turns.said, "finished": not (failed or answer.cut)}
    row |= {"answer_finished": False} if answer.cut else {}
    if kept := next((turn.kept for turn in turns.turns if turn.kept), None):
        row |= {"guard": KEPT, "guard_reason": kept}
    rounded = {name: value if isinstance(value, bool) else round(value, 4) for name, value in figures.items()}
    return {**row, "edits": rounded, OWN: shown}


def _summary(answers: Sequence[Answer]) -> CorrectionSummary:
    good = [answer for answer in answers if not answer.item.fault]
    turns = [answer.turns.turns for answer in good]
    return CorrectionSummary(
        len(answers),
        sum(not answer.turns.given for answer in good),
        sum(answer.cut for answer in good),
        len(good),
        sum(not answer.turns.said for answer in good),
        sum(any(turn.failed for turn in each) for each in turns),
        sum(any(turn.kept and not turn.failed for turn in each) for each in turns),
        0,
        [answer.item.fault for answer in answers if answer.item.fault],
        [],
    )


def check_by_sentence(templates: Sequence[PromptTemplate], sentences: bool) -> None:
    """UserError where an Aligner of sentences is to correct whole answers, or one of whole answers sentences."""
    for template in templates:
        if template.by_sentence and not sentences:
            raise UserError(f"the prompt '{template.name}' corrects sentence by sentence: add --sentences.")
        if sentences and not template.by_sentence:
            raise UserError(
                f"--sentences: the prompt '{template.name}' has no {{prefix}}. Train an Aligner for it: aligner train --sentences."
            )
