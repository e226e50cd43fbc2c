"""What the flags of `aligner serve` and `aligner calibrate` ask for."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

import uvicorn

from aligner.console import progress, speak
from aligner.demo import locate
from aligner.inference.correct_file import read_items
from aligner.inference.corrector import Corrected, Corrector, Request, Settings, check_feedback
from aligner.models import check_place, quiet_libraries
from aligner.plots import draw_gate
from aligner.prompts import FEEDBACKS
from aligner.records import UserError
from aligner.serving.app import Limits, application
from aligner.serving.exchange import Exchange, Policy
from aligner.serving.gate import choose, confidence, curve, table
from aligner.serving.shadow import ShadowLog
from aligner.serving.upstream import Upstream
from aligner.serving.worker import Worker

FEWEST = 20  # answers that a threshold is chosen on


def serve(args: argparse.Namespace, key: str | None) -> None:
    """Serve until stopped; `key` is what callers must send."""
    with listening(args.host, args.port) as place:  # before the model is loaded: a port in use is known at once
        limits = Limits(key, args.max_request_bytes, args.max_requests)
        app = application(exchange_of(args), limits)
        patience = int(args.upstream_timeout + args.aligner_timeout) + 5  # what is under way at a stop is answered
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=patience
        )
        print(
            f"aligner serves at http://{args.host}:{place.getsockname()[1]}/v1 (and / to look at); Ctrl-C stops it",
            flush=True,
        )
        uvicorn.Server(config).run(sockets=[place])


def exchange_of(args: argparse.Namespace) -> Exchange:
    """The Aligner, its upstream and what is done with answers."""
    shadow = ShadowLog(args.shadow_file) if args.shadow_file else None
    name, corrector = opened(args, args.max_prompt_tokens)
    feedback = FEEDBACKS.get(args.feedback, args.feedback)
    check_feedback(corrector.template, [Request("", "", feedback)])
    key, largest = os.environ.get(args.upstream_key), 10 * args.max_request_bytes
    upstream = Upstream(args.upstream_url, key, args.upstream_timeout, largest)
    policy = Policy(args.mode, args.threshold, args.on_failure, feedback, args.aligner_timeout)
    return Exchange(name, upstream, Worker(corrector), policy, shadow)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. UserError where it cannot."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}. Name another."
        ) from None


def calibrate(args: argparse.Namespace) -> list[str]:
    """Correct the answers of a file, ask for the Aligner's confidence in each, draw what every threshold would do, and choose."""
    items = [item for item in read_items(args.input, may_ask=False) if not item.fault][: args.rows]
    if len(items) < FEWEST:
        raise UserError(
            f"{args.input}: {len(items):,} usable rows, of --rows {args.rows:,} at most; a threshold needs at least {FEWEST}."
        )
    _, corrector = opened(args)
    requests = [Request(item.fields["question"], item.fields["answer"]) for item in items]
    made = dict(progress(corrector.stream(requests), total=len(requests), desc="correcting", unit=" rows"))
    kept = [place for place, outcome in sorted(made.items()) if isinstance(outcome, Corrected)]
    prompts = [corrector.template.render(*requests[place]) for place in kept]
    pairs = corrector.encoder.pairs(prompts, [requests[place].answer for place in kept])
    values = [
        confidence(corrector.model, prompt, answer)
        for prompt, answer, _ in progress(pairs, desc="asking for confidence", unit=" rows")
    ]
    points = curve(values, [not made[place].edits.identical for place in kept])
    chosen = choose(points, args.missed)
    draw_gate(points, chosen, args.output)
    return [*table(points, chosen), f"picture: {args.output}"]


def opened(args: argparse.Namespace, max_prompt_tokens: int | None = None) -> tuple[str, Corrector]:
    """The Aligner that the flags name, and what it is called."""
    quiet_libraries()
    speak()
    folder = locate(args.model)
    check_place(folder)
    settings = Settings(args.batch_size, args.max_new_tokens, max_prompt_tokens=max_prompt_tokens)
    corrector = Corrector.load(folder, args.prompt_template, settings, args.trust_remote_code, args.dtype)
    return Path(folder).resolve().name, corrector
