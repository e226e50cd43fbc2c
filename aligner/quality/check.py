"""The data doctor: what of a data set can be used, what cannot and why, and what a tokenizer makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aligner.encoder import Encoder
from aligner.files import write_lines
from aligner.prompts import PromptTemplate
from aligner.records import Correction, DataError, Skipped
from aligner.training.datasets.options import NO_OPTIONS, Options
from aligner.training.datasets.registry import Read, check_options, parse_spec, records_of
from aligner.training.datasets.supervised import Tally, Tokens, tokenise


@dataclass
class Report:
    """What was found: usable records, rows left out on purpose, unusable rows; and the prompts the data recommend."""

    records: list[Correction] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    faults: list[DataError] = field(default_factory=list)
    templates: frozenset[str] = frozenset()

    @property
    def equal(self) -> int:
        """Corrections that leave the answer as it is."""
        return sum(record.answer == record.correction for record in self.records)

    def lines(self) -> Iterator[str]:
        """The report for a reader."""
        yield from map(str, self.faults)
        unusable = sum(fault.row is not None for fault in self.faults)
        total = len(self.records) + len(self.skipped) + unusable
        yield f"{len(self.records):,} of {total:,} rows are usable, {unusable:,} are not"
        for reason, count in Counter(row.reason for row in self.skipped).items():
            first = next(row.origin for row in self.skipped if row.reason == reason)
            yield f"{count:,} left out: {reason} ({first.file} row {first.row} is the first)"
        if self.records:
            yield f"{self.equal:,} corrections equal their answer ({self.equal / len(self.records):.1%})"


def examine(specs: Sequence[str], options: Options = NO_OPTIONS, progress: Any = iter) -> Report:
    """Read every row of the specs' data sets (proportions do not matter here)."""
    parsed = [parse_spec(text) for text in specs]
    report = Report(templates=frozenset(spec.dataset.template for spec in parsed if spec.dataset.template))
    check_options(parsed, options)
    for spec in parsed:
        rows: Iterable[Read] = progress(records_of(spec, options))
        try:
            for row in rows:
                if isinstance(row, DataError):
                    report.faults.append(row)
                elif isinstance(row, Skipped):
                    report.skipped.append(row)
                else:
                    report.records.append(row)
        except DataError as error:  # the file as a whole
            report.faults.append(error)
    return report


def examine_tokens(
    records: Sequence[Correction], template: PromptTemplate, encoder: Encoder, max_length: int, dump: str | None
) -> tuple[list[str], int]:
    """Lengths and the tally as training would see them, and how many rows have no room for a target.

    `dump` gets the ids and labels of every kept row.
    """
    tokens, tally = tokenise(records, template, encoder, max_length)
    if dump:
        write_lines(dump, (dumped(row) for row in tokens))
    kinds = {"tokens": [len(t.ids) for t in tokens], "learned tokens": [t.target_length for t in tokens]}
    lines = [*tally.lines(), *(f"{name} a row: {percentiles(values)}" for name, values in kinds.items())]
    return lines, tally.count(Tally.NO_ROOM)


def dumped(row: Tokens) -> dict[str, Any]:
    """One kept row as `--dump` writes it."""
    return {"row": row.origin.row, "input_ids": row.ids.tolist(), "labels": row.labels()}


def percentiles(values: Sequence[int]) -> str:
    """A few percentiles in one line."""
    found = np.percentile(values, [0, 50, 90, 99, 100]).astype(int)
    return ", ".join(f"{name} {v:,}" for name, v in zip(("min", "median", "90 %", "99 %", "max"), found, strict=True))
