"""`aligner serve` and `aligner calibrate`: from their settings to a running server, and to a threshold."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from aligner.console import progress, setup_logging
from aligner.demo import locate
from aligner.inference.config import AlignerOptions
from aligner.inference.corrector import Corrected, CorrectionRequest, Corrector, Settings, check_feedback
from aligner.inference.guard import Guard
from aligner.inference.items import read_items
from aligner.interpretation.steer_options import NOT_STEERED, SteerOptions
from aligner.keys import read_key
from aligner.models import check_place, quiet_libraries
from aligner.plots import draw_gate
from aligner.records import UserError
from aligner.serving.app import Limits, application
from aligner.serving.config import CalibrateConfig, ServeConfig
from aligner.serving.connections import affordable, timed
from aligner.serving.exchange import Exchange, Policy
from aligner.serving.gate import choose_threshold, confidence, curve, table
from aligner.serving.metrics import AccessLog, LayerMetrics
from aligner.serving.shadow import ShadowLog
from aligner.serving.upstream import UpstreamClient
from aligner.serving.worker import Worker
from aligner.terminal import print_lines
from aligner.training.datasets.options import QAC, parse_columns

CONNECTIONS = 8  # times --max_requests: clients keep some open for their next request
FEWEST = 20  # answers that a threshold is chosen on


def serve(config: ServeConfig) -> None:
    """Serve until stopped. UserError where the port is in use or the Aligner cannot be opened."""
    connections, backlog = affordable(CONNECTIONS * config.max_requests)
    with listening(config.host, config.port) as place:  # before the model is loaded: a port in use is known at once
        limits = Limits(config.caller_key, config.max_request_bytes, config.max_requests, config.pass_through)
        access = AccessLog(config.access_log) if config.access_log else None
        app = application(exchange_of(config), limits, access)
        # Answers under way when the server is stopped are still sent.
        patience = int(config.upstream_timeout + config.aligner_timeout) + 5
        settings = uvicorn.Config(
            app,
            http=timed(H11Protocol, connections),  # type: ignore[arg-type]
            backlog=backlog,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=patience,
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        print_lines(f"aligner serves at http://{host}:{place.getsockname()[1]}/v1 (and / to look at); Ctrl-C stops it")
        uvicorn.Server(settings).run(sockets=[place])


def exchange_of(config: ServeConfig) -> Exchange:
    """The Aligner, its upstream and the policy for answers."""
    shadow = ShadowLog(config.shadow_file) if config.shadow_file else None
    whole_only = not config.keep_unfinished
    name, corrector = load_aligner(config.model, config.options, config.max_prompt_tokens, whole_only, config.steering)
    feedback = corrector.objectives.get(config.feedback, config.feedback)
    check_feedback(corrector.template, [CorrectionRequest("", "", feedback)])
    key, largest = read_key(config.upstream_key) or None, 10 * config.max_request_bytes
    headers = config.pass_headers or (), config.upstream_headers
    upstream = UpstreamClient(config.upstream_url, key, config.upstream_timeout, largest, *headers)
    guard = Guard(config.keep_unfinished, config.keep == "code", config.correct_structured, config.scripts or ())
    policy = Policy(config.mode, config.threshold, config.on_failure, feedback, config.aligner_timeout, guard=guard)
    metrics = LayerMetrics() if config.metrics else None
    return Exchange(name, upstream, Worker(corrector, config.max_characters), policy, shadow, metrics)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. UserError where it cannot."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}. Name another."
        ) from None


def calibrate(config: CalibrateConfig) -> list[str]:
    """Correct the answers of a file, take the Aligner's confidence in each, draw what every threshold would do, and choose."""
    columns = parse_columns(config.columns, "") or QAC
    rows = read_items(config.input, False, columns)
    items = [item for item in rows if not item.fault][: config.rows]
    if len(items) < FEWEST:
        fault = next((f" The first of the others: {item.fault}" for item in rows if item.fault), "")
        raise UserError(
            f"{config.input}: {len(items):,} usable rows, of --rows {config.rows:,} at most; a threshold needs at least "
            f"{FEWEST}.{fault}"
        )
    _, corrector = load_aligner(config.model, config.options)
    requests = [CorrectionRequest(item.text("question"), item.text("answer")) for item in items]
    outcomes = dict(progress(corrector.stream(requests), total=len(requests), desc="correcting", unit=" rows"))
    kept = [place for place, outcome in sorted(outcomes.items()) if isinstance(outcome, Corrected)]
    prompts = [corrector.encoder.render(corrector.template, *requests[place]) for place in kept]
    pairs = corrector.encoder.pairs(prompts, [requests[place].answer for place in kept])
    values = [
        confidence(corrector.model, prompt, answer)
        for prompt, answer, _ in progress(pairs, desc="computing confidence", unit=" rows")
    ]
    points = curve(values, [not outcomes[place].edits.identical for place in kept])
    chosen = choose_threshold(points, config.missed)
    draw_gate(points, chosen, config.output)
    return [*table(points, chosen), f"picture: {config.output}"]


def load_aligner(
    model: str,
    options: AlignerOptions,
    max_prompt_tokens: int | None = None,
    whole_only: bool = False,
    steering: SteerOptions = NOT_STEERED,
) -> tuple[str, Corrector]:
    """The name of an Aligner, and the Aligner itself."""
    quiet_libraries()
    setup_logging()
    folder = locate(model)
    check_place(folder)
    settings = Settings(options.batch_size, options.max_new_tokens, None, max_prompt_tokens, whole_only)
    how = options.prompt_template, settings, options.trust_remote_code, options.dtype
    corrector = Corrector.load(folder, *how, steering)
    return Path(folder).resolve().name, corrector
