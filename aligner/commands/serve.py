"""`aligner serve`: an OpenAI-compatible server in front of an upstream, which corrects its answers."""

from __future__ import annotations

import argparse
import math
import os

from aligner.commands.shared_flags import add_model_flags
from aligner.records import UserError
from aligner.serving import LOOPBACK

UPSTREAM_KEY = "OPENAI_API_KEY"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Clients change their base URL to http://HOST:PORT/v1. Answers carry one more field, 'aligner', at each choice: what was "
        "done, the original answer, the edit figures. Texts are written nowhere but to --shadow_file."
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the Aligner: an output folder or a hub id")
    add(
        "--upstream_url",
        required=True,
        metavar="URL",
        help="the OpenAI-compatible server in front of which this one stands",
    )
    add("--mode", choices=("always", "gate", "shadow"), default="always",
        help="correct; leave alone what the Aligner would have written itself; only fill --shadow_file (always)")  # fmt: skip
    add("--threshold", type=float, metavar="X", help="of --mode gate: nats a token, as 'aligner calibrate' chooses it")
    add("--shadow_file", metavar="FILE", help="of --mode shadow: JSON lines with question, answer, correction")
    add("--on_failure", choices=("closed", "open"), default="closed",
        help="where the Aligner fails: an error, or the upstream's answer, flagged (closed)")  # fmt: skip
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1: this machine alone)")
    add("--port", type=int, default=8080, metavar="N", help="port to listen on (8080)")
    add("--api_key", metavar="VARIABLE", help="the variable with the key that callers must send (none)")
    add("--upstream_key", default=UPSTREAM_KEY, metavar="VARIABLE",
        help="the variable with the upstream's key, for callers that send none of their own (OPENAI_API_KEY)")  # fmt: skip
    add("--feedback", default="", metavar="TEXT", help="what to mind, for an Aligner whose prompt has a slot for it")
    add("--max_requests", type=int, default=64, metavar="N", help="requests held at once; more get 429 (64)")
    add("--max_prompt_tokens", type=int, default=8192, metavar="N",
        help="longest prompt that the Aligner reads; of a longer dialogue the oldest turns are left out (8192)")  # fmt: skip
    add("--max_request_bytes", type=int, default=1_000_000, metavar="N", help="longest request (1,000,000)")
    add("--upstream_timeout", type=float, default=120, metavar="S", help="seconds for the upstream's answer (120)")
    add("--aligner_timeout", type=float, default=60, metavar="S", help="seconds for a correction (60)")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped; returns the exit status."""
    check(args)
    key = secret(args.api_key) if args.api_key else None
    from aligner.serving.command import serve

    serve(args, key)
    return 0


def check(args: argparse.Namespace) -> None:
    """UserError where flags do not go together."""
    from urllib.parse import urlsplit

    for name in (
        "batch_size",
        "max_new_tokens",
        "max_prompt_tokens",
        "max_requests",
        "max_request_bytes",
        "upstream_timeout",
        "aligner_timeout",
    ):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name} is {getattr(args, name)}: it must be above 0.")
    parts = urlsplit(args.upstream_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--upstream_url {args.upstream_url}: write it as http://HOST:PORT/v1.")
    if parts.username or parts.query or parts.fragment:
        raise UserError(
            f"--upstream_url: the address of {parts.hostname} is http://HOST:PORT/v1 and no more; a key is --upstream_key's."
        )
    if args.upstream_key != UPSTREAM_KEY and not os.environ.get(args.upstream_key):
        raise UserError(f"--upstream_key: {named(args.upstream_key)} is not set.")
    if args.threshold is not None and not math.isfinite(args.threshold):
        raise UserError(
            f"--threshold is {args.threshold}: it is a number of nats a token, as 'aligner calibrate' chooses it."
        )
    if (args.mode == "gate") != (args.threshold is not None):
        raise UserError("--mode gate and --threshold X belong together: 'aligner calibrate' chooses X.")
    if (args.mode == "shadow") != bool(args.shadow_file):
        raise UserError("--mode shadow and --shadow_file FILE belong together.")
    if args.host not in LOOPBACK and not args.api_key:
        raise UserError(f"--host {args.host} can be reached from elsewhere: ask callers for a key, --api_key VARIABLE.")


def secret(variable: str) -> str:
    """The value of a variable that holds a key. UserError where it is not set."""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"--api_key: {named(variable)} is not set. Export it with the key that callers must send.")
    return value


def named(variable: str) -> str:
    """A variable in a message; what cannot be one may be the key itself, and is not repeated."""
    return (
        f"the variable {variable}"
        if variable.isidentifier() and variable.isupper()
        else "what is named is no variable: it"
    )
