"""Specs -> records: seeded sampling, the split by question, and what was counted on the way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from aligner.known_prompts import EQUAL, find_template
from aligner.objectives import BETWEEN, sentences, shuffled
from aligner.prompts import DEFAULT, PromptTemplate
from aligner.questions import question_key
from aligner.records import Correction, DataError, Skipped, UserError
from aligner.sentences import require_splitter
from aligner.training.datasets.built import build_of
from aligner.training.datasets.options import NO_OPTIONS, Options
from aligner.training.datasets.read_records import Read, records_of
from aligner.training.datasets.registry import Spec, parse_spec


@dataclass(frozen=True)
class Source:
    """What one spec gave: the rows of its file, those its data set skips, and how many records were taken.

    dataset: the registered name, a hash of its formatter, its options. sha256: of all that is read, or the commit on the
    hub. files: each file that is read, with its own sha256. build: of a folder that `aligner build` wrote, what it says.
    """

    spec: str
    dataset: str
    path: str
    sha256: str
    rows: int
    skipped: int
    taken: int
    files: dict[str, str] = field(default_factory=dict)
    build: dict[str, Any] | None = None


@dataclass(frozen=True)
class Mixture:
    """Records in the order of their specs and rows, the rows left out, and the sources."""

    records: tuple[Correction, ...]
    skipped: tuple[Skipped, ...]
    sources: tuple[Source, ...]


def mix(
    specs: Sequence[str],
    seed: int,
    options: Options = NO_OPTIONS,
    prompt: str | None = None,
    objectives: Mapping[str, str] = MappingProxyType({}),
) -> Mixture:
    """Read all specs. `prompt`: the one that is chosen for all, if one is. `objectives`: the sentence of each name.

    Raises DataError for the first unusable row, with the number of all such rows of its file.
    """
    records: list[Correction] = []
    skipped: list[Skipped] = []
    sources: list[Source] = []
    parsed = [parse_spec(text, options) for text in specs]
    for index, spec in enumerate(parsed):
        rows, left_out = usable(records_of(spec, options, prompt), spec)
        copies = partial(_copy, spec, options, prompt) if spec.dataset.anew else None
        sampled = sample(rows, spec.size(len(rows)), f"{seed}:{index}:{spec.dataset.name}", copies)
        if not sampled:
            reason = f", {len(left_out)} left out (the first: {left_out[0].reason})" if left_out else ""
            raise UserError(f"'{spec.text}' gives no records: it has {len(rows) + len(left_out)} rows{reason}.")
        template = find_template(prompt or spec.dataset.template or DEFAULT.name)
        records += [with_sentences(record, template, seed, objectives) for record in sampled]
        skipped += left_out
        count, version = len(rows) + len(left_out), spec.dataset.version(options)
        files = spec.files()
        sha256 = spec.sha256(files)
        build = build_of(spec.path)
        version += f" sentences={require_splitter()}" if options.sentences else ""
        sources.append(Source(spec.text, version, spec.path, sha256, count, len(left_out), len(sampled), files, build))
    return Mixture(tuple(records), tuple(skipped), tuple(sources))


def with_sentences(
    record: Correction, template: PromptTemplate, seed: int, objectives: Mapping[str, str]
) -> Correction:
    """The record with its objectives as text, in an order of its own; as they are where its prompt has no slot for them.

    DataError for a name without a sentence.
    """
    if not record.objectives:
        return record
    if not template.takes_feedback and record.prompt != EQUAL.name:
        return replace(record, feedback=BETWEEN.join(record.objectives))
    try:
        text = sentences(shuffled(record.objectives, f"{seed}:{record.origin}"), objectives)
    except UserError as error:
        raise DataError(*record.origin, str(error).rstrip("."), "Add a line of it to the --objectives_file") from None
    return replace(record, feedback=text)


def usable(rows: Iterable[Read], spec: Spec) -> tuple[list[Correction], list[Skipped]]:
    """The records and the rows left out, if none is unusable."""
    records: list[Correction] = []
    skipped: list[Skipped] = []
    faults: list[DataError] = []
    for row in rows:
        (faults if isinstance(row, DataError) else skipped if isinstance(row, Skipped) else records).append(row)  # type: ignore[arg-type]
    if faults:
        first = faults[0]
        listing = f"'aligner check {spec.text}' lists " + (f"all {len(faults)} such rows" if len(faults) > 1 else "it")
        raise DataError(first.file, first.row, first.problem, f"{first.remedy}; {listing}.")
    return records, skipped


def _copy(spec: Spec, options: Options, prompt: str | None, number: int) -> list[Correction]:
    """The records of a data set that gives others each time that its rows are taken."""
    return usable(records_of(spec, options, prompt, number), spec)[0]


def sample(
    records: Sequence[Correction], size: int, key: str, copies: Callable[[int], Sequence[Correction]] | None = None
) -> list[Correction]:
    """`size` records in their order: all of them as often as they fit, and a seeded choice for the rest. `copies`: the records by
    how often they were taken before, where they are then others."""
    if not records:
        return []
    whole, rest = divmod(size, len(records))
    taken = [copies(number) if copies and number else records for number in range(whole + bool(rest))]
    chosen = sorted(random.Random(key).sample(range(len(records)), rest))
    return [*(record for each in taken[:whole] for record in each), *(taken[whole][index] for index in chosen)]


def split(records: Sequence[Correction], ratio: float, seed: int) -> tuple[list[Correction], list[Correction]]:
    """Training and held-out records; every question is on one side only, and a held-out record counts once however often its
    rows are repeated. UserError where a side would be empty."""
    questions = sorted({_question(record) for record in records})
    size = max(1, round(len(questions) * ratio))
    if size >= len(questions):
        raise UserError(f"--eval_split_ratio {ratio} leaves nothing to train on: there are {len(questions)} questions.")
    held_out = set(random.Random(f"{seed}:split").sample(questions, size))
    sides: tuple[list[Correction], list[Correction]] = ([], [])
    for record in records:
        sides[_question(record) in held_out].append(record)
    return sides[0], list(dict.fromkeys(sides[1]))


def _question(record: Correction) -> str:
    """The question of a record; where a prompt needs none and the row has none, its answer."""
    return question_key(record.question or record.answer)


def identity(records: Sequence[Correction], proportion: float, seed: int) -> list[Correction]:
    """A seeded share of the records with the answer as the target: the identity (Q-A-A) warm-up (paper, section 2).

    Without their feedback: to copy an answer whatever was asked for would teach not to listen.
    """
    size = identity_size(len(records), proportion)
    return [
        replace(r, correction=r.answer, feedback="", objectives=()) for r in sample(records, size, f"{seed}:identity")
    ]


def part_equal(records: Sequence[Correction]) -> tuple[list[Correction], list[Correction]]:
    """The pairs for the stage of equal preference, and all other records."""
    equal = [record for record in records if record.prompt == EQUAL.name]
    return equal, [record for record in records if record.prompt != EQUAL.name]


def equal_preference(pairs: Sequence[Correction], proportion: float, seed: int) -> list[Correction]:
    """A seeded share of the pairs that are rated the same in an objective (MetaAligner, section 3.2). UserError without any."""
    if not pairs:
        raise UserError("--equal_proportion: no two answers are rated the same in an objective. Leave the stage out.")
    return sample(pairs, max(1, round(len(pairs) * proportion)), f"{seed}:equal")


def identity_size(records: int, proportion: float) -> int:
    """How many records the warm-up has."""
    return max(1, round(records * proportion))
