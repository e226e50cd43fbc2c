"""`aligner calibrate`: the threshold of `aligner serve --mode gate`, chosen on a file."""

from __future__ import annotations

import argparse

from aligner.commands.shared_flags import add_model_flags
from aligner.files import refuse_overwriting
from aligner.records import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "The gate leaves an answer alone when its mean log-probability under the Aligner is at least the threshold. Each answer of "
        "the file is corrected and rated; of the thresholds that leave at most --missed of the changes undone, the one that "
        "leaves most answers alone is chosen."
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the Aligner: an output folder or a hub id")
    add(
        "--input",
        required=True,
        metavar="FILE",
        help="at least 20 rows with question and answer, as the upstream would give them",
    )
    add("--output", default="gate.png", metavar="FILE", help="the picture (gate.png)")
    add("--missed", type=float, default=0.05, metavar="X", help="share of the changes that may be left undone (0.05)")
    add("--rows", type=int, default=1000, metavar="N", help="rows to use at most, the first ones (1000)")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    if not 0 <= args.missed <= 1:
        raise UserError(f"--missed is {args.missed}: it is a share, 0 to 1.")
    for name in ("batch_size", "max_new_tokens", "rows"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}: it must be at least 1.")
    refuse_overwriting(args.output, args.input)
    from aligner.serving.command import calibrate

    print(*calibrate(args), sep="\n")
    return 0
