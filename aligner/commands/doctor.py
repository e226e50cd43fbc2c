"""`aligner doctor`: what this machine and the run's hosts have, before a GPU hour is spent."""

from __future__ import annotations

import argparse
import json

from aligner.terminal import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "All flags of training are understood: --output_dir and the model say what room is needed, --hostfile which hosts are "
        "looked at as well (in a Slurm job its nodes). Exit 1: a line is bad, and a run would end."
    )
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON for a bug report; it holds no key and no environment"
    )
    parser.add_argument("--this_host", action="store_true", help="leave other hosts out")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    from aligner.launch.doctor import diagnose, screen, without_hostfile, worst
    from aligner.models import quiet_libraries

    quiet_libraries()
    reports = diagnose(without_hostfile(args.rest) if args.this_host else args.rest)[: 1 if args.this_host else None]
    print_lines(*([json.dumps(reports)] if args.json else screen(reports)))
    return 1 if worst(reports) == "bad" else 0
