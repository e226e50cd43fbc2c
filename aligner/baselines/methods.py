"""The methods, one function each: a question and the settings in, requests out, replies in, an outcome back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import regex

from aligner.baselines.prompts import Prompts
from aligner.baselines.protocol import (
    REWARD,
    UPSTREAM,
    AlignerRequest,
    Candidate,
    ChatRequest,
    Outcome,
    Question,
    Reply,
    RewardRequest,
    Steps,
    added,
)

EMPTY, UNFINISHED, NO_REVISION = "empty", "unfinished", "no revision"
FAILURES = (EMPTY, UNFINISHED, NO_REVISION)
_HEADING = regex.compile(
    r"^\s*(?:the )?(?:new |revised |improved )?answer\s*:\s*", regex.IGNORECASE
)  # of a revision alone
_LABEL = regex.compile(r"^\s*(Question|Answer|To improve|Principle|Critique)\s*:", regex.MULTILINE)


@dataclass(frozen=True)
class MethodSettings:
    """n: answers drawn by best-of-N, at `temperature`. width: beams. rounds: of refine and revise. seed: of everything drawn."""

    prompts: Prompts
    n: int = 5
    width: int = 4
    rounds: int = 1
    temperature: float = 0.7
    seed: int = 42

    def request(self, name: str, **fields: str) -> ChatRequest:
        """A prompt as a request, decoded greedily."""
        return ChatRequest(self.prompts.fill(name, **fields))


Method = Callable[[Question, MethodSettings], Steps]


def best_of_n(question: Question, settings: MethodSettings) -> Steps:
    """N drawn answers, of which the one with the highest reward stands.

    Answer number k is drawn with seed + k whatever N is, and those that an earlier run left are taken first: so 1, 5 and 10 of
    one pool are nested.
    """
    pool = list(question.candidates[: settings.n])
    prompt = settings.prompts.fill("answer", question=question.text)
    numbers = range(len(pool), settings.n)
    drawn = yield [ChatRequest(prompt, settings.temperature, settings.seed + number) for number in numbers]
    first = next((text for text in [*(c.text for c in pool), *(d.text for d in drawn)] if text.strip()), "")
    spoken = [reply for reply in drawn if reply.text.strip()]
    rewards = yield [RewardRequest(question.text, reply.text, first) for reply in spoken]
    valued = iter(rewards)
    for reply in drawn:
        reward = next(valued) if reply.text.strip() else None
        cost = {UPSTREAM: reply.usage, **({REWARD: reward.usage} if reward else {})}
        pool.append(Candidate(reply.text, reply.finished, reward.reward if reward else None, cost))
    rated = [candidate for candidate in pool if candidate.reward is not None]
    carried = added(*(candidate.cost for candidate in question.candidates[: settings.n]))
    shown = {"candidates": [asdict(candidate) for candidate in pool]}
    if not rated:
        return Outcome(None, False, EMPTY, carried, shown)
    best = max(rated, key=lambda candidate: candidate.reward or 0.0)
    failure = None if best.finished else UNFINISHED
    return Outcome(best.text, best.finished, failure, carried, {**shown, "reward": best.reward})


def beam(question: Question, settings: MethodSettings) -> Steps:
    """Beam search. Width 1 is greedy decoding: the upstream as it is."""
    prompt = settings.prompts.fill("answer", question=question.text)
    [reply] = yield [ChatRequest(prompt, beams=settings.width)]
    return _as_it_is(reply)


def refine(question: Question, settings: MethodSettings) -> Steps:
    """Self-Refine (Madaan et al. 2023): feedback and a revision by it, until the feedback has nothing to improve."""
    return _by_critique(question, settings, "feedback", "refine", satisfied=settings.prompts.satisfied)


def critique(question: Question, settings: MethodSettings) -> Steps:
    """Self-Critique: a critique and behind it the revised answer, in one reply."""
    last = yield from _draft(question, settings)
    if not last.text:
        return last
    [reply] = yield [settings.request("critique", question=question.text, answer=last.text)]
    critique, *behind = _at_mark(reply.text, settings.prompts.mark)
    texts = [{"critique": critique.strip(), "revision": reply.text}]
    if not reply.text.strip():
        return _ended(last, EMPTY, texts)
    if not behind:
        return _ended(last, UNFINISHED if not reply.finished else NO_REVISION, texts)
    last = _revised(last, reply, question.text, critique.strip(), settings.prompts.mark)
    return _ended(last, last.failure, texts)


def revise(question: Question, settings: MethodSettings) -> Steps:
    """Revision by principles, as Constitutional AI has it (Bai et al. 2022): a critique by a principle, a revision by both."""

    def principle(number: int) -> dict[str, str]:
        return {"principle": settings.prompts.principle(question.text, number, settings.seed)}

    return _by_critique(question, settings, "principle_critique", "principle_revision", principle)


def _by_critique(
    question: Question,
    settings: MethodSettings,
    critique: str,
    revision: str,
    more: Callable[[int], dict[str, str]] = lambda _: {},
    satisfied: str | None = None,
) -> Steps:
    """In each round a reply to the prompt `critique`, and one to `revision` that has the first. more: fields of a round that both
    prompts show. A critique that begins with `satisfied` is the last."""
    last = yield from _draft(question, settings)
    texts: list[dict[str, Any]] = []
    for number in range(settings.rounds if last.text else 0):
        own = more(number)
        fields = {"question": question.text, "answer": last.text or "", **own}
        [criticism] = yield [settings.request(critique, **fields)]
        texts.append({**own, "critique": criticism.text})
        if not criticism.text.strip():
            return _ended(last, EMPTY, texts)
        if satisfied and criticism.text.strip().startswith(satisfied):
            break
        [reply] = yield [settings.request(revision, critique=criticism.text, **fields)]
        texts[-1]["revision"] = reply.text
        last = _revised(last, reply, question.text, criticism.text, settings.prompts.mark)
        if last.failure:
            break
    return _ended(last, last.failure, texts)


METHODS: dict[str, Method] = {
    "bon": best_of_n,
    "beam": beam,
    "refine": refine,
    "critique": critique,
    "revise": revise,
}


def behind_aligner(steps: Steps, question: Question) -> Steps:
    """Any method, and an Aligner that corrects its answer. What the Aligner does not end stays as it was."""
    outcome = yield from steps
    if not outcome.text:
        return outcome
    [reply] = yield [AlignerRequest(question.text, outcome.text)]
    shown = {**outcome.shown, "corrected": reply.text, "correction_finished": reply.finished}
    return replace(outcome, shown=shown)


def _draft(question: Question, settings: MethodSettings) -> Steps:
    """The answer that is revised: the row's own, or the upstream's, decoded greedily."""
    if question.answer:
        return Outcome(question.answer, carried=question.cost, shown={"draft": question.answer})
    [reply] = yield [settings.request("answer", question=question.text)]
    return replace(_as_it_is(reply), shown={"draft": reply.text})


def _as_it_is(reply: Reply) -> Outcome:
    if not reply.text.strip():
        return Outcome(None, False, EMPTY)
    return Outcome(reply.text, reply.finished, None if reply.finished else UNFINISHED)


def _at_mark(text: str, mark: str) -> list[str]:
    """A text in pieces before and behind a mark, in capitals or not."""
    return regex.split(regex.escape(mark), text, flags=regex.IGNORECASE)


def _revised(last: Outcome, reply: Reply, question: str, criticism: str, mark: str) -> Outcome:
    """The revision in a reply, without a heading, in the place of the last text, or that text with what is wrong with the reply."""
    text = _HEADING.sub("", _at_mark(reply.text, mark)[-1]).strip()
    if failure := revision_failure(replace(reply, text=text), (question, criticism)):
        return replace(last, failure=failure)
    return replace(last, text=text, finished=True, failure=None)


def revision_failure(reply: Reply, given: tuple[str, ...]) -> str | None:
    """Why a reply is no revision: empty, cut off, going on with the prompt's own labels, or what was given (the question, the
    critique) once more. None where it is one."""
    if not reply.text.strip():
        return EMPTY
    if not reply.finished:
        return UNFINISHED
    plain = reply.text.split()
    if _LABEL.search(reply.text) or any(plain == text.split() for text in given):
        return NO_REVISION
    return None


def _ended(last: Outcome, failure: str | None, texts: list[dict[str, Any]]) -> Outcome:
    return replace(last, failure=failure, shown={**last.shown, "steps": texts})
