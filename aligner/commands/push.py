"""`aligner push`: a finished Aligner to the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from aligner.terminal import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Uploaded are the model, its tokenizer, aligner.json (paths shortened to names) and a README.md made out of it: prompt, "
        "base, data with their licences, recipe, and what --evaluation measured. No log, no resume state. Without a token of the "
        "hub it is a dry run."
    )
    add = parser.add_argument
    add("model", metavar="DIR", help="the finished output folder")
    add("repo", metavar="REPO", help="ORG/NAME on the hub")
    add("--evaluation", metavar="DIR", help="a folder of 'aligner evaluate', whose figures go into the README")
    add("--private", action="store_true", help="create the repository as a private one")
    add("--dry_run", action="store_true", help="print what would be uploaded, and stop")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    from aligner.training.checkpoint.push import push

    evaluation = Path(args.evaluation) if args.evaluation else None
    files, text, place = push(Path(args.model), args.repo, evaluation, args.private, args.dry_run)
    print_lines(*text.splitlines(), "", *(f"{size / 1e6:10,.1f} MB  {name}" for name, size in files))
    if place:
        print_lines(f"uploaded: {place}")
    else:
        print_lines(
            "nothing was uploaded" + ("" if args.dry_run else ": there is no token ('hf auth login', or HF_TOKEN)")
        )
    return 0
