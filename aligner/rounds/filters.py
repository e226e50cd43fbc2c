"""Which corrections are worth training on: each filter says why it drops a pair, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from aligner.evaluation.pairs import Pair
from aligner.quality.edits import edits
from aligner.readers.rows import read_rows
from aligner.records import DataError, UserError

Key = tuple[str, str, str]  # question, answer, correction
Verdicts = Mapping[Key, Sequence[int | None]]  # 1: the correction is better, -1: worse, 0: a tie, None: unreadable
UNCHANGED = "unchanged: there is nothing to prefer"
WANTED = ("better", "not_worse")


@dataclass(frozen=True)
class Filters:
    """least_edit: least share of the text that was changed, 0 to 1. length_ratio: least and most characters of a correction over
    its answer's. verdicts: of `aligner evaluate`, of which a pair needs one at least; wanted: `better` in one and worse in none,
    or `not_worse` in any."""

    least_edit: float = 0.0
    length_ratio: tuple[float, float] = (0.0, float("inf"))
    verdicts: Verdicts | None = None
    wanted: str = WANTED[0]

    def __post_init__(self) -> None:
        if not 0 <= self.least_edit <= 1:
            raise UserError(f"--least_edit is {self.least_edit}: it is a share, 0 to 1.")
        least, most = self.length_ratio
        if not 0 <= least <= most:
            raise UserError(f"--length_ratio is {least} {most}: give the least and the most, such as 0.3 3.")


def reason_against(pair: Pair, filters: Filters) -> str | None:
    """Why a pair is not trained on at all; None where it is."""
    return next(_reasons(pair, filters), None)


def reason_against_preference(pair: Pair) -> str | None:
    """Why a pair that is trained on is no preference; None where it is one."""
    return UNCHANGED if pair.before == pair.after else None


def _reasons(pair: Pair, filters: Filters) -> Iterator[str]:
    if pair.unfinished:
        yield "unfinished: the correction has no end"
    if not pair.after.strip():
        yield "empty: the correction has no text"
    changed, ratio = edits(pair.before, pair.after), filters.length_ratio
    if 1 - changed.similarity < filters.least_edit:
        yield f"edit: less than {filters.least_edit:g} of the text is changed"
    if not ratio[0] <= changed.length_ratio <= ratio[1]:
        yield f"length: the correction is not {ratio[0]:g} to {ratio[1]:g} times as long"
    if filters.verdicts is not None:
        outcomes = filters.verdicts.get((pair.question, pair.before, pair.after), ())
        read = [outcome for outcome in outcomes if outcome is not None]
        if not read and pair.before != pair.after:
            yield "verdict: none was read"
        elif -1 in read or (filters.wanted == "better" and 1 not in read):
            yield f"verdict: not {filters.wanted.replace('_', ' ')}"


def read_verdicts(file: str, dimensions: Sequence[str] = ()) -> Verdicts:
    """The outcomes in a verdicts.jsonl by pair, of these dimensions or of all. UserError where a row is no verdict, or there is
    none of a dimension."""
    verdicts: dict[Key, list[int | None]] = {}
    seen = set()
    for row in read_rows(file):
        if isinstance(row, DataError):
            raise row
        fields = row.value if isinstance(row.value, dict) else {}
        texts = [fields.get(name) for name in ("question", "answer", "corrected")]
        if not all(isinstance(text, str) for text in texts) or fields.get("outcome", 2) not in (1, 0, -1, None):
            raise DataError(*row.origin, "is no verdict", "Give the verdicts.jsonl of 'aligner evaluate'")
        seen.add(fields.get("dimension"))
        if not dimensions or fields.get("dimension") in dimensions:
            verdicts.setdefault((str(texts[0]), str(texts[1]), str(texts[2])), []).append(fields["outcome"])
    if unjudged := set(dimensions) - seen:
        raise UserError(f"{file}: has no verdict of '{min(unjudged)}'. It has {', '.join(sorted(map(str, seen)))}.")
    return verdicts
