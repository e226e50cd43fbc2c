"""One answer, corrected and shown as a diff: `aligner correct --question ... --answer ...`."""

from __future__ import annotations

import sys

from rich.console import Console

from aligner.demo import locate
from aligner.inference.correct_sentences import turn_of
from aligner.inference.corrector import Corrected, CorrectionRequest, Corrector, Settings
from aligner.inference.guard import Guard, markers_of
from aligner.inference.turns import Turns
from aligner.models import check_place, quiet_libraries
from aligner.quality.edits import diff, edits, show
from aligner.records import UserError
from aligner.routing.config import read_routes
from aligner.routing.router import choice_line, open_router
from aligner.steering.options import SteerOptions


def show_one_correction(
    model: str | None,
    route: str | None,
    question: str,
    answer: str,
    feedback: str | None,
    objectives: tuple[str, ...],
    prompt_template: str | None,
    max_new_tokens: int,
    dtype: str | None,
    trust_remote_code: bool,
    steer: SteerOptions,
) -> None:
    """Correct an answer and print it as a diff, coloured on a terminal, with the share copied below. `route`: a routes.yaml, which
    chooses the model."""
    quiet_libraries()
    screen = Console(highlight=False, markup=False, soft_wrap=True)
    if route:
        routes = read_routes(route)
        choice = open_router(routes, trust_remote_code).choose([question], [answer])[0]
        screen.print(f"route: {choice_line(choice)}", style="dim")
        if choice.leaves_alone:
            return
        chosen = routes.aligners[choice.aligner]
        if chosen.aligner_url:
            raise UserError(
                f"{route}: '{chosen.name}' is served. Correct a file of one row instead: --input, --output."
            )
        model, prompt_template = chosen.model, chosen.prompt_template or prompt_template
    folder = locate(model or "")
    check_place(folder)
    settings = Settings(batch_size=1, max_new_tokens=max_new_tokens)
    corrector = Corrector.load(folder, prompt_template, settings, trust_remote_code, dtype, steer)
    if corrector.template.by_sentence:
        corrected = _by_sentence(corrector, question, answer, feedback, objectives)
    else:
        [corrected] = corrector.correct([(question, answer)], feedback, objectives)
    screen.print(show(diff(answer, corrected.text), sys.stdout.isatty()))
    ended = "" if corrected.finished else f"; cut off at {max_new_tokens:,} tokens (or the model's)"
    screen.print(f"({corrected.edits.copied:.0%} of it copied{ended})", style="dim")


def _by_sentence(
    corrector: Corrector, question: str, answer: str, feedback: str | None, objectives: tuple[str, ...]
) -> Corrected:
    """The answer's sentences in turn, each behind the corrected ones before it."""
    turns, markers = Turns(pending=answer, ended=True, given=True), markers_of(corrector.template)
    while (sentence := turns.sentence()) is not None:
        request = CorrectionRequest(question, sentence.strip(), "", turns.said)
        [outcome] = corrector.correct([request], feedback, objectives)
        turn = turn_of(outcome, sentence, request, Guard(), markers)
        if isinstance(turn, UserError):
            raise turn
        turns.take(sentence, turn)
    return Corrected(turns.said, not any(turn.failed for turn in turns.turns), edits(answer, turns.said))
