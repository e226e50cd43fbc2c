"""What a text shows of an objective by itself: its length, how easily it reads, what it says twice, offence, lists.

Each score is a pure function of a text. Reading and offence need an optional package each
(`pip install "qac-aligner[objectives]"`); without it that score is not there.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import log2

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MARK = re.compile(r"^[^\S\n]*(?:[-*•]|\d{1,2}[.)])\s+(?=\S)", re.MULTILINE)  # of an item of a list
GRADES = 30.0  # a school grade beyond which a text is only a list, or code, without full stops
FUNCTION_WORDS = re.compile(
    r"(about|above|after|again|also|although|always|among|another|because|been|before|being|below|between|both|cannot|"
    r"could|does|doing|down|during|each|either|else|every|from|further|have|having|here|hers|herself|himself|however|"
    r"into|itself|just|like|many|might|more|most|much|must|myself|neither|only|other|others|ours|ourselves|over|same|"
    r"shall|should|since|some|such|than|that|their|theirs|them|themselves|then|there|therefore|these|they|this|those|"
    r"though|through|thus|under|until|upon|very|were|what|when|where|whether|which|while|whom|whose|will|with|within|"
    r"without|would|your|yours|yourself)"
)


@dataclass(frozen=True)
class TextScore:
    """score: of a text. unit: what a difference of it is. more, less: the objectives that ask for more or less of it."""

    name: str
    unit: str
    score: Callable[[str], float]
    more: str = ""
    less: str = ""


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def doublings(text: str) -> float:
    """Length on a scale on which a text of twice as many words is 1 higher."""
    return log2(max(1, len(words(text))))


def distinct_trigrams(text: str) -> float:
    """The share of different ones among a text's runs of three words, 0 to 1; of a shorter text 1."""
    own = words(text)
    runs = list(zip(own, own[1:], own[2:], strict=False))
    return len(set(runs)) / len(runs) if runs else 1.0


def listed(text: str) -> float:
    """The share of lines that are items of a list ("- ", "* ", "1. "), 0 to 1; one item alone is no list."""
    lines = [line for line in text.splitlines() if line.strip()]
    items = sum(bool(_MARK.match(line)) for line in lines)
    return items / len(lines) if items > 1 else 0.0


def content_words(text: str) -> set[str]:
    """Words of four letters or more that say what a text is about, and its numbers."""
    return {word for word in words(text) if (len(word) > 3 and not FUNCTION_WORDS.fullmatch(word)) or word[0].isdigit()}


def content_kept(answer: str, text: str) -> float:
    """The share of the answer's content words that stand in the text, 0 to 1; of an answer without any 1."""
    own = content_words(answer)
    return len(own & content_words(text)) / len(own) if own else 1.0


def script(text: str) -> str:
    """The script of most letters, such as LATIN or CYRILLIC; '' without letters. A language's script, not the language."""
    letters = Counter(unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha())
    return max(letters, key=lambda name: letters[name]) if letters else ""


def reading() -> Callable[[str], float] | None:
    """School grades that a reader needs (automated readability index: long words, long sentences), with the sign changed; None
    where `textstat` is not installed. It would take the mark of an item for a short word, so marks are left out. Syllable counts
    would need a dictionary that is downloaded."""
    try:
        from textstat import automated_readability_index as grade
    except ImportError:
        return None
    return lambda text: -min(max(float(grade(_MARK.sub("", text))), 0.0), GRADES)


def decency() -> Callable[[str], float] | None:
    """One less the probability of offence; None where `alt-profanity-check` is not installed, which ships its own model."""
    try:
        from profanity_check import predict_prob
    except ImportError:
        return None
    return lambda text: 1 - float(predict_prob([text])[0])


@cache
def text_scores() -> tuple[tuple[TextScore, ...], tuple[str, ...]]:
    """The scores that there are, and a sentence for each that needs a package which is not installed."""
    ease, decent = reading(), decency()
    scores = [
        TextScore("length", "doublings of the number of words", doublings, more="detailed", less="concise"),
        TextScore("distinct", "share of different runs of three words", distinct_trigrams, more="no-repetition"),
        TextScore("list", "share of lines that are items of a list", listed, more="list"),
    ]
    notes = []
    if ease:
        scores.append(TextScore("reading", "school grades less", ease, more="readable"))
    else:
        notes.append("reading (readable): left out, the package textstat is not installed")
    if decent:
        scores.append(TextScore("decency", "one less the probability of offence", decent, more="polite"))
    else:
        notes.append("decency (polite): left out, the package alt-profanity-check is not installed")
    return tuple(scores), tuple(notes)


def shown_objectives() -> list[str]:
    """The objectives that some score shows."""
    return [name for each in text_scores()[0] for name in (each.more, each.less) if name]
