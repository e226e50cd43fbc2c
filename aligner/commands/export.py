"""`aligner export`: a resume state as a model folder."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from aligner.console import progress
from aligner.terminal import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "A run keeps its newest resume states (--save_total_limit, 1) in OUTPUT/checkpoints. What this writes opens with "
        "from_pretrained and with every command here; the base model must still be where the run found it."
    )
    add = parser.add_argument
    add("state", metavar="STATE", help="a resume state: RUN/checkpoints/update-N")
    add("--output", required=True, metavar="DIR", help="the model folder to write")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the base model")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    from aligner.models import quiet_libraries
    from aligner.training.checkpoint.export import export_state

    quiet_libraries()
    bar = partial(progress, desc="exporting", unit=" tensors", delay=2)
    update = export_state(Path(args.state), Path(args.output), args.trust_remote_code, bar)
    print_lines(f"the model after update {update:,}: {args.output}")
    return 0
