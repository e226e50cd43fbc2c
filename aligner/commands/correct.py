"""The flags of `aligner correct`."""

from __future__ import annotations

import argparse

from aligner.commands.pipes import PIPE, piped_files
from aligner.commands.shared_flags import (
    add_column_flag,
    add_guard_flags,
    add_model_flags,
    add_server_flags,
    add_steer_flags,
    config_from,
)
from aligner.objectives import split_objectives
from aligner.records import UserError
from aligner.steering.options import SteerOptions


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Killed or stopped, the same command continues where it was. Exit 0: every row was corrected. Exit 1: the rows named could "
        "not be, the others were. Exit 2: the command cannot be carried out, or a server is gone."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR", help="an Aligner: an output folder or a hub id")
    which.add_argument(
        "--stack", nargs="+", metavar="DIR", help="several, each correcting the output of the one before it"
    )
    which.add_argument(
        "--route", metavar="FILE", help="a routes.yaml: which of several corrects, by the question (aligner route)"
    )
    add = parser.add_argument
    add_file_flags(parser)
    instruction = parser.add_mutually_exclusive_group()
    instruction.add_argument(
        "--objectives",
        type=split_objectives,
        default=(),
        metavar="NAME,NAME",
        help="what corrections are to mind, for rows that say nothing: names of the Aligner's card (configs/objectives.yaml), "
        "or a sentence",
    )
    instruction.add_argument("--feedback", metavar="TEXT", help="the same as a text of your own")
    add("--sample", action="store_true", help="draw tokens as the paper did (temperature 0.3, top-k 10, top-p 0.95)")
    add("--seed", type=int, default=42, metavar="N", help="of --sample (42)")
    add_guard_flags(parser)
    add(
        "--nats_ahead",
        type=float,
        metavar="NATS",
        help="leave an answer alone unless its correction is so much likelier under the Aligner, in nats ('nats_ahead' of each row "
        "says how much; not weighed)",
    )
    add_served_flags(parser)
    add_cluster_flags(parser)
    add_server_flags(parser)
    add_model_flags(parser)
    add_steer_flags(parser)


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """What is corrected: one answer, or a file of them, and how often."""
    add = parser.add_argument
    add("--question", metavar="TEXT", help="with --answer: correct this one answer and show the diff; no files")
    add("--answer", metavar="TEXT", help="the answer to --question")
    add(
        "--input",
        metavar="FILE",
        help="rows with question and answer (JSON, JSON lines, CSV, TSV, Parquet); - is standard input",
    )
    add(
        "--output",
        metavar="FILE",
        help="JSON lines: each row with 'corrected', 'finished' and 'edits' ('passes', 'route'), or 'error'; -: standard output",
    )
    add_column_flag(parser, "question, answer, feedback")
    add(
        "--questions",
        metavar="FILE",
        help="of MT-Bench's answers: question.jsonl (beside them, or one folder above)",
    )
    add("--retry_failed", action="store_true", help="correct again the rows of --output that failed, and no others")
    add("--passes", "--rounds", type=int, default=1, metavar="N", help="feed corrections back in, N times in all (1)")


def add_served_flags(parser: argparse.ArgumentParser) -> None:
    """The models that stand behind servers: the Aligner, and the upstream that answers."""
    add = parser.add_argument
    add(
        "--aligner_url",
        nargs="+",
        default=(),
        metavar="URL",
        help="address of a served Aligner (several with --engine ray); --model gives its prompt and tokenizer",
    )
    add("--aligner_model", metavar="NAME", help="its name there (the value of --model)")
    add("--upstream_url", metavar="URL", help="an OpenAI-compatible server that generates the answers that rows lack")
    add("--upstream_model", metavar="NAME", help="the name of the model there")
    add(
        "--sentences",
        action="store_true",
        help="upstream and Aligner in turns: each sentence is corrected before the next is written (an Aligner trained so)",
    )
    add(
        "--upstream_folder",
        metavar="DIR",
        help="of --sentences: the upstream, a model here; beside --upstream_url its chat template, for that server's completions",
    )
    add(
        "--upstream_max_tokens",
        type=int,
        metavar="N",
        help="longest answer in tokens (the server's; with --sentences 1024)",
    )
    add("--upstream_temperature", type=float, metavar="X", help="of the answers (the server's)")
    add(
        "--upstream_key",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="the variable with the upstream's key (OPENAI_API_KEY)",
    )
    add(
        "--aligner_key",
        default="ALIGNER_API_KEY",
        metavar="VARIABLE",
        help="the variable with the served Aligner's key (ALIGNER_API_KEY)",
    )


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """More than one machine."""
    add = parser.add_argument
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: the workers of a Ray cluster correct (RAY_ADDRESS; without one it is started here), each with an Aligner of its "
        "own; input, output and model lie where all of them see them (local)",
    )
    add("--workers", type=int, metavar="N", help="of --engine ray (one a GPU, or without GPUs one a machine)")
    add("--shard_rows", type=int, metavar="N", help="of --engine ray: rows that a worker takes at a time (1000)")


def run(args: argparse.Namespace) -> int:
    """Do it: one answer, or a file; returns the exit status."""
    if args.question is not None or args.answer is not None:
        return run_one(args)
    for name in ("input", "output"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing. For one answer give --question and --answer instead.")
    if args.engine == "ray" and PIPE in (args.input, args.output):
        raise UserError("--engine ray reads and writes files that all workers see: name some in place of '-'.")
    with piped_files(args.input, args.output) as (args.input, args.output):
        return run_file(args)


def run_one(args: argparse.Namespace) -> int:
    """Correct one answer and show it."""
    from aligner.inference.one_answer import show_one_correction

    if args.question is None or args.answer is None:
        raise UserError("--question and --answer belong together: give both.")
    for name in (
        "engine",
        "input",
        "output",
        "stack",
        "aligner_url",
        "upstream_url",
        "keep_unfinished",
        "scripts",
        "nats_ahead",
        "questions",
        "retry_failed",
        "workers",
        "shard_rows",
        "sentences",
        "upstream_folder",
    ):
        if getattr(args, name) not in (None, False, (), "local"):
            raise UserError(f"--{name} is for files of answers: leave it out, or --question and --answer.")
    options = args.prompt_template, args.max_new_tokens, args.dtype, args.trust_remote_code
    wanted = args.feedback, args.objectives
    steer = config_from(args, SteerOptions)
    show_one_correction(args.model, args.route, args.question, args.answer, *wanted, *options, steer)
    return 0


def run_file(args: argparse.Namespace) -> int:
    """Correct a file."""
    from aligner.inference.config import CorrectConfig

    config = config_from(args, CorrectConfig)
    if config.cluster.engine == "ray":
        from aligner.inference.cluster import correct_on_cluster

        return correct_on_cluster(config)
    from aligner.inference.command import correct  # torch, for which a misspelt flag need not wait

    return correct(config)
