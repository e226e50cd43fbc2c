"""Where draft tokens come from, and how many of them are worth verifying.

A correction copies its answer in runs: it follows the answer, leaves it (an insertion, a deletion, a replacement) and comes
back. So the answer is the first source of drafts, at the place where the last tokens of the correction stand in it; the
prompt and the correction so far are the second, as in prompt lookup. The longer a run already is, the likelier it continues;
`AcceptanceStats` learns that during decoding, and `draft_length` weighs it against what a forward pass over more tokens costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LONGEST = 64  # tokens of a draft
SUFFIX = 32  # tokens of a run that are compared; longer runs predict no better
NOWHERE = (0, -1)
WHOLE, ANSWER, TEXT = 0, 1, 2  # the answer where all before was copied too; the answer; prompt and correction
# Runs of these lengths share an acceptance rate: 0, 1, 2, 3-4, 5-8, 9-16, 17-31, 32 and more.
BUCKETS = np.searchsorted([0, 1, 2, 4, 8, 16, 31], np.arange(SUFFIX + LONGEST + 1))
# How often the next token follows the source, measured on the published corrections of Aligner-2B (AlpacaEval).
PRIORS = (
    (0.50, 0.80, 0.80, 0.85, 0.85, 0.88, 0.92, 0.98),
    (0.00, 0.19, 0.40, 0.55, 0.68, 0.80, 0.95, 0.99),
    (0.00, 0.17, 0.36, 0.50, 0.60, 0.80, 0.95, 0.99),
)
RATE = 1 / 64  # of learning: a guess counts for some hundred more


class Guess(NamedTuple):
    """A possible continuation: the source's tokens, and how many tokens before them equal the end of the correction."""

    source: int
    run: int
    tokens: list[int]


class TokenIndex:
    """Token ids, and where each of them stands."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: list[int] = []
        self.behind: dict[int, list[int]] = defaultdict(list)  # token -> the places behind it
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Put tokens behind the others."""
        for token in ids:
            self.ids.append(token)
            self.behind[token].append(len(self.ids))

    def find(self, output: Sequence[int], near: int) -> tuple[int, int]:
        """The longest run at the end of `output` that occurs in these ids, and the place behind it.

        Of runs of equal length, the one nearest to `near`. (0, -1) where even the last token is not found.
        """
        best, distance = NOWHERE, 0
        for place in self.behind.get(output[-1], ()) if output else ():
            if place == len(self.ids):
                continue  # nothing follows
            run, most = 1, min(place, len(output), SUFFIX)
            while run < most and self.ids[place - 1 - run] == output[-1 - run]:
                run += 1
            if run > best[0] or (run == best[0] and abs(place - near) < distance):
                best, distance = (run, place), abs(place - near)
        return best


class Drafter:
    """One row's sources of drafts. `answer` ends with end-of-text, so that an unchanged answer is one draft."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        self.answer, self.text = TokenIndex(answer), TokenIndex(prompt)
        self.output: list[int] = []
        self.place = 0  # in the answer, where the correction is expected to go on
        self.whole = True  # so far the correction is the answer's beginning

    def extend(self, tokens: Sequence[int]) -> None:
        """Append the tokens that the model generated."""
        for token in tokens:
            follows = self.place < len(self.answer.ids) and self.answer.ids[self.place] == token
            self.output.append(token)
            self.place += follows
            self.whole &= follows
        self.text.extend(tokens)

    def guesses(self) -> list[Guess]:
        """The continuation that each source suggests."""
        guesses = []
        if self.whole:
            guesses.append(Guess(WHOLE, min(self.place, SUFFIX), self.answer.ids[self.place : self.place + LONGEST]))
        else:
            run, place = self.answer.find(self.output, self.place)
            if place >= 0:
                self.place = place
                guesses.append(Guess(ANSWER, run, self.answer.ids[place : place + LONGEST]))
        run, place = self.text.find(self.text.ids[-SUFFIX:], len(self.text.ids))
        if place >= 0:
            guesses.append(Guess(TEXT, run, self.text.ids[place : place + LONGEST]))
        return guesses


class AcceptanceStats:
    """How often guesses were right, by their source and by the run they continue; shared by all rows."""

    def __init__(self) -> None:
        self.right = np.array(PRIORS)

    def survival(self, guess: Guess) -> np.ndarray:
        """For each token of a guess, the chance that it and all before it are right."""
        runs = BUCKETS[guess.run : guess.run + len(guess.tokens)]
        return np.cumprod(self.right[guess.source, runs])

    def best(self, guesses: Sequence[Guess]) -> Guess:
        """The guess that is worth most."""
        return max(guesses, key=lambda guess: float(self.survival(guess).sum()))

    def learn(self, guess: Guess, tokens: Sequence[int]) -> None:
        """Compare a guess with the generated tokens, up to the first difference."""
        for offset, (guessed, token) in enumerate(zip(guess.tokens, tokens, strict=False)):
            bucket = BUCKETS[min(guess.run + offset, len(BUCKETS) - 1)]
            self.right[guess.source, bucket] += RATE * ((guessed == token) - self.right[guess.source, bucket])
            if guessed != token:
                return


def draft_length(survivals: Sequence[np.ndarray], pending: int, cost: Callable[[np.ndarray], np.ndarray]) -> int:
    """How many tokens to draft for rows that are decoded together.

    `survivals`: per row, the chance of each drafted token (`AcceptanceStats.survival`). `pending`: tokens of a row that must
    be read in any case (1, or a prompt). `cost(n)`: the seconds of a forward pass over n tokens. A token is worth what it costs at
    the best rate of tokens per second that drafts reach; drafting stops where one more costs more than it brings.
    """
    rows = len(survivals)
    longest = max((len(s) for s in survivals), default=0)
    gained = np.zeros(longest + 1)
    for survival in survivals:
        total = np.cumsum(survival)
        gained[1 : len(total) + 1] += total
        gained[len(total) + 1 :] += total[-1] if len(total) else 0
    lengths = np.arange(longest + 1)
    price = float(np.min(cost(rows * (1 + lengths)) / (rows + gained)))
    worth = gained * price - (cost(rows * (pending + lengths)) - cost(np.array([rows * pending])))
    return int(np.argmax(worth))
