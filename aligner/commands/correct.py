"""`aligner correct`: its flags, and what is said at the end."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from aligner.commands.shared_flags import add_model_flags, add_server_flags
from aligner.console import progress
from aligner.files import refuse_overwriting
from aligner.records import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    from aligner.prompts import FEEDBACKS

    parser.epilog = (
        "Killed or stopped, the same command goes on where it was. Exit 0: every row was corrected. Exit 1: the rows named could "
        "not be, the others were. Exit 2: the command cannot be carried out, or a server is gone."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR", help="an Aligner: an output folder or a hub id")
    which.add_argument("--stack", nargs="+", metavar="DIR", help="several, each correcting what the one before it made")
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="rows with question and answer (JSON lines, JSON, Parquet)")
    add(
        "--output",
        required=True,
        metavar="FILE",
        help="JSON lines: each row with 'corrected', 'finished' and 'edits' ('passes' of several), or 'error'",
    )
    add("--rounds", type=int, default=1, metavar="N", help="feed corrections back in, so many times in all (1)")
    add(
        "--feedback",
        metavar="TEXT",
        help=f"what to mind, for rows that do not say: {', '.join(FEEDBACKS)}, or any text",
    )
    add("--sample", action="store_true", help="draw tokens as the paper did (temperature 0.3, top-k 10, top-p 0.95)")
    add("--seed", type=int, default=42, metavar="N", help="of --sample (42)")
    add("--aligner_url", metavar="URL", help="the Aligner is served there; --model says its prompt and tokenizer")
    add("--aligner_model", metavar="NAME", help="its name there (what --model says)")
    add("--upstream_url", metavar="URL", help="an OpenAI-compatible server to ask for the answers that rows lack")
    add("--upstream_model", metavar="NAME", help="the model to ask there")
    add("--upstream_max_tokens", type=int, metavar="N", help="longest answer in tokens (the server's)")
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
    add_server_flags(parser)
    add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    from aligner.inference.command import drift_lines, work_of
    from aligner.inference.correct_file import correct_file
    from aligner.inference.servers import ServerGone
    from aligner.models import quiet_libraries

    quiet_libraries()
    for name in ("batch_size", "max_new_tokens", "rounds", "concurrency"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}: it must be at least 1.")
    refuse_overwriting(args.output, args.input)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is Ctrl-C
    work, journal = work_of(args), Path(f"{args.output}.journal")
    try:
        report = correct_file(work, partial(progress, unit=" rows"))
    except (KeyboardInterrupt, OSError, ServerGone):
        if journal.exists():
            print(f"what was done is kept in {journal}: the same command goes on", file=sys.stderr)
        raise
    for fault in report.faults:
        print(f"error: {fault}", file=sys.stderr)
    asked = f" ({report.asked:,} were asked for)" if report.asked else ""
    print(f"{report.corrected:,} of {report.rows:,} answers corrected{asked}: {args.output}")
    if report.cut:
        print(f"{report.cut:,} answers were cut off at the upstream's limit ('answer_finished' says which)")
    if report.empty:
        print(f"{report.empty:,} corrections are empty: the Aligner ended at once. Do not put it in front of people")
    if report.unfinished:
        print(
            f"{report.unfinished:,} of them did not end within {args.max_new_tokens:,} tokens (or the model's) and were cut off"
        )
    if report.unread:
        print(f"{report.unread:,} rows have feedback, which the Aligner's prompt has no slot for: it was not read")
    for line in drift_lines(report.drift):
        print(line)
    return 1 if report.faults else 0
