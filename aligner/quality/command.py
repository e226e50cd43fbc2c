"""`aligner check`: from its settings to the report, printed, and the exit status."""

from __future__ import annotations

import json
from functools import partial

from aligner.console import progress
from aligner.encoder import Encoder, warn_of_lost_newlines
from aligner.files import refuse_overwriting
from aligner.known_prompts import OF_BASE
from aligner.objectives import read_objectives
from aligner.quality.check import DataReport, examine, examine_tokens
from aligner.quality.config import COUNTED, CheckConfig
from aligner.records import UserError
from aligner.terminal import print_lines
from aligner.training.config import OptimizationConfig
from aligner.training.datasets.mixture import with_sentences
from aligner.training.datasets.options import options_from
from aligner.training.datasets.registry import parse_spec, register_files
from aligner.training.datasets.tally import Tally

SAMPLE = 20_000  # rows that are tokenised where there are more


def check_data(config: CheckConfig) -> int:
    """Check a data set and print the report. Returns 0; 1 where a row is unusable or unwanted; 2 where a file cannot be read."""
    register_files(list(config.register))
    inputs = [parse_spec(text).path for text in (*config.data, *config.eval_datasets)] + list(config.register)
    for output, other in ((config.dump, config.output), (config.output, config.dump)):
        if output:
            refuse_overwriting(output, *inputs, *([other] if other else []))
    options = options_from(config)
    encoder = _encoder(config.model_name_or_path) if config.model_name_or_path else None
    bar = partial(progress, desc="reading", unit=" rows", delay=2)
    kept, prompt = _rows_to_keep(config), config.prompt_template
    report = examine(config.data, options, config.eval_datasets, kept, config.output, prompt, bar)
    lines, tally = _tokens(config, encoder, report) if encoder and report.records else ([], None)
    if config.json:
        print_lines(*json.dumps({**report.as_json(), "tokens": lines}, indent=2).splitlines())
    else:
        print_lines(*report.lines(), *lines)
    return _status(config, report, tally, has_token_lines=bool(lines))


def _rows_to_keep(config: CheckConfig) -> int | None:
    """How many rows are tokenised: none without a tokenizer, a sample, or all (None)."""
    if not config.model_name_or_path:
        return 0
    return None if config.exact or config.needs_all_tokens else SAMPLE


def _status(config: CheckConfig, report: DataReport, tally: Tally | None, has_token_lines: bool) -> int:
    without_room = tally.count(tally.NO_ROOM) if tally else has_token_lines
    counts = {kind: finding.count for kind, finding in report.findings.items()}
    for kind in COUNTED:
        reasons = [reason for reason in tally.places if reason.startswith(f"{kind}:")] if tally else []
        counts[kind] = sum(map(tally.count, reasons)) if tally else 0
    unwanted = any(counts[kind] for kind in config.fail_on)
    if any(fault.row is None for fault in (*report.faults, *report.evaluation_faults)):
        return 2
    return 1 if report.faults or report.evaluation_faults or without_room or unwanted or not report.usable else 0


def _encoder(model: str) -> Encoder:
    """The encoder of a tokenizer, which warns before anything is read."""
    from aligner.demo import locate
    from aligner.models import load_tokenizer, quiet_libraries

    quiet_libraries()
    encoder = Encoder(load_tokenizer(locate(model)))
    warn_of_lost_newlines(encoder)
    return encoder


def _tokens(config: CheckConfig, encoder: Encoder, report: DataReport) -> tuple[list[str], Tally | None]:
    """The lines about tokens, and the tally; without a tally, why no row has room for a target."""
    from aligner.chat_prompt import prompt_of_base
    from aligner.training.datasets.run_prompts import prompts_of

    name = config.prompt_template
    chosen = prompt_of_base(name, encoder.tokenizer) if name and name in OF_BASE else name
    prompts = prompts_of(chosen, report.records)
    bar = partial(progress, desc="tokenising", delay=2)
    try:
        known, seed = read_objectives(config.objectives_file), OptimizationConfig.seed  # a run's by default
        records = [with_sentences(each, prompts.of(each), seed, known) for each in report.records]
        lines, tally = examine_tokens(records, prompts, encoder, config.max_length, config.dump, bar)
    except UserError as error:  # no row has room for a target
        return [str(error)], None
    sampled = len(report.records) < report.usable
    return ([f"of a sample of {len(report.records):,} rows (--exact takes all):"] if sampled else []) + lines, tally
