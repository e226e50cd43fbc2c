"""Rules on the text of a question."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import regex

from aligner.routing.config import Rule

SECONDS = 0.5  # for a pattern over one question, which may be anybody's
log = logging.getLogger("aligner")


def first_rule(rules: Sequence[Rule], question: str) -> int | None:
    """The place of the first rule that fits, or None."""
    return next((place for place, rule in enumerate(rules) if fits(rule, question)), None)


def fits(rule: Rule, question: str) -> bool:
    """Whether all that a rule says holds of a question."""
    length = len(question.split())
    if length < (rule.at_least or 0) or (rule.at_most is not None and length > rule.at_most):
        return False
    if rule.words and not _search(_any_of(rule.words), question, regex.IGNORECASE):
        return False
    return rule.matches is None or _search(rule.matches, question)


def _any_of(words: Sequence[str]) -> str:
    return rf"(?<!\w)(?:{'|'.join(map(regex.escape, words))})(?!\w)"


def _search(pattern: str, question: str, flags: int = 0) -> bool:
    """Whether a pattern is found; not, where looking for it takes too long."""
    try:
        return regex.search(pattern, question, flags=flags, timeout=SECONDS) is not None
    except TimeoutError:
        log.warning("a rule was given up after %g seconds on a question: simplify its 'matches' (%s)", SECONDS, pattern)
        return False
