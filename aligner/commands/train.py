"""`aligner train`: the program and the flags of `bash scripts/sft-correction.sh`, also from an installed package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_flags(parser: argparse.ArgumentParser) -> None:
    """None of its own: training reads its flags itself, from dataclasses (see `run_flags`)."""
    parser.add_help = False


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    return run_flags(args.rest)


def run_flags(flags: Sequence[str]) -> int:
    """Train with these flags, --help among them; returns the exit status."""
    from aligner.launch.launch import main

    return main(flags, "aligner train")
