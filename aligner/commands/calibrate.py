"""The flags of `aligner calibrate`: the threshold of `aligner serve --mode gate`, chosen on a file."""

from __future__ import annotations

import argparse

from aligner.commands.shared_flags import add_column_flag, add_model_flags, config_from
from aligner.terminal import print_lines


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
    add_column_flag(parser, "question, answer")
    add("--output", default="gate.png", metavar="FILE", help="the picture (gate.png)")
    add("--missed", type=float, default=0.05, metavar="X", help="share of the changes that may be left undone (0.05)")
    add("--rows", type=int, default=1000, metavar="N", help="rows to use at most, the first ones (1000)")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Choose and print; returns the exit status."""
    from aligner.serving.config import CalibrateConfig

    config = config_from(args, CalibrateConfig)
    from aligner.serving.command import calibrate  # torch, for which a misspelt flag need not wait

    print_lines(*calibrate(config))
    return 0
