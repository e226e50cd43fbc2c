"""`aligner plan`: what a run needs, before it costs anything."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aligner.records import UserError
from aligner.terminal import print_lines

if TYPE_CHECKING:
    from aligner.training.planning.report import PlanRequest


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "All flags of training are understood, --config above all; --gpus counts the GPUs of all nodes. Rows and tokens are "
        "counted in --train_datasets where that is given. Nothing is downloaded for the paper's base models, but the "
        "tokenizer where data are given. "
        "Exit 1: it does not fit."
    )
    add = parser.add_argument
    add("--gpu_memory", type=float, default=80, metavar="GB", help="memory of one GPU in GB (80)")
    add("--cpu_memory", type=float, metavar="GB", help="CPU memory of one node in GB (not checked)")
    add("--gpus_per_node", type=int, default=8, metavar="N", help="GPUs of one node (8)")
    add("--rows", type=int, default=50_000, metavar="N", help="records, where no data are given (50,000, the paper's)")
    add(
        "--tokens_per_row",
        type=float,
        metavar="X",
        help="mean tokens of a record, where no data are given (max_length)",
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--tokens_per_second", type=float, metavar="X", help="throughput of all GPUs together")
    speed.add_argument("--tflops", type=float, metavar="X", help="TFLOP/s that one GPU really does")
    speed.add_argument("--measured", metavar="DIR", help="an output folder: the throughput in its train_log.jsonl")
    add(
        "--upstream",
        type=float,
        nargs="+",
        metavar="B",
        help="show the paper's resource claim for upstreams of these sizes",
    )

    add(
        "--rounds",
        type=int,
        metavar="N",
        help="plan 'aligner rounds': the model is the upstream, --rows its questions",
    )
    add("--aligner", metavar="NAME", help="of --rounds: the Aligner, or a model of its size")
    add("--question_tokens", type=float, default=100, metavar="X", help="of --rounds: mean of a question (100)")
    add("--answer_tokens", type=float, default=300, metavar="X", help="of --rounds: mean of an answer (300)")
    add("--decoding", type=float, metavar="X", help="of --rounds: tokens a second that all GPUs together write")
    add("--batch_size", type=int, default=8, metavar="N", help="of --rounds: texts decoded at once (8)")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    from aligner.models import quiet_libraries
    from aligner.training.planning.report import PlanRequest, report

    quiet_libraries()
    known = {field: getattr(args, field) for field in PlanRequest.__dataclass_fields__}
    if args.rounds is not None:
        lines, fits = _plan_rounds(args, PlanRequest(**known))
    else:
        lines, fits = report(args.rest, PlanRequest(**known))
    print_lines(*lines)
    return 0 if fits else 1


def _plan_rounds(args: argparse.Namespace, request: PlanRequest) -> tuple[list[str], bool]:
    from aligner.rounds.plan import RoundsRequest, rounds_report

    if not args.aligner:
        raise UserError("--rounds needs --aligner NAME, whose size counts.")
    return rounds_report(
        args.rest, request, RoundsRequest(**{name: getattr(args, name) for name in RoundsRequest.__dataclass_fields__})
    )
