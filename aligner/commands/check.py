"""`aligner check`: what cannot be used of a data set, and why."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING

from aligner.console import progress
from aligner.files import refuse_overwriting
from aligner.records import UserError

if TYPE_CHECKING:
    from aligner.quality.check import Report
    from aligner.training.datasets.supervised import Tally


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    from aligner.quality.suspicions import KINDS

    parser.epilog = (
        "Exit 0: every row can be used. Exit 1: one cannot (of the data, or of --eval_datasets), none is left, with a tokenizer "
        "one has no room for a target, or something named by --fail_on was found. Exit 2: the command cannot be carried out, or "
        "a file not read. Suspicious rows are counted with examples: "
        f"{', '.join(KINDS)}; 'cut' with a tokenizer."
    )
    add = parser.add_argument
    add("data", nargs="+", metavar="PATH|SPEC", help="files, or specs NAME[:PROPORTION[:PATH]]")
    add("--eval_datasets", nargs="+", default=[], metavar="PATH|SPEC", help="look for their questions in the data")
    add("--register", nargs="+", default=[], metavar="FILE.py", help="Python files that register data sets")
    add("--columns", nargs="+", default=[], metavar="FIELD=NAME,...", help="fields called otherwise")
    add("--prefer", choices=("better", "safer"), help="which judgement of pku-saferlhf decides")
    add("--multi_turn", action="store_true", help="take hh-rlhf's dialogues of several turns")
    add("--model_name_or_path", metavar="TOK", help="tokenizer for lengths and --dump ('embedded' works)")
    add("--max_length", type=int, default=2048, metavar="N", help="tokens a row may have (2048)")
    add("--prompt_template", metavar="NAME", help="a known prompt or a YAML file")
    add("--exact", action="store_true", help="tokenise all rows, not a sample of 20,000")
    add("--dump", metavar="FILE", help="write row, input_ids and labels of every kept row as JSON lines")
    add("--output", metavar="FILE", help="write the usable rows as JSON lines")
    add("--json", action="store_true", help="print the report as JSON, with every unusable row")
    add("--fail_on", nargs="+", default=[], choices=[*KINDS, "cut"], metavar="KIND", help="kinds that make the exit 1")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    from aligner.quality.check import SAMPLE, examine
    from aligner.training.datasets.options import Options
    from aligner.training.datasets.registry import parse_spec, register_files

    if (args.dump or "cut" in args.fail_on) and not args.model_name_or_path:
        raise UserError("--dump and --fail_on cut need a tokenizer: --model_name_or_path TOK.")
    if {"overlap", "near-overlap"} & set(args.fail_on) and not args.eval_datasets:
        raise UserError("--fail_on overlap needs --eval_datasets PATH.")
    register_files(args.register)
    read = [parse_spec(text).path for text in (*args.data, *args.eval_datasets)] + args.register
    for output, other in ((args.dump, args.output), (args.output, args.dump)):
        if output:
            refuse_overwriting(output, *read, *([other] if other else []))
    options = Options(tuple(args.columns), args.prefer, args.multi_turn)
    keep = 0 if not args.model_name_or_path else None if args.exact or args.dump or "cut" in args.fail_on else SAMPLE
    bar = partial(progress, desc="reading", unit=" rows", delay=2)
    report = examine(args.data, options, args.eval_datasets, keep, args.output, bar)
    lines, tally = _tokens(args, report) if report.records else ([], None)
    said = {**report.as_json(), "tokens": lines} if args.json else None
    print(json.dumps(said, indent=2) if said else "\n".join([*report.lines(), *lines]))
    without_room = tally.count(tally.NO_ROOM) if tally else bool(lines)
    counted = {kind: finding.count for kind, finding in report.found.items()} | {
        "cut": tally.count(tally.CUT) if tally else 0
    }
    unwanted = any(counted[kind] for kind in args.fail_on)
    if any(fault.row is None for fault in (*report.faults, *report.evaluation_faults)):
        return 2
    return 1 if report.faults or report.evaluation_faults or without_room or unwanted or not report.usable else 0


def _tokens(args: argparse.Namespace, report: Report) -> tuple[list[str], Tally | None]:
    from aligner.demo import locate
    from aligner.encoder import Encoder
    from aligner.models import load_tokenizer, quiet_libraries
    from aligner.quality.check import examine_tokens
    from aligner.training.datasets.mixture import choose_template

    quiet_libraries()
    template = choose_template(args.prompt_template, report.templates)
    encoder = Encoder(load_tokenizer(locate(args.model_name_or_path)))
    bar = partial(progress, desc="tokenising", delay=2)
    try:
        lines, tally = examine_tokens(report.records, template, encoder, args.max_length, args.dump, bar)
    except UserError as error:  # no row has room for a target
        return [str(error)], None
    sampled = len(report.records) < report.usable
    return ([f"of a sample of {len(report.records):,} rows (--exact takes all):"] if sampled else []) + lines, tally
