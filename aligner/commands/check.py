"""The flags of `aligner check`: which rows of a data set cannot be used, and why."""

from __future__ import annotations

import argparse

from aligner.commands.shared_flags import config_from
from aligner.objectives import FILE


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    from aligner.quality.config import COUNTED
    from aligner.quality.suspicions import KINDS
    from aligner.training.datasets.formats import FORMATS

    parser.epilog = (
        "Exit 0: every row can be used. Exit 1: one cannot (of the data, or of --eval_datasets), none is left, with a tokenizer "
        "one has no room for a target, or something named by --fail_on was found. Exit 2: the command cannot be carried out, or "
        "a file not read. Suspicious rows are counted with examples: "
        f"{', '.join(KINDS)}; 'cut' and 'unspellable' with a tokenizer."
    )
    add = parser.add_argument
    add("data", nargs="+", metavar="PATH|SPEC", help="files, or specs NAME[:PROPORTION[:PATH]]")
    add("--eval_datasets", nargs="+", default=[], metavar="PATH|SPEC", help="look for their questions in the data")
    add("--register", nargs="+", default=[], metavar="FILE.py", help="Python files that register data sets")
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="FIELD=NAME,...",
        help="fields called otherwise: question, answer, correction, feedback",
    )
    add("--prefer", choices=("better", "safer"), help="which judgement of pku-saferlhf decides")
    add("--format", choices=FORMATS, help="what the rows of bare paths are (found out)")
    add("--sentences", action="store_true", help="as records for the sentences of the answers")
    add("--multi_turn", action="store_true", help="take dialogues of several turns")
    add("--pairs", choices=("both", "majority"), help="of rated answers: both directions, or that with more objectives")
    add(
        "--margin", type=float, metavar="X", help="of rated answers: the least difference of a rating that counts (any)"
    )
    add("--pairs_per_question", type=int, metavar="N", help="of rated answers: most pairs of a question's (6)")
    add("--damage", metavar="KINDS", help="kinds of damage of restoration, comma-separated (all)")
    add("--hold_back", metavar="WHAT", help="of restoration, left out: 'phrases' and whole kinds")
    add(
        "--objectives_file",
        default=FILE,
        metavar="FILE",
        help=f"the sentence of each objective that rows name ({FILE})",
    )
    add("--model_name_or_path", metavar="TOK", help="tokenizer for lengths and --dump ('embedded' works)")
    add("--max_length", type=int, default=2048, metavar="N", help="tokens a row may have (2048)")
    add("--prompt_template", metavar="NAME", help="a known prompt, chat, or a YAML file")
    add("--exact", action="store_true", help="tokenise all rows, not a sample of 20,000")
    add("--dump", metavar="FILE", help="write row, input_ids and labels of every kept row as JSON lines")
    add("--output", metavar="FILE", help="write the usable rows as JSON lines")
    add("--json", action="store_true", help="print the report as JSON, with every unusable row")
    add(
        "--fail_on",
        nargs="+",
        default=[],
        choices=[*KINDS, *COUNTED],
        metavar="KIND",
        help="kinds that make the exit 1",
    )


def run(args: argparse.Namespace) -> int:
    """Check; returns the exit status."""
    from aligner.quality.config import CheckConfig

    config = config_from(args, CheckConfig)
    from aligner.quality.command import check_data  # torch, for which a misspelt flag need not wait

    return check_data(config)
