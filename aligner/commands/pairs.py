"""The flags of `aligner pairs`: corrected files -> rows that train the upstream itself."""

from __future__ import annotations

import argparse

from aligner.commands.shared_flags import add_column_flag, add_edit_filter_flags, config_from
from aligner.rounds.filters import WANTED
from aligner.rounds.training_rows import FORMS
from aligner.terminal import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Writes supervised.jsonl (the corrections), preference.jsonl (the correction before the answer), dropped.jsonl (file, row, "
        "reason) and pairs.json (counts, filters, sources). An unchanged answer is a supervised row and no preference."
    )
    add = parser.add_argument
    add("after", nargs="+", metavar="FILE", help="files as 'aligner correct' writes them")
    add("--output", required=True, metavar="DIR", help="the folder to write")
    add(
        "--form",
        choices=tuple(FORMS),
        default="trl",
        help="whose rows: TRL's conversations, LLaMA-Factory's alpaca with its dataset_info.json, or this project's (trl)",
    )
    add_column_flag(parser, "question, answer, correction")
    add_edit_filter_flags(parser)
    add("--verdicts", metavar="FILE", help="verdicts.jsonl of 'aligner evaluate': keep what a judge or reward found")
    add("--wanted", choices=WANTED, default=WANTED[0], help="the verdict to keep (better)")
    add("--dimensions", nargs="+", default=(), metavar="NAME", help="of --verdicts: those that count (all)")
    add("--aligner", metavar="DIR", help="what corrected the answers: its name and its prompt's stand in every row")
    add("--round", type=int, metavar="N", help="number of the round, to stand in every row")


def run(args: argparse.Namespace) -> int:
    """Write the folder and print the counts; returns the exit status."""
    from aligner.rounds.pairs import PairsConfig, write_training_pairs

    counts = write_training_pairs(config_from(args, PairsConfig)).counts()
    print_lines(
        f"{counts['rows']:,} corrected answers: {counts['supervised']:,} supervised rows, {counts['preference']:,} preferences",
        *(f"  {each['rows']:,} not in {each['from']}: {each['reason']}" for each in counts["dropped"]),
        f"written: {args.output}",
    )
    return 0
