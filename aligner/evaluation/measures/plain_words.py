"""A text made easier to read and otherwise left alone: sentences parted where two are joined, common words for long ones.

A rule, for rows to be trained on (`own_words`), and no claim that a person would write so. It has words that guides to plain
English name, where the common word fits into the long one's place.
"""

from __future__ import annotations

import re

_WORDS = """
a variety of: many | a wide range of: many | additional: more | additionally: also | alternatively: or
am unable to: cannot | anticipate: expect | appropriate: right | approximately: about | as well as: and | assist: help
assistance: help | assisting: helping | attempting: trying | beneficial: good | boundaries: limits | communicate: talk
communicating: talking | comprehensive: full | consequences: results | consequently: so | constructive: useful
conversation: talk | conversations: talks | demonstrate: show | demonstrates: shows | determine: find out
detrimental: harmful | difficult: hard | difficulties: troubles | discussion: talk | discussions: talks
due to: because of | encourage you: urge you | enhance: improve | ensure: make sure | ensures: makes sure
ensuring: making sure | essential: key | establish: set up | experiencing: having | extremely: very | facilitate: help
frequently: often | furthermore: also | guidance: advice | guidelines: rules | immediately: at once
implement: carry out | in addition: also | in order to: to | inappropriate: wrong | individual's: person's
individual: person | individuals: people | instructions: steps | legitimate: lawful | maintain: keep
maintaining: keeping | moreover: also | necessary: needed | negative: bad | numerous: many | obtain: get
obtaining: getting | opportunities: chances | opportunity: chance | organization: group | organizations: groups
participate: take part | permission: leave | positive: good | potential: possible | potentially: perhaps
previous: earlier | prior to: before | professional: expert | professionals: experts | provide me with: give me
provide us with: give us | provide you with: give you | provide: give | provides: gives
providing you with: giving you | providing: giving | purchase: buy | purchasing: buying | receive: get
receiving: getting | recommend: advise | recommended: advised | regarding: about | require: need | required: needed
requires: needs | respectful: kind | seek out: find | significant: great | significantly: much
struggling: having trouble | such as: like | suggestions: tips | therefore: so | throughout: all through
typically: mostly | unethical: wrong | unfortunately: sadly | utilize: use | utilizing: using | various: many
"""
PLAIN_WORDS = dict(pair.strip().split(": ") for line in _WORDS.strip().splitlines() for pair in line.split("|"))
FEWEST = 2  # places that change; a text with fewer is near plain already
_LONG = re.compile(rf"\b(an? )?({'|'.join(sorted(PLAIN_WORDS, key=len, reverse=True))})\b", re.IGNORECASE)
_VERB = (
    r"(?:['’](?:m|s|re|ve|ll|d)"
    r"|\s+(?:am|is|are|was|were|ha[sd]|have|can(?:not)?|could|will|would|should|may|might|must|do|does|did|need))\b"
)
_SUBJECT = (  # of a clause, not of a list's last item
    rf"(?:I|he|she|we|they|there|if|when|please)\b|(?:it|you|this|that|these|those)(?={_VERB})"
)
_NOUN = rf"(?:the|your|my|its|their|our|some|many|most)(?=(?:\s+\w+){{1,3}}?{_VERB})"
_JOINED = re.compile(
    rf"(?<=[\w)])(?:(?:,\s+and|;)\s+(?={_SUBJECT})|,\s+(but|so|because|which means)\s+(?={_SUBJECT}|{_NOUN})"
    rf"|\s+(but|because)\s+(?=(?:I|you|he|she|it|we|they|there){_VERB}))(\w)"
)
_WHICH = re.compile(
    r"(?<=\w),\s+which (can|may|will|could|would|might|is|includes|helps|are|include|have)\b(?=[^,.;]*\.)"
)
_OPENINGS = {"but": "But ", "so": "So ", "because": "This is because ", "which means": "This means "}


def in_plain_words(text: str) -> str | None:
    """The text in shorter sentences and commoner words; None where the rule finds fewer than two places."""
    text, joints = _JOINED.subn(_parted, text)
    text, clauses = _WHICH.subn(_clause, text)
    text, places = _LONG.subn(_plain, text)
    return text if joints + clauses + places >= FEWEST else None


def _parted(joint: re.Match[str]) -> str:
    opening = _OPENINGS.get(joint[1] or joint[2])
    return f". {opening}{joint[3]}" if opening else f". {joint[3].upper()}"


def _clause(which: re.Match[str]) -> str:
    return f". {'These' if which[1] in ('are', 'include', 'have') else 'This'} {which[1]}"


def _plain(long: re.Match[str]) -> str:
    plain = PLAIN_WORDS[long[2].lower()]
    if long[1]:  # an additional: another, and not a more
        plain = "another" if plain == "more" else f"a{'n' if plain[0] in 'aeiou' else ''} {plain}"
    return plain[0].upper() + plain[1:] if long[0][0].isupper() else plain
