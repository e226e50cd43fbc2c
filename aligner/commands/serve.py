"""The flags of `aligner serve`: an OpenAI-compatible server in front of an upstream, which corrects its answers."""

from __future__ import annotations

import argparse

from aligner.commands.shared_flags import add_guard_flags, add_model_flags, add_steer_flags, config_from
from aligner.terminal import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Clients change their base URL to http://HOST:PORT/v1. Answers carry one more field, 'aligner', at each choice: what was "
        "done, the original answer, the edit figures. Texts are written nowhere but to --shadow_file."
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", default="", metavar="DIR", help="the Aligner: an output folder or a hub id")
    which.add_argument(
        "--route", metavar="FILE", help="a routes.yaml: which of several corrects, by the question (aligner route)"
    )
    add(
        "--upstream_url",
        required=True,
        metavar="URL",
        help="the OpenAI-compatible server in front of which this one stands",
    )
    add_mode_flags(parser)
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1: this machine alone)")
    add("--port", type=int, default=8080, metavar="N", help="port to listen on (8080)")
    add("--api_key", metavar="VARIABLE", help="the variable with the key that callers must send (none)")
    add(
        "--upstream_key",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="the variable with the upstream's key, for callers that send none of their own (OPENAI_API_KEY)",
    )
    add(
        "--feedback",
        default="",
        metavar="TEXT",
        help="instruction for corrections, where the Aligner's prompt has a slot for it",
    )
    add_served_flags(parser)
    add_upstream_flags(parser)
    add_guard_flags(parser)
    add_limit_flags(parser)
    add_model_flags(parser)
    add_steer_flags(parser)


def add_mode_flags(parser: argparse.ArgumentParser) -> None:
    """What happens to an answer."""
    add = parser.add_argument
    add(
        "--mode",
        choices=("always", "gate", "shadow"),
        default="always",
        help="correct; leave unchanged what the Aligner would have written itself; only fill --shadow_file (always)",
    )
    add("--threshold", type=float, metavar="X", help="of --mode gate: nats a token, as 'aligner calibrate' chooses it")
    add("--shadow_file", metavar="FILE", help="of --mode shadow: JSON lines with question, answer, correction")
    add(
        "--on_failure",
        choices=("closed", "open"),
        default="closed",
        help="where the Aligner fails: an error, or the upstream's answer, flagged (closed)",
    )
    add(
        "--sentences",
        action="store_true",
        help="upstream and Aligner in turns: each sentence is sent corrected while the upstream speaks (an Aligner trained so)",
    )
    add(
        "--upstream_folder",
        metavar="DIR",
        help="of --sentences: the upstream's folder or hub id, for its chat template, if the server has no continue_final_message",
    )


def add_served_flags(parser: argparse.ArgumentParser) -> None:
    """An Aligner that other servers have."""
    add = parser.add_argument
    add(
        "--aligner_url",
        nargs="+",
        default=(),
        metavar="URL",
        help="OpenAI-compatible servers that have the Aligner (vllm serve DIR); --model gives its prompt and tokenizer (here)",
    )
    add("--aligner_model", metavar="NAME", help="its name at --aligner_url (--model)")
    add(
        "--aligner_key",
        default="ALIGNER_API_KEY",
        metavar="VARIABLE",
        help="the variable with the key of --aligner_url (ALIGNER_API_KEY)",
    )
    add("--workers", type=int, default=1, metavar="N", help="processes of this server, with --aligner_url (1)")


def add_upstream_flags(parser: argparse.ArgumentParser) -> None:
    """What else goes to the upstream: routes and headers."""
    add = parser.add_argument
    add("--pass_through", action="store_true", help="pass on every other route of /v1/ as it is (otherwise 404)")
    add(
        "--guardrail",
        action="store_true",
        help="take the calls of LiteLLM's generic guardrail API too (README of serving)",
    )
    add("--pass_headers", nargs="+", metavar="NAME", help="headers of callers that the upstream gets too (traceparent)")
    add(
        "--upstream_header",
        action="append",
        metavar="'NAME: VALUE'",
        help="a header that the upstream always gets; may be given several times",
    )


def add_limit_flags(parser: argparse.ArgumentParser) -> None:
    """How much the server takes on, and how long it waits."""
    add = parser.add_argument
    add(
        "--max_requests",
        type=int,
        default=64,
        metavar="N",
        help="requests held at once by a process; more get 429 (64)",
    )
    add(
        "--max_prompt_tokens",
        type=int,
        default=8192,
        metavar="N",
        help="longest prompt that the Aligner reads; of a longer dialogue the oldest turns are left out (8192)",
    )
    add("--max_request_bytes", type=int, default=1_000_000, metavar="N", help="longest request (1,000,000)")
    add(
        "--max_characters",
        type=int,
        default=100_000,
        metavar="N",
        help="longest question with its answer that is looked at (100,000)",
    )
    add("--metrics", action="store_true", help="serve counts at /metrics in Prometheus' text form; no text of anybody")
    add("--access_log", metavar="FILE", help="JSON lines, one a request: route, status, seconds, bytes; no text (none)")
    add("--upstream_timeout", type=float, default=120, metavar="S", help="seconds for the upstream's answer (120)")
    add("--aligner_timeout", type=float, default=60, metavar="S", help="seconds for a correction (60)")


def run(args: argparse.Namespace) -> int:
    """Serve until stopped; returns the exit status."""
    from aligner.serving.config import ServeConfig

    config = config_from(args, ServeConfig)
    where = config.upstream_url.partition("?")[0]  # a query may hold a key
    print_lines(
        f"loading the Aligner {config.route or config.model} to stand in front of {where} (mode {config.mode}), which takes seconds"
    )
    from aligner.serving.processes import serve  # torch, for which a misspelt flag need not wait

    serve(config)
    return 0
