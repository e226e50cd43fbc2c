"""The last stage: what `aligner check` says of the rows, and those that it cannot use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aligner.building.config import CheckConfig
from aligner.building.stage import Row, Sieve
from aligner.encoder import Encoder
from aligner.quality.check import DataReport, examine, examine_tokens
from aligner.training.datasets.run_prompts import prompts_of


def check_rows(rows: Sequence[Row], file: Path, config: CheckConfig) -> Sieve:
    """The usable rows. file: where the rows stand, in this order. With a tokenizer those that training would drop go, too."""
    report = examine((f"correction-json::{file}",), keep=None if config.model_name_or_path else 0)
    reasons = {fault.row: f"unusable: {fault.problem}" for fault in report.faults if fault.row}
    lines = list(report.lines())
    if config.model_name_or_path and report.records:
        of_tokens, dropped = _tokens(report, config)
        lines, reasons = lines + of_tokens, {**dropped, **reasons}
    sieve = Sieve(len(rows), notes={"check": [line.replace(str(file), file.name) for line in lines]})
    for number, row in enumerate(rows, 1):
        if number in reasons:
            sieve.drop(row, reasons[number])
        else:
            sieve.keep(row)
    return sieve


def _tokens(report: DataReport, config: CheckConfig) -> tuple[list[str], dict[int, str]]:
    """What a tokenizer makes of the rows, in lines, and the rows that training would drop."""
    from aligner.demo import locate
    from aligner.models import load_tokenizer

    encoder = Encoder(load_tokenizer(locate(config.model_name_or_path or "")))
    prompts = prompts_of(config.prompt_template, report.records)
    lines, tally = examine_tokens(report.records, prompts, encoder, config.max_length, None)
    dropped = {
        row: reason.removeprefix("dropped: ")
        for reason, files in tally.places.items()
        if reason.startswith("dropped: ")
        for numbers in files.values()
        for row in numbers
    }
    return lines, dropped
