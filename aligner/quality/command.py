"""`aligner check`: from its settings to the report, printed, and the exit status."""

from __future__ import annotations

import json
from functools import partial

from aligner.console import progress
from aligner.files import refuse_overwriting
from aligner.quality.check import DataReport, examine, examine_tokens
from aligner.quality.config import CheckConfig
from aligner.records import UserError
from aligner.training.datasets.options import Options
from aligner.training.datasets.registry import parse_spec, register_files
from aligner.training.datasets.supervised import Tally

SAMPLE = 20_000  # rows that are tokenised where there are more


def check_data(config: CheckConfig) -> int:
    """Check a data set and print the report. Returns 0; 1 where a row is unusable or unwanted; 2 where a file cannot be read."""
    register_files(list(config.register))
    inputs = [parse_spec(text).path for text in (*config.data, *config.eval_datasets)] + list(config.register)
    for output, other in ((config.dump, config.output), (config.output, config.dump)):
        if output:
            refuse_overwriting(output, *inputs, *([other] if other else []))
    options = Options(config.columns, config.prefer, config.multi_turn)
    bar = partial(progress, desc="reading", unit=" rows", delay=2)
    report = examine(config.data, options, config.eval_datasets, _rows_to_keep(config), config.output, bar)
    lines, tally = _tokens(config, report) if report.records else ([], None)
    if config.json:
        print(json.dumps({**report.as_json(), "tokens": lines}, indent=2))
    else:
        print(*report.lines(), *lines, sep="\n")
    return _status(config, report, tally, has_token_lines=bool(lines))


def _rows_to_keep(config: CheckConfig) -> int | None:
    """How many rows are tokenised: none without a tokenizer, a sample, or all (None)."""
    if not config.model_name_or_path:
        return 0
    return None if config.exact or config.dump or "cut" in config.fail_on else SAMPLE


def _status(config: CheckConfig, report: DataReport, tally: Tally | None, has_token_lines: bool) -> int:
    without_room = tally.count(tally.NO_ROOM) if tally else has_token_lines
    counts = {kind: finding.count for kind, finding in report.findings.items()}
    counts["cut"] = tally.count(tally.CUT) if tally else 0
    unwanted = any(counts[kind] for kind in config.fail_on)
    if any(fault.row is None for fault in (*report.faults, *report.evaluation_faults)):
        return 2
    return 1 if report.faults or report.evaluation_faults or without_room or unwanted or not report.usable else 0


def _tokens(config: CheckConfig, report: DataReport) -> tuple[list[str], Tally | None]:
    """The lines about tokens, and the tally; without a tally, why no row has room for a target."""
    from aligner.demo import locate
    from aligner.encoder import Encoder
    from aligner.models import load_tokenizer, quiet_libraries
    from aligner.training.datasets.mixture import choose_template

    quiet_libraries()
    template = choose_template(config.prompt_template, report.templates)
    encoder = Encoder(load_tokenizer(locate(config.model_name_or_path or "")))
    bar = partial(progress, desc="tokenising", delay=2)
    try:
        lines, tally = examine_tokens(report.records, template, encoder, config.max_length, config.dump, bar)
    except UserError as error:  # no row has room for a target
        return [str(error)], None
    sampled = len(report.records) < report.usable
    return ([f"of a sample of {len(report.records):,} rows (--exact takes all):"] if sampled else []) + lines, tally
