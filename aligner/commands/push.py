"""`aligner push`: a finished Aligner, or a finished build, to the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from aligner.records import UserError
from aligner.terminal import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Uploaded are the model, its tokenizer, aligner.json (paths shortened to names) and a README.md made out of it: prompt, "
        "base, data with their licences, recipe, and what --evaluation measured. No log, no resume state. Without a token of the "
        "hub it is a dry run. Of a folder of 'aligner build' uploaded are, as a data set, its rows, its card and what was kept."
    )
    add = parser.add_argument
    add("model", metavar="DIR", help="the finished output folder, of a training or of a build")
    add("repo", metavar="REPO", help="ORG/NAME on the hub")
    add("--evaluation", metavar="DIR", help="a folder of 'aligner evaluate', whose figures go into the README")
    add("--private", action="store_true", help="create the repository as a private one")
    add("--dry_run", action="store_true", help="print what would be uploaded, and stop")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    from aligner.building.push import is_build, push_build
    from aligner.training.checkpoint.push import push

    folder, evaluation = Path(args.model), Path(args.evaluation) if args.evaluation else None
    if is_build(folder):
        if evaluation:
            raise UserError(f"--evaluation is of an Aligner, and {folder} is a build: leave it out.")
        files, text, place = push_build(folder, args.repo, args.private, args.dry_run)
    else:
        files, text, place = push(folder, args.repo, evaluation, args.private, args.dry_run)
    print_lines(*text.splitlines(), "", *(f"{size / 1e6:10,.1f} MB  {name}" for name, size in files))
    if place:
        print_lines(f"uploaded: {place}")
    else:
        print_lines(
            "nothing was uploaded" + ("" if args.dry_run else ": there is no token ('hf auth login', or HF_TOKEN)")
        )
    return 0
