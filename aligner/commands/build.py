"""The flags of `aligner build`: from questions to corrections that train an Aligner."""

from __future__ import annotations

import argparse

from aligner.commands.shared_flags import config_from


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Stages: questions, leaks, shares, answers, corrections, people, filter, check; each is a folder of OUTPUT/stages with its "
        "rows, what it dropped and why, and its counts. Run again, the command goes on and asks for nothing that it has. Exit 0: "
        "OUTPUT can be trained on (--train_datasets OUTPUT). Exit 1: people have to look at rows first. Exit 2: it cannot be "
        "carried out, a server is gone, or the cap is reached: what was paid for is kept."
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE.yaml", help="configs/building/ has some to copy")
    add("--output", required=True, metavar="DIR", help="the folder of the build")
    add(
        "--annotations",
        nargs="+",
        default=[],
        metavar="FILE",
        help="what Label Studio or Argilla exported of the files in OUTPUT/people; kept, so that each is given once",
    )
    add("--dry_run", action="store_true", help="questions alone, and what the rest would cost")


def run(args: argparse.Namespace) -> int:
    """Build; returns the exit status."""
    from aligner.building.command import BuildOptions, run_build

    return run_build(config_from(args, BuildOptions))
