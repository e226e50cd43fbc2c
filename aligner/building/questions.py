"""Questions: read from their sources, filtered, freed of duplicates, and drawn so that each source keeps its share."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import regex

from aligner.building.config import BuildConfig, QuestionsConfig, SourceConfig
from aligner.building.near import near_duplicates
from aligner.building.read_questions import questions_in
from aligner.building.stage import Row, Sieve, draw_of, fingerprint_of
from aligner.quality.suspicions import leftover_of_a_prompt
from aligner.questions import question_key, tokens
from aligner.records import DataError, UserError

FEWEST = 8  # words, below which a language is not told: "Do duck quacks echo?" is quotas for Portuguese
RUN = 12  # times that one character may stand in a row, signs of a line or a gap aside
LINES = "-=_*#.~ \n\t"
_SAME = regex.compile(rf"(.)\1{{{RUN},}}", regex.DOTALL)
_ADDRESS = regex.compile(r"\s*(?:https?://|www\.)\S+\s*")


def collect_questions(config: BuildConfig) -> Sieve:
    """The questions of all sources: read, filtered, each once. UserError where a source cannot be read or has no row."""
    sieve, candidates = Sieve(), list[Row]()
    filters, first_places = question_filters(config.questions), dict[str, str]()
    for source in config.sources:
        before = sieve.into
        for row in _rows_of(source):
            sieve.into += 1
            reason, detail = _first_reason(row, filters, first_places)
            if reason:
                sieve.drop(row, reason, detail)
            else:
                first_places[question_key(row["question"])] = row["origin"]
                candidates.append(row)
        if sieve.into == before:
            raise UserError(f"source {source.label}: {source.data} has no rows. Check 'data'.")
    near: dict[int, int] = {}
    if config.questions.near is not None:
        near = dict(near_duplicates([row["question"] for row in candidates], config.questions.near))
    for place, row in enumerate(candidates):
        if place in near:
            sieve.drop(row, "near duplicate", candidates[near[place]]["question"])
        else:
            sieve.keep({"id": question_id(row["question"]), **row})
    return sieve


def question_id(question: str) -> str:
    """What a question is called in all stages: 16 hexadecimal digits of it, whatever its spelling."""
    return fingerprint_of(question_key(question))[:16]


def _rows_of(source: SourceConfig) -> Iterator[Row]:
    try:
        for row in questions_in(source.data, source.question):
            yield {"source": source.label, **row, **({"harmless": True} if source.harmless else {})}
    except DataError as error:
        raise UserError(f"source {source.label}: {error}") from None


Filter = tuple[str, Callable[[str], str]]  # a reason, and what of a question raises it ('' where nothing does)


def _first_reason(row: Row, filters: Sequence[Filter], first_places: dict[str, str]) -> tuple[str, str]:
    """Why a row is dropped, and what of it trigger that; two empty texts where it is kept."""
    if "fault" in row:
        return f"unusable: {row['fault']}", ""
    if first := first_places.get(question_key(row["question"])):
        return "duplicate", f"of {first}"
    for reason, trigger in filters:
        if detail := trigger(row["question"]):
            return reason, detail
    return "", ""


def question_filters(config: QuestionsConfig) -> list[Filter]:
    """The filters that the settings ask for, the cheapest first. UserError where a package is missing."""
    least, most = config.characters
    filters: list[Filter] = [
        ("too short", lambda text: f"{len(text)} characters" if len(text) < least else ""),
        ("too long", lambda text: f"{len(text):,} characters" if len(text) > most else ""),
        ("no words", lambda text: "" if letters_in(text) >= 3 and not _ADDRESS.fullmatch(text) else "no sentence"),
        ("repetitive", lambda text: repetition(text, config.repetition)),
        ("holds a prompt's marker", leftover_of_a_prompt),
    ]
    if config.scripts:
        filters.append(("another script", lambda text: other_script(text, config.scripts)))
    if config.languages:
        identify = language_identifier(config.languages)
        filters.append(("another language", lambda text: other_language(text, config.languages, identify)))
    return filters


def letters_in(text: str) -> int:
    """How many characters are letters of some script."""
    return sum(character.isalpha() for character in text)


def repetition(text: str, least: float) -> str:
    """What a text repeats: a character, or runs of three words; '' where it does not."""
    for match in _SAME.finditer(text):
        if match[1] not in LINES:
            return f"'{match[1]}' {len(match[0])} times"
    words = [word for word in tokens(text) if word[0].isalpha()]  # a puzzle's or a table's signs may repeat
    runs = [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
    share = len(set(runs)) / len(runs) if runs else 1.0
    return f"{share:.0%} of its runs of three words are different" if len(words) >= FEWEST and share < least else ""


def other_script(text: str, scripts: Sequence[str]) -> str:
    """The script of a text of which less than half of the letters are in these; '' where there are enough."""
    pattern = _script_pattern(tuple(scripts))
    count = letters_in(text)
    if not count or 2 * len(pattern.findall(text)) >= count:
        return ""
    other = next(c for c in text if c.isalpha() and not pattern.match(c))
    return unicodedata.name(other, "").split(" ")[0].capitalize()


@cache
def _script_pattern(scripts: tuple[str, ...]) -> Any:
    try:
        return regex.compile("[" + "".join(rf"\p{{{script}}}" for script in scripts) + "]")
    except regex.error:
        raise UserError(
            f"questions.scripts: {', '.join(scripts)}: write names of Unicode, such as Latin, Han."
        ) from None


def other_language(text: str, languages: Sequence[str], identify: Callable[[str], str]) -> str:
    """The language of a text, where it is none of these; '' where it is, or the text is too short to tell."""
    if len(tokens(text)) < FEWEST:
        return ""
    language = identify(text)
    return "" if language in languages else language


def language_identifier(languages: Sequence[str]) -> Callable[[str], str]:
    """Text -> ISO 639-1 code. UserError with the remedy where py3langid is not installed, or tells none of these languages."""
    try:
        from py3langid import classify, rank
    except ImportError:
        raise UserError(
            "questions.languages needs the package py3langid, which is not installed. Install it (pip install py3langid), "
            "or name scripts alone."
        ) from None
    known = {str(code) for code, _ in rank("")}
    if unknown := sorted(set(languages) - known):
        raise UserError(f"questions.languages: '{unknown[0]}' is none of {', '.join(sorted(known))} (ISO 639-1).")
    return lambda text: str(classify(text)[0])


def draw_shares(rows: Sequence[Row], config: BuildConfig) -> Sieve:
    """As many questions as the limit says, each source with its share. A higher limit adds questions and takes none away."""
    sieve, limit = Sieve(len(rows)), config.questions.limit
    available = {source.label: sum(row["source"] == source.label for row in rows) for source in config.sources}
    quotas = shares_of(available, {source.label: source.share for source in config.sources}, limit)
    ranked = sorted(rows, key=lambda row: draw_of(config.seed, row["source"], row["id"]))
    kept, left, any_share = set[str](), dict(quotas), any(source.share is not None for source in config.sources)
    for row in ranked:
        if left[row["source"]] > 0:
            left[row["source"]] -= 1
            kept.add(row["id"])
    for row in rows:
        if row["id"] in kept:
            sieve.keep(row)
        else:
            sieve.drop(row, "beyond the share of its source" if any_share else "beyond the limit", row["source"])
    total = sum(quotas.values())
    sieve.notes = {"shares": {name: round(count / total, 4) for name, count in quotas.items()}} if total else {}
    return sieve


def shares_of(available: dict[str, int], shares: dict[str, float | None], limit: int | None) -> dict[str, int]:
    """How many questions each source gives. Without shares all that are there, cut down alike to the limit."""
    weights = {name: share if share is not None else available[name] for name, share in shares.items()}
    whole = sum(weights.values()) or 1
    parts = {name: weight / whole for name, weight in weights.items()}
    most = min([available[name] / part for name, part in parts.items() if part > 0], default=0.0)
    total = min(most, limit) if limit is not None else most
    return {name: min(available[name], int(total * part + 1e-6)) for name, part in parts.items()}
