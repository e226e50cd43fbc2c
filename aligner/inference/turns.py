"""An answer that two models write in turns: the upstream a sentence, the Aligner what belongs in its place, and so on from there.

This is the bookkeeping alone, the same for a file and for a server: what was said so far, what the upstream wrote behind it, and
what becomes of both when a sentence is corrected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import regex
from rapidfuzz.distance import Indel

from aligner.inference.guard import is_structured
from aligner.sentences import first_sentence, split_sentences
from aligner.training.datasets.by_sentence import LEAST

AHEAD = 3  # sentences of a given answer among which one that a correction already says is looked for
_CLOSE = regex.compile(r"[\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}。!?、」』]")


class Turn(NamedTuple):
    """A sentence of the upstream's and what took its place. `kept`: why it stayed as it was, where it did; `failed`: because there
    was no correction."""

    upstream: str
    corrected: str
    kept: str | None = None
    failed: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything but white space around it is another."""
        return self.corrected.strip() != self.upstream.strip()


@dataclass
class Turns:
    """An answer in the making.

    said: the corrected text so far, without white space at its end, from where the upstream goes on. pending: what it wrote behind
    that and was not corrected yet. ended: behind `pending` nothing comes. given: the answer was there before; it stays what it is
    whatever is corrected, so nothing is asked for anew.
    """

    said: str = ""
    pending: str = ""
    ended: bool = False
    given: bool = False
    turns: list[Turn] = field(default_factory=list)

    def sentence(self) -> str | None:
        """The upstream's next sentence with the white space before it; None as long as it is not whole, or none is left."""
        if not self.pending.strip():
            return None
        if not self.said and self.pending.lstrip()[:1] in ("{", "["):  # perhaps JSON, which is one piece
            if not self.ended:
                return None
            if is_structured(self.pending):
                return self.pending
        return first_sentence(self.pending, self.ended)

    @property
    def over(self) -> bool:
        """Whether nothing is left to correct, nor to ask for."""
        return self.ended and not self.pending.strip()

    def add(self, text: str, ended: bool) -> None:
        """What the upstream wrote next; `ended`: nothing comes behind it."""
        self.pending += text
        self.ended = ended

    def take(self, sentence: str, turn: Turn) -> str:
        """Put a sentence's turn into the answer, and return the text that this adds to it. An empty correction is the answer's end;
        a changed one makes what the upstream wrote behind the sentence worthless."""
        self.turns.append(turn)
        text, rest = turn.corrected.strip(), self.pending[len(sentence) :]
        if not text:
            self.pending, self.ended = "", True
            return ""
        if not turn.changed:
            self.pending = rest
        elif self.given:
            self.pending = _behind(text, sentence.strip(), rest)
        else:  # an end behind other sentences may come elsewhere now; one behind this sentence is the answer's
            self.pending, self.ended = "", self.ended and not rest.strip()
        added = _gap(self.said, sentence) + text
        self.said += added
        return added

    @property
    def first(self) -> str:
        """The upstream's own first sentence; empty before it is corrected."""
        return self.turns[0].upstream if self.turns else ""

    @property
    def upstream(self) -> str:
        """All that the upstream wrote and was looked at."""
        text = ""
        for turn in self.turns:
            text += (_gap(text, turn.upstream) if text else "") + turn.upstream.strip()
        return text


def _gap(before: str, sentence: str) -> str:
    """The white space between what was said and a sentence: the upstream's own, and a space where it forgot one."""
    if not before:
        return ""
    own = sentence[: len(sentence) - len(sentence.lstrip())]
    return own or ("" if _CLOSE.match(sentence) or _CLOSE.match(before[-1]) else " ")


def _behind(corrected: str, sentence: str, rest: str) -> str:
    """What is left of a given answer: without the next sentences, where the correction is one of those rather than this one's."""
    least = max(LEAST, Indel.normalized_similarity(corrected, sentence))
    dropped = ""
    for each in split_sentences(rest)[:AHEAD]:
        dropped += each
        if Indel.normalized_similarity(corrected, each.strip()) > least:
            return rest[len(dropped) :]
    return rest
