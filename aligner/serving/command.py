"""`aligner serve` and `aligner calibrate`: from their settings to the application, and to a threshold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette

from aligner.card import objectives_of, prompt_of
from aligner.console import progress, setup_logging
from aligner.demo import locate
from aligner.encoder import Encoder
from aligner.inference.config import AlignerOptions
from aligner.inference.continuing import ChatPrompt
from aligner.inference.correct_sentences import check_by_sentence
from aligner.inference.corrector import Corrected, CorrectionRequest, Corrector, Settings, check_feedback
from aligner.inference.guard import Guard
from aligner.inference.items import Item, read_items
from aligner.keys import read_key
from aligner.models import check_place, load_config, load_tokenizer, positions_of, quiet_libraries
from aligner.plots import draw_gate
from aligner.records import UserError
from aligner.routing.config import Routes, read_routes
from aligner.routing.router import features_from, open_router
from aligner.sentences import require_splitter, split_sentences
from aligner.serving.app import Limits, application
from aligner.serving.config import CalibrateConfig, ServeConfig, check_address
from aligner.serving.corrections import AnswerCorrector
from aligner.serving.exchange import Exchange
from aligner.serving.gate import choose_threshold, confidence, curve, table
from aligner.serving.metrics import AccessLog, LayerMetrics
from aligner.serving.policy import Policy
from aligner.serving.replicas import Replicas
from aligner.serving.routed import RoutedCorrector
from aligner.serving.served_aligner import ServedAligner
from aligner.serving.shadow import ShadowLog
from aligner.serving.upstream import UpstreamClient
from aligner.serving.worker import Worker
from aligner.steering.options import NOT_STEERED, SteerOptions
from aligner.training.datasets.options import QAC, parse_columns

LARGER = 10  # times --max_request_bytes: an answer of a server at most
FEWEST = 20  # answers that a threshold is chosen on


def mend_files(config: ServeConfig) -> None:
    """Open and close the files that several processes will write to: what a kill left in them is mended, a fault is known."""
    if config.shadow_file:
        ShadowLog(config.shadow_file).close()
    if config.access_log:
        AccessLog(config.access_log).close()


def check_gate(config: ServeConfig) -> None:
    """UserError where the servers of the Aligner do not tell what the gate needs."""
    _, aligner = served_aligner(config)
    asyncio.run(aligner.check_likelihoods())


def application_of(config: ServeConfig) -> Starlette:
    """The application with everything that it needs opened."""
    limits = Limits(
        config.caller_key, config.max_request_bytes, config.max_requests, config.pass_through, config.guardrail
    )
    access = AccessLog(config.access_log, config.workers > 1) if config.access_log else None
    return application(exchange_of(config), limits, access)


def exchange_of(config: ServeConfig) -> Exchange:
    """The Aligner, its upstream and the policy for answers."""
    shadow = ShadowLog(config.shadow_file, shared=config.workers > 1) if config.shadow_file else None
    name, aligner = opened_aligner(config)
    feedback = aligner.objectives.get(config.feedback, config.feedback)
    check_feedback(aligner.template, [CorrectionRequest("", "", feedback)])
    key, headers = read_key(config.upstream_key) or None, (config.pass_headers or (), config.upstream_headers)
    largest = LARGER * config.max_request_bytes
    upstream = UpstreamClient(config.upstream_url, key, config.upstream_timeout, largest, *headers)
    guard = Guard(config.keep_unfinished, config.keep == "code", config.correct_structured, config.scripts or ())
    check_by_sentence([aligner.template], config.sentences)
    if config.sentences:
        require_splitter()
    how = config.mode, config.threshold, config.on_failure, feedback, config.aligner_timeout
    policy = Policy(*how, guard=guard, sentences=config.sentences)
    trusted, folder = config.options.trust_remote_code, config.upstream_folder
    prompt = ChatPrompt.load(locate(folder), trusted) if folder else None
    metrics = LayerMetrics() if config.metrics else None
    return Exchange(name, upstream, aligner, policy, shadow, metrics, prompt)


def opened_aligner(config: ServeConfig) -> tuple[str, AnswerCorrector]:
    """The name of whatever corrects, and the Aligner here, behind servers, or the several of a route."""
    if config.route:
        return routed_aligners(config, read_routes(config.route))
    return served_aligner(config) if config.aligner_url else local_aligner(config)


def routed_aligners(config: ServeConfig, routes: Routes) -> tuple[str, RoutedCorrector]:
    """The name of the file, and its Aligners behind their router, which reads the states of one of them where it can."""
    read, members = routes.features_model() if routes.rows else None, dict[str, AnswerCorrector]()
    features = None
    for name, each in routes.aligners.items():
        options = replace(config.options, prompt_template=each.prompt_template or config.options.prompt_template)
        own = replace(config, model=each.model, options=options, route=None)
        if each.aligner_url:
            for url in each.aligner_url:
                check_address(f"route {routes.file}: {name}: aligner_url", url, "aligner_key")
            served = replace(
                own, aligner_url=each.aligner_url, aligner_model=each.aligner_model, aligner_key=each.aligner_key
            )
            members[name] = served_aligner(served)[1]
            continue
        worker = local_aligner(own)[1]
        members[name] = worker
        if each.model == read:
            tokenizer = load_tokenizer(
                locate(each.model), config.options.trust_remote_code
            )  # not the worker's: two threads
            features = features_from(worker.corrector.model, tokenizer)
    return Path(routes.file).stem, RoutedCorrector(
        open_router(routes, config.options.trust_remote_code, features), members
    )


def local_aligner(config: ServeConfig) -> tuple[str, Worker]:
    """The name of an Aligner, and the Aligner in a thread of this process."""
    whole_only = not config.keep_unfinished
    name, corrector = load_aligner(config.model, config.options, config.max_prompt_tokens, whole_only, config.steering)
    return name, Worker(corrector, config.max_characters)


def served_aligner(config: ServeConfig) -> tuple[str, ServedAligner]:
    """The name of an Aligner, and the servers that have it; its prompt and tokenizer are used here."""
    quiet_libraries()
    setup_logging()
    folder, options = locate(config.model), config.options
    check_place(folder)
    template = prompt_of(folder, options.prompt_template)
    encoder = Encoder(load_tokenizer(folder, options.trust_remote_code))
    positions = positions_of(load_config(folder, options.trust_remote_code)) or 10**9
    whole_only = not config.keep_unfinished
    settings = Settings(options.batch_size, options.max_new_tokens, None, config.max_prompt_tokens, whole_only)
    key, largest = read_key(config.aligner_key) or None, LARGER * config.max_request_bytes
    clients = [UpstreamClient(url, key, config.aligner_timeout, largest) for url in config.aligner_url]
    name, known = config.aligner_model or config.model, objectives_of(folder, template)
    aligner = ServedAligner(
        Replicas(clients), name, template, encoder, positions, settings, known, config.max_characters
    )
    return Path(folder).resolve().name, aligner


def calibrate(config: CalibrateConfig) -> list[str]:
    """Correct the answers of a file, take the Aligner's confidence in each, draw what every threshold would do, and choose."""
    columns = parse_columns(config.columns, "") or QAC
    rows = list(read_items(config.input, False, columns))
    items = [item for item in rows if not item.fault][: config.rows]
    if len(items) < FEWEST:
        fault = next((f" The first of the others: {item.fault}" for item in rows if item.fault), "")
        raise UserError(
            f"{config.input}: {len(items):,} usable rows, of --rows {config.rows:,} at most; a threshold needs at least "
            f"{FEWEST}.{fault}"
        )
    _, corrector = load_aligner(config.model, config.options)
    requests = [each for item in items for each in _requests(item, corrector.template.by_sentence)]
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


def _requests(item: Item, by_sentence: bool) -> Iterator[CorrectionRequest]:
    """A row's answer, or each of its sentences behind those before it, as an Aligner of sentences sees them."""
    question, answer = item.text("question"), item.text("answer")
    said = ""
    for part in split_sentences(answer) if by_sentence else [answer]:
        yield CorrectionRequest(question, part.strip() if by_sentence else part, "", said.strip())
        said += part


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
