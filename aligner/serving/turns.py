"""A sentence's turn in a served answer, and an answer that is there already, sentence by sentence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from aligner.chat_api.dialogue import CandidateQuestions
from aligner.inference.guard import markers_of
from aligner.inference.turns import Turn, Turns
from aligner.quality.edits import edits
from aligner.serving.corrections import AnswerCorrector, AnswerRequest, Failed, Unfinished
from aligner.serving.policy import Policy, refusal

GATE = "the gate: the Aligner would have written it so"


async def corrected_turn(
    worker: AnswerCorrector, policy: Policy, questions: CandidateQuestions, turns: Turns, sentence: str
) -> Turn:
    """What takes a sentence's place. Where there is no correction: the sentence itself with `--on_failure open`, else Refused."""
    bare = sentence.strip()
    if kept := policy.guard.before(bare):
        return Turn(sentence, sentence, kept.reason)
    ticket = worker.submit(AnswerRequest(questions, bare, policy.feedback, policy.gate, turns.said))
    try:
        async with asyncio.timeout(policy.timeout):
            done = await ticket.done()
        if done.left_alone:
            return Turn(sentence, sentence, GATE)
        said = f"{questions[0]}\n{turns.said}\n{bare}"
        if kept := policy.guard.after(done.corrected, said, bare, markers_of(worker.template)):
            if kept.failed:
                raise Unfinished(kept.reason + ".")
            return Turn(sentence, sentence, kept.reason)
        return Turn(sentence, done.corrected.text)
    except (Failed, TimeoutError) as error:
        why = str(error) or f"the Aligner did not finish within {policy.timeout:g} seconds."
        if policy.on_failure == "closed":
            raise refusal(error, why[0].upper() + why[1:]) from None
        return Turn(sentence, sentence, why, True)


async def given_answer(
    worker: AnswerCorrector, policy: Policy, questions: CandidateQuestions, turns: Turns
) -> AsyncGenerator[str, None]:
    """The sentences of an answer that is there already, each corrected behind the corrected ones before it. Raises Refused."""
    while (sentence := turns.sentence()) is not None:
        turn = await corrected_turn(worker, policy, questions, turns, sentence)
        if added := turns.take(sentence, turn):
            yield added


def action_of(turns: Turns) -> str:
    """What was done with an answer, in a word of the field `aligner`."""
    if any(turn.failed for turn in turns.turns):
        return "failed_open"
    if any(turn.changed for turn in turns.turns):
        return "corrected"
    return "left_alone" if turns.turns and all(turn.kept for turn in turns.turns) else "unchanged"


def figures_of(turns: Turns, original: str) -> dict[str, Any]:
    """The part of the field `aligner` about the sentences: the figures of the whole, and what became of each."""
    figures = asdict(edits(original, turns.said))
    rounded = {name: value if isinstance(value, bool) else round(value, 4) for name, value in figures.items()}
    shown = [{name: value for name, value in turn._asdict().items() if value} for turn in turns.turns]
    return {"edits": rounded, "sentences": shown}
