"""Checking a data set: unusable rows with their faults, suspicious rows, and lengths in tokens."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from aligner.encoder import Encoder
from aligner.files import line_writer, write_lines
from aligner.quality.suspicions import KINDS, Finding, Suspicions
from aligner.records import Correction, DataError, Skipped
from aligner.training.datasets.options import NO_OPTIONS, Options
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import Spec, check_options, parse_spec
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.supervised import Tally, Tokens, tokenise

LISTED = 50  # unusable rows that are listed one by one; of more, each finding with its first rows


@dataclass
class DataReport:
    """The findings over all rows: how many are usable, the ones left out, the unusable ones, the suspicions.

    records: the usable ones, or a seeded sample of them.
    """

    usable: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    faults: list[DataError] = field(default_factory=list)
    evaluation_faults: list[DataError] = field(default_factory=list)
    findings: dict[str, Finding] = field(default_factory=dict)
    records: list[Correction] = field(default_factory=list)
    written: str | None = None

    def lines(self) -> Iterator[str]:
        """The report for a reader."""
        yield from _told(self.faults)
        if self.evaluation_faults:
            yield from _told(self.evaluation_faults)
            yield "what cannot be read of the evaluation data was not compared"
        unusable = sum(fault.row is not None for fault in self.faults)
        total = self.usable + self.skipped.total() + unusable
        yield f"{self.usable:,} of {total:,} rows are usable, {unusable:,} are not"
        for reason, count in self.skipped.items():
            yield f"{count:,} left out: {reason}"
        if self.written:
            yield f"{self.usable:,} rows written to {self.written}, {total - self.usable:,} left out"
        for kind, finding in self.findings.items():
            if finding.count:
                yield f"{kind}: {finding.count:,} {KINDS[kind]}"
                yield from (f"    {example}" for example in finding.examples)

    def as_json(self) -> dict[str, Any]:
        """The report for a program, with every unusable row."""
        names = ("file", "row", "problem", "remedy")
        faults, others = (
            [{name: getattr(fault, name) for name in names} for fault in group]
            for group in (self.faults, self.evaluation_faults)
        )
        return {
            "usable": self.usable,
            "unusable": faults,
            "evaluation_unusable": others,
            "left_out": dict(self.skipped),
            "suspicious": {kind: asdict(finding) for kind, finding in self.findings.items()},
        }


def _told(faults: Sequence[DataError]) -> Iterator[str]:
    """Faults one by one, or of many each finding with its first rows."""
    if len(faults) <= LISTED:
        yield from map(str, faults)
        return
    groups: dict[tuple[str, str, str], list[DataError]] = {}
    for fault in faults:
        groups.setdefault((fault.file, fault.problem, fault.remedy), []).append(fault)
    for (file, problem, remedy), group in groups.items():
        if len(group) == 1:
            yield str(group[0])
            continue
        rows = ", ".join(str(fault.row) for fault in group[:5])
        more = f" and {len(group) - 5:,} more (--json lists all)" if len(group) > 5 else ""
        yield f"{file} rows {rows}{more}: {problem}. {remedy}"


def examine(
    specs: Sequence[str],
    options: Options = NO_OPTIONS,
    evaluation: Sequence[str] = (),
    keep: int | None = None,
    output: str | None = None,
    prompt: str | None = None,
    progress: Any = iter,
) -> DataReport:
    """Read every row of the specs' data sets once (proportions do not matter here).

    prompt: the one that is chosen for all (rows need the fields that their prompt shows). keep: how many records to keep, by a
    seeded choice; None keeps all. output: a file for the usable rows.
    """
    parsed, against = ([parse_spec(text, options) for text in side] for side in (specs, evaluation))
    check_options([*parsed, *against], options)
    others = [row for spec in against for row in _rows(spec, options, prompt)]
    suspicions, draw = Suspicions(row.question for row in others if isinstance(row, Correction)), random.Random(0)
    broken = [row for row in others if isinstance(row, DataError)]
    report = DataReport(findings=suspicions.findings, written=output, evaluation_faults=broken)
    with ExitStack() as stack:
        write = stack.enter_context(line_writer(output)) if output else None
        for row in progress(row for spec in parsed for row in _rows(spec, options, prompt)):
            if isinstance(row, DataError):
                report.faults.append(row)
            elif isinstance(row, Skipped):
                report.skipped[row.reason] += 1
            else:
                _take(row, report, keep, draw)
                suspicions.look(row)
                if write:
                    fields = {"question": row.question, "answer": row.answer, "correction": row.correction}
                    write({**fields, **_instruction(row)})
    return report


def _instruction(row: Correction) -> dict[str, Any]:
    """What a record's correction is to mind, and what stands before it, as a row holds it."""
    if row.prefix:
        return {"prefix": row.prefix, **_instruction(replace(row, prefix=""))}
    if row.objectives:
        return {"objectives": list(row.objectives)}
    return {"feedback": row.feedback} if row.feedback else {}


def _rows(spec: Spec, options: Options, prompt: str | None) -> Iterator[Correction | Skipped | DataError]:
    """The rows of a data set; a fault of the file as a whole ends them, and to have none is one."""
    empty = True
    try:
        for row in records_of(spec, options, prompt):
            empty = False
            yield row
    except DataError as error:
        yield error
    else:
        if empty:
            yield DataError(spec.path, None, "has no rows", "Check the path")


def _take(record: Correction, report: DataReport, keep: int | None, draw: random.Random) -> None:
    """Count a usable record and keep it, or let it take the place of another (reservoir sampling)."""
    report.usable += 1
    if keep is None or len(report.records) < keep:
        report.records.append(record)
    elif (place := draw.randrange(report.usable)) < keep:
        report.records[place] = record


def examine_tokens(
    records: Sequence[Correction],
    prompts: RunPrompts,
    encoder: Encoder,
    max_length: int,
    dump: str | None,
    progress: Any = iter,
) -> tuple[list[str], Tally]:
    """Lengths, the tally as training would see it, and that tally. `dump` gets the ids and labels of every kept row."""
    tokens, tally = tokenise(records, prompts, encoder, max_length, progress=progress)
    if dump:
        write_lines(dump, (dumped(row) for row in tokens))
    kinds = {"tokens": [len(t.ids) for t in tokens], "learned tokens": [t.target_length for t in tokens]}
    return [*tally.lines(), *(f"{name} a row: {percentiles(values)}" for name, values in kinds.items())], tally


def dumped(row: Tokens) -> dict[str, Any]:
    """One kept row as `--dump` writes it."""
    return {"row": row.origin.row, "input_ids": row.ids.tolist(), "labels": row.labels()}


def percentiles(values: Sequence[int]) -> str:
    """A few percentiles in one line."""
    quantiles = np.percentile(values, [0, 50, 90, 99, 100]).astype(int)
    return ", ".join(
        f"{name} {v:,}" for name, v in zip(("min", "median", "90 %", "99 %", "max"), quantiles, strict=True)
    )
