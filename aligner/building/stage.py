"""A stage: rows in, rows out, and a reason for every row that went. Its folder is whole or not there."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.files import (
    COMPLETED,
    is_completed,
    read_json,
    sha256_of,
    whole_folder,
    write_json,
    write_lines,
    write_text,
)
from aligner.jsonl import LineLog
from aligner.parsing import json_value
from aligner.records import UserError

ROWS, DROPPED, COUNTS = "rows.jsonl", "dropped.jsonl", "counts.json"
EXAMPLES = 3
SHORT = 160  # characters of an example
Row = dict[str, Any]
REMEDIES = {  # what to look at where a stage keeps nothing
    "questions": "look at 'question' of the sources and at 'questions'",
    "leaks": "look at 'leaks'",
    "shares": "look at the shares of the sources",
    "answers": "look at the upstreams and their max_tokens",
    "corrections": "a reply that was cut off needs a larger max_tokens, an unreadable one a stronger annotator",
    "people": "look at what people said in OUTPUT/people",
    "filter": "loosen 'filter'",
    "check": "look at 'check'",
}


@dataclass
class Sieve:
    """The rows of a stage. into: how many came in (asked for, where a stage multiplies them). notes: figures of its own."""

    into: int = 0
    kept: list[Row] = field(default_factory=list)
    dropped: list[Row] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def keep(self, row: Row) -> None:
        """Let a row pass."""
        self.kept.append(row)

    def drop(self, row: Mapping[str, Any], reason: str, detail: str = "") -> None:
        """Hold a row back. detail: what of it raised the reason."""
        self.dropped.append({**row, "reason": reason, **({"detail": detail} if detail else {})})


@dataclass(frozen=True)
class StageResult:
    """What a finished stage holds."""

    name: str
    folder: Path
    rows: list[Row]
    counts: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of its rows: what the next stage is about."""
        return sha256_of(self.folder / ROWS)


def fingerprint_of(*parts: Any) -> str:
    """A digest of values of JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def draw_of(*parts: Any) -> float:
    """A number from 0 to 1 that these parts decide, and nothing else: a later row draws none anew."""
    return (int(fingerprint_of(*parts)[:13], 16) + 0.5) / 16**13


def run_stage(folder: Path, name: str, deciding: Any, work: Callable[[], Sieve]) -> StageResult:
    """A stage's result: as it stands where the same decided it, else from its work, written whole or not at all."""
    fingerprint = fingerprint_of(name, deciding)
    if not (is_completed(folder) and _counts_in(folder).get("fingerprint") == fingerprint):
        sieve = work()
        assert sieve.into == len(sieve.kept) + len(sieve.dropped), f"{name}: the rows do not add up"
        with whole_folder(folder) as partial:
            write_lines(partial / ROWS, sieve.kept)
            write_lines(partial / DROPPED, sieve.dropped)
            write_json(partial / COUNTS, {"stage": name, "fingerprint": fingerprint, **_counts(sieve)})
            write_text(partial / COMPLETED, "")
    rows, counts = read_stage_rows(folder / ROWS), _counts_in(folder)
    if len(rows) != counts["kept"]:
        raise UserError(
            f"{folder / ROWS}: holds {len(rows):,} of {counts['kept']:,} rows. Remove its folder, and it is written anew."
        )
    return StageResult(name, folder, rows, counts)


def _counts_in(folder: Path) -> dict[str, Any]:
    """The counts of a finished stage. UserError where they cannot be read."""
    try:
        counts = read_json(folder / COUNTS)
        if isinstance(counts, dict) and "kept" in counts:
            return counts
    except (UserError, OSError):
        pass
    raise UserError(f"{folder / COUNTS}: is damaged or not there. Remove its folder, and it is written anew.")


def read_stage_rows(file: Path) -> list[Row]:
    """The rows of a file that a stage wrote. UserError where it is damaged."""
    try:
        return [json_value(line) for line in LineLog(file).lines]
    except ValueError:
        raise UserError(f"{file}: is damaged. Remove its folder, and it is written anew.") from None


def _counts(sieve: Sieve) -> dict[str, Any]:
    reasons = Counter(row["reason"] for row in sieve.dropped)
    examples: dict[str, list[str]] = {}
    for row in sieve.dropped:
        some = examples.setdefault(row["reason"], [])
        if len(some) < EXAMPLES:
            some.append(_example(row))
    return {
        "into": sieve.into,
        "kept": len(sieve.kept),
        "dropped": dict(reasons.most_common()),
        "examples": examples,
        "sources": _by(sieve, "source"),
        **sieve.notes,
    }


def _by(sieve: Sieve, name: str) -> dict[str, dict[str, int]]:
    """How many rows of each value came in and were kept."""
    into = Counter(str(row.get(name, "")) for row in (*sieve.kept, *sieve.dropped))
    kept = Counter(str(row.get(name, "")) for row in sieve.kept)
    return {value: {"into": into[value], "kept": kept[value]} for value in into}


def _example(row: Mapping[str, Any]) -> str:
    """A dropped row in one line: where it stands, what raised the reason, and its text."""
    parts = [str(row.get(name) or "") for name in ("origin", "detail", "question")]
    return ": ".join(" ".join(part.split())[:SHORT] for part in parts if part)


def weighted_choice(weights: Sequence[tuple[str, float]], number: int, *parts: Any) -> list[str]:
    """`number` of the names, without one twice, by their weights; decided by the parts alone (Efraimidis and Spirakis 2006)."""
    ranked = sorted(weights, key=lambda pair: draw_of(*parts, pair[0]) ** (1 / pair[1]), reverse=True)
    chosen = {name for name, _ in ranked[:number]}
    return [name for name, _ in weights if name in chosen]
