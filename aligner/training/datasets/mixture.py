"""Specs -> records: seeded sampling, the split by question, and what was counted on the way."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from aligner.files import sha256_of
from aligner.records import Correction, DataError, UserError
from aligner.training.datasets.registry import Spec, parse_spec, records_of


@dataclass(frozen=True)
class Source:
    """What one spec gave: the rows of its file and how many records were taken (more than rows: up-sampled).

    dataset: the registered name and a hash of its formatter. sha256: the file's.
    """

    spec: str
    dataset: str
    path: str
    sha256: str
    rows: int
    taken: int


@dataclass(frozen=True)
class Mixture:
    """Records in the order of their specs and rows, where they came from, and the prompts their data sets recommend."""

    records: tuple[Correction, ...]
    sources: tuple[Source, ...]
    templates: frozenset[str]


def mix(specs: Sequence[str], seed: int) -> Mixture:
    """Read all specs. Raises DataError for the first unusable row, with the number of all such rows of its file."""
    records: list[Correction] = []
    sources: list[Source] = []
    parsed = [parse_spec(text) for text in specs]
    for index, spec in enumerate(parsed):
        rows = usable(records_of(spec.dataset, spec.path), spec)
        taken = sample(rows, spec.size(len(rows)), f"{seed}:{index}:{spec.dataset.name}")
        if not taken:
            raise UserError(f"'{spec.text}' gives no records: the file has {len(rows)} rows.")
        records += taken
        sources.append(
            Source(spec.text, spec.dataset.version(), spec.path, sha256_of(spec.path), len(rows), len(taken))
        )
    return Mixture(tuple(records), tuple(sources), frozenset(s.dataset.template for s in parsed if s.dataset.template))


def usable(rows: Iterable[Correction | DataError], spec: Spec) -> list[Correction]:
    """The records, if every row is one."""
    records: list[Correction] = []
    faults: list[DataError] = []
    for row in rows:
        (faults if isinstance(row, DataError) else records).append(row)  # type: ignore[arg-type]
    if faults:
        first = faults[0]
        listing = f"'aligner check {spec.text}' lists " + (f"all {len(faults)} such rows" if len(faults) > 1 else "it")
        raise DataError(first.file, first.row, first.problem, f"{first.remedy}; {listing}.")
    return records


def sample(records: Sequence[Correction], size: int, key: str) -> list[Correction]:
    """`size` records in their order: all of them as often as they fit, and a seeded choice for the rest."""
    if not records:
        return []
    whole, rest = divmod(size, len(records))
    chosen = sorted(random.Random(key).sample(range(len(records)), rest))
    return [*list(records) * whole, *(records[index] for index in chosen)]


def normalised(question: str) -> str:
    """A question without case, punctuation and spacing: two that differ only in those are the same question."""
    folded = unicodedata.normalize("NFKC", question).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def split(records: Sequence[Correction], ratio: float, seed: int) -> tuple[list[Correction], list[Correction]]:
    """Training and held-out records; every question is on one side only. UserError where a side would be empty."""
    questions = sorted({normalised(record.question) for record in records})
    size = max(1, round(len(questions) * ratio))
    if size >= len(questions):
        raise UserError(f"--eval_split_ratio {ratio} leaves nothing to train on: there are {len(questions)} questions.")
    held_out = set(random.Random(f"{seed}:split").sample(questions, size))
    sides: tuple[list[Correction], list[Correction]] = ([], [])
    for record in records:
        sides[normalised(record.question) in held_out].append(record)
    return sides


def identity(records: Sequence[Correction], proportion: float, seed: int) -> list[Correction]:
    """A seeded share of the records with the answer as the target: the identity (Q-A-A) warm-up (paper, section 2)."""
    size = max(1, round(len(records) * proportion))
    return [replace(r, correction=r.answer) for r in sample(records, size, f"{seed}:identity")]
