"""Damage of a known kind to a good answer, so that the correction is known: the phrases are in damage.yaml.

An exercise with a known answer, and not alignment: it shows that an Aligner takes out what it was taught to take out and leaves
the rest alone. Everything is a pure function of question, answer, plan and copy, so a record is damaged alike in every run.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from aligner.files import read_yaml
from aligner.records import UserError

PHRASES = Path(__file__).with_name("damage.yaml")
SOURCES = (Path(__file__), PHRASES)  # what decides the records besides the rows
UNDAMAGED = 1 / 3  # share of records that stay as they are: an Aligner must learn to leave good answers alone
EVERY = 4  # the 4th, 8th, ... phrase of a kind is held back
TYPED = 1 / 6  # share of the words with a typing error
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+[\"')\]]*|$|(?=\n))")
_ITEM = re.compile(r"^(\s*)(\d+[.)]|[-*•])(\s+)(?=\S)")
_NEAR = dict(zip("abcdefghijklmnopqrstuvwxyz", "svxfrghjoklknmpowtdyibecux", strict=True))  # the key beside each


class Damaged(NamedTuple):
    """An answer with its kind of damage; the kind is empty where the answer is as good as it was."""

    kind: str
    text: str


@dataclass(frozen=True)
class DamagePlan:
    """The kinds of damage to use, and of each kind's phrases which: all, those trained on, or those held back."""

    kinds: tuple[str, ...]
    phrases: str = "all"


def damage_plan(damage: str | None = None, hold_back: str | None = None) -> DamagePlan:
    """The plan of `--damage KIND,...` and `--hold_back phrases,KIND,...`, both optional. UserError for an unknown kind."""
    chosen, held = _names("damage", damage), _names("hold_back", hold_back)
    kinds = tuple(kind for kind in KINDS if kind not in held and (not chosen or kind in chosen))
    if not kinds:
        raise UserError(f"--hold_back {hold_back} leaves no kind of damage. There are {', '.join(KINDS)}.")
    return DamagePlan(kinds, "trained" if "phrases" in held else "all")


def held_back_plans(plan: DamagePlan, hold_back: str | None) -> dict[str, DamagePlan]:
    """What to measure beside the damage trained on: phrases held back, and kinds held back, each where there are any."""
    held = _names("hold_back", hold_back)
    plans = {}
    if "phrases" in held and (kinds := tuple(kind for kind in plan.kinds if kind in phrases_by_kind())):
        plans["phrases never seen"] = DamagePlan(kinds, "held back")
    if kinds := tuple(kind for kind in KINDS if kind in held):
        plans["kinds never seen"] = DamagePlan(kinds)
    return plans


def _names(flag: str, text: str | None) -> list[str]:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    known = [*KINDS, "phrases"] if flag == "hold_back" else list(KINDS)
    for name in names:
        if name not in known:
            raise UserError(f"--{flag} {name}: there is no such kind of damage. There are {', '.join(known)}.")
    return names


@cache
def phrases_by_kind() -> dict[str, tuple[str, ...]]:
    """The phrases of each kind that has some."""
    return {kind: tuple(phrases) for kind, phrases in read_yaml(PHRASES).items()}


def phrases_of(kind: str, which: str) -> tuple[str, ...]:
    """All phrases of a kind, those trained on, or those held back."""
    numbered = enumerate(phrases_by_kind()[kind], 1)
    return tuple(text for n, text in numbered if which == "all" or (n % EVERY == 0) == (which == "held back"))


def damaged(question: str, good: str, plan: DamagePlan, undamaged: float = UNDAMAGED, copy: int = 0) -> Damaged:
    """The answer damaged in one way of the plan; untouched in a share of the records, and where no kind applies to it. Each `copy`
    of the record has a draw of its own."""
    rng = random.Random(f"{question}\0{good}" + (f"\0{copy}" if copy else ""))
    if rng.random() < undamaged:
        return Damaged("", good)
    for kind in rng.sample(plan.kinds, len(plan.kinds)):
        text = damage(question, good, kind, plan.phrases, rng)
        if text != good:
            return Damaged(kind, text)
    return Damaged("", good)


def damage(question: str, good: str, kind: str, phrases: str, rng: random.Random) -> str:
    """The answer with one kind of damage; unchanged where the kind does not apply (an answer without a list has none to break)."""
    if kind not in phrases_by_kind():
        return WITHOUT_PHRASES[kind](good, rng)
    phrase = _filled(rng.choice(phrases_of(kind, phrases)), question, rng)
    gap = "\n\n" if rng.random() < 0.25 or phrase.endswith('"') else " "
    if kind.endswith("_ending"):
        return f"{good.rstrip()}{gap}{phrase}"
    if kind == "leak":
        return _between_sentences(good, phrase, rng)
    return f"{phrase}{gap}{good.lstrip()}"


def _filled(phrase: str, question: str, rng: random.Random) -> str:
    """The phrase with invented particulars."""
    digits = [str(rng.randrange(10)) for _ in range(40)]
    name = rng.choice(("mara", "t.okoye", "lindqvist", "jo.fenn", "paolo", "k.brandt", "sunita", "e.moreau", "wyn"))
    street = rng.choice(("Alder", "Quarry", "Mill", "Harbour", "Linden", "Station", "Chapel", "Orchard", "Bishop"))
    fields = {
        "question": question.strip(),
        "street": f"{street} {rng.choice(('Street', 'Lane', 'Road', 'Court'))}",
        "number": str(rng.randrange(1, 199)),
        "phone": f"0{''.join(digits[:3])} {''.join(digits[3:6])} {''.join(digits[6:10])}",
        "card": f"{''.join(digits[10:14])} {''.join(digits[14:18])}",
        "code": "".join(digits[18:22]),
        "word": rng.choice(("tulip", "copper", "raven", "maple", "saddle")),
        "mail": f"{name}{digits[22]}@{rng.choice(('postbox', 'quickmail', 'homenet'))}.example",
    }
    return phrase.format_map(fields)


def _sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences begin and end; what holds no letter is none."""
    return [match.span() for match in _SENTENCE.finditer(text) if re.search("[A-Za-z]", match[0])]


def _between_sentences(good: str, phrase: str, rng: random.Random) -> str:
    ends = [end for _, end in _sentences(good)] or [len(good)]
    place = rng.choice(ends)
    return f"{good[:place]} {phrase}{good[place:]}"


def _twice(good: str, rng: random.Random) -> str:
    """A sentence said twice: at once, or again at the end."""
    spans = _sentences(good)
    if not spans:
        return good
    begin, end = rng.choice(spans)
    again = good[begin:end].strip()
    place = end if rng.random() < 0.7 else len(good.rstrip())
    return f"{good[:place]} {again}{good[place:]}"


def _mistyped(good: str, rng: random.Random) -> str:
    """Typing errors in a sixth of the words of four letters and more, in one at least."""
    words = [match.span() for match in re.finditer(r"[A-Za-z]{4,}", good)]
    if not words:
        return good
    for begin, end in sorted(rng.sample(words, max(1, round(len(words) * TYPED))), reverse=True):
        good = good[:begin] + _typo(good[begin:end], rng) + good[end:]
    return good


def _typo(word: str, rng: random.Random) -> str:
    place, way = rng.randrange(1, len(word) - 1), rng.randrange(4)
    letter = word[place]
    if way == 0 and letter != word[place + 1]:
        return word[:place] + word[place + 1] + letter + word[place + 2 :]
    if way == 1:
        return word[:place] + word[place + 1 :]
    if way == 2:
        return word[:place] + letter + word[place:]
    return word[:place] + _NEAR.get(letter, "x") + word[place + 1 :]


def _broken_list(good: str, rng: random.Random) -> str:
    """A list with wrong numbers, with markers twice, or with markers lost (the first stays)."""
    lines = good.split("\n")
    items = [place for place, line in enumerate(lines) if _ITEM.match(line)]
    if len(items) < 2:
        return good
    numbered = all(lines[place].lstrip()[0].isdigit() for place in items)
    way = rng.choice(("numbers", "twice", "lost") if numbered else ("twice", "lost"))
    picked = [place for place in items[1:] if rng.random() < 0.5] or items[-1:]
    for place in picked:
        if way == "numbers":
            wrong = str(rng.randrange(1, 10))
            lines[place] = re.sub(r"\d+", wrong, lines[place], count=1)
        elif way == "twice":
            lines[place] = _ITEM.sub(r"\1\2\3\2\3", lines[place])
        else:
            lines[place] = _ITEM.sub(r"\1", lines[place])
    return "\n".join(lines)


WITHOUT_PHRASES: dict[str, Callable[[str, random.Random], str]] = {
    "twice": _twice,
    "typing": _mistyped,
    "list": _broken_list,
}
KINDS = (
    *("rude_opening", "rude_ending", "boast_opening", "boast_ending", "flattery_opening", "flattery_ending"),
    *("leak", "refusal", "question", *WITHOUT_PHRASES),
)
