"""`aligner correct`: from its settings to a job, the corrections in a file, and what is printed at the end."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from aligner.card import objectives_of, prompt_of
from aligner.console import progress
from aligner.demo import locate
from aligner.encoder import Encoder
from aligner.files import sha256_of
from aligner.inference.config import CorrectConfig
from aligner.inference.continuing import ChatPrompt, Continuing, LocalContinuing, ServedContinuing
from aligner.inference.correct_file import CorrectionJob, Progress, StackedAligner, correct_file
from aligner.inference.correct_sentences import check_by_sentence, correct_by_sentence
from aligner.inference.corrector import Corrector, Settings, best_dtype
from aligner.inference.guard import Guard, markers_of
from aligner.inference.sampling import Sampling
from aligner.inference.served import ServedAligner, UpstreamModel
from aligner.inference.servers import Server, ServerGone
from aligner.inference.summary import CorrectionSummary, Drift
from aligner.models import check_place, fingerprint, load_config, load_tokenizer, positions_of, quiet_libraries
from aligner.objectives import sentences
from aligner.prompts import PromptTemplate
from aligner.records import UserError
from aligner.routing.config import RoutedModel, Routes, read_routes
from aligner.routing.router import open_router
from aligner.sentences import require_splitter
from aligner.steering.direction_file import read_steering
from aligner.terminal import print_errors, print_lines
from aligner.training.datasets.options import QAC, parse_columns

LONGEST_ANSWER = 1024  # tokens that the upstream may write for an answer, with --sentences


def correct(config: CorrectConfig) -> int:
    """Correct a file and print what happened. Returns the exit status: 0, or 1 where rows could not be corrected."""
    quiet_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is handled as Ctrl-C
    job, journal = job_of(config), Path(f"{config.output}.journal")
    try:
        bar = partial(progress, unit=" rows")
        summary = _by_sentence(config, job, bar) if config.sentences else correct_file(job, bar)
    except (KeyboardInterrupt, OSError, ServerGone):
        if journal.exists():
            print_errors(f"finished rows are kept in {journal}: the same command continues")
        raise
    return report(summary, config)


def report(summary: CorrectionSummary, config: CorrectConfig) -> int:
    """Print what came of a job. Returns the exit status."""
    for fault in summary.faults:
        print_errors(f"error: {fault}")
    print_lines(*summary_lines(summary, config), *drift_lines(summary.drift))
    return 1 if summary.faults else 0


def job_of(config: CorrectConfig) -> CorrectionJob:
    """The job that the settings describe. UserError where a model cannot be used as they say."""
    options, sampling = config.options, Sampling(seed=config.seed) if config.sample else None
    whole, weighed = not config.keep_unfinished, config.nats_ahead is not None
    settings = Settings(options.batch_size, options.max_new_tokens, sampling, whole_only=whole, weighed=weighed)
    routes = read_routes(config.route) if config.route else None
    members = members_of(config, routes)
    templates = [prompt_of(member.model, member.prompt_template) for member in members]
    check_by_sentence(templates, config.sentences)
    known = [objectives_of(each.model, template) for each, template in zip(members, templates, strict=True)]
    _check_wanted(config, templates, known)
    steering = read_steering(config.steering, members[0].model, options.trust_remote_code)
    about = {  # not the address of a server: it may come back elsewhere
        "model": [fingerprint(member.model, options.trust_remote_code) for member in members],
        "prompt": [template.text for template in templates],
        "max_new_tokens": options.max_new_tokens,
        "dtype": "the server's" if config.aligner_url else options.dtype or best_dtype(),
        "served model": config.aligner_model,
        "upstream": [config.upstream_model, config.upstream_max_tokens, config.upstream_temperature],
        **({"sampling": asdict(sampling)} if sampling else {}),
        **({"steered": steering.about} if steering else {}),
        **({"splitter": require_splitter()} if config.sentences else {}),
        **({"upstream prompt": config.upstream_folder} if config.upstream_folder else {}),
        **({"route": sha256_of(routes.file)} if routes else {}),
    }
    stack = [
        StackedAligner(
            member.name, partial(_open, config, member, settings), template.takes_feedback, markers_of(template), table
        )
        for member, template, table in zip(members, templates, known, strict=True)
    ]
    return CorrectionJob(
        config.input,
        config.output,
        stack,
        config.passes,
        config.feedback,
        _upstream_of(config),
        parse_columns(config.columns, "") or QAC,
        any("answer" in template.slots for template in (templates if routes else templates[:1])),
        about,
        Guard(
            config.keep_unfinished,
            config.keep == "code",
            config.correct_structured,
            config.scripts or (),
            config.nats_ahead,
        ),
        config.questions,
        config.retry_failed,
        config.objectives,
        open_router(routes, options.trust_remote_code).choose if routes else None,
    )


def _by_sentence(config: CorrectConfig, job: CorrectionJob, bar: Progress) -> CorrectionSummary:
    """The job in turns with the upstream, where there is one."""
    options, folder = config.options, config.upstream_folder and locate(config.upstream_folder)
    trusted, most = options.trust_remote_code, config.upstream_max_tokens or LONGEST_ANSWER
    upstream: Callable[[], Continuing] | None = None
    if job.upstream:
        prompt = ChatPrompt.load(folder, trusted) if folder else None
        upstream = partial(ServedContinuing, job.upstream.server, job.upstream.temperature, prompt)
    elif folder:
        upstream = partial(LocalContinuing.load, folder, trusted, options.dtype, options.batch_size)
    served = bool(job.upstream or config.aligner_url)
    at_once = max(options.batch_size, config.concurrency) if served else options.batch_size
    return correct_by_sentence(job, upstream, most, at_once, bar)


def members_of(config: CorrectConfig, routes: Routes | None) -> list[RoutedModel]:
    """The one Aligner, with the server that may have it, or those of the stack or the routes. UserError where one is not there."""
    if routes:
        chosen = config.options.prompt_template
        members = [
            replace(each, model=locate(each.model), prompt_template=each.prompt_template or chosen)
            for each in routes.aligners.values()
        ]
        if config.nats_ahead is not None and (served := [each.name for each in members if each.aligner_url]):
            raise UserError(
                f"--nats_ahead weighs corrections with a model here, and {routes.file} has '{served[0]}' served."
            )
    else:
        folders = [locate(folder) for folder in config.models]
        how = config.aligner_model or config.model, config.aligner_key, config.options.prompt_template
        members = [
            RoutedModel(name, folder, (), config.aligner_url, *how)
            for name, folder in zip(_names(folders), folders, strict=True)
        ]
    for member in members:
        check_place(member.model)
    return members


def _check_wanted(
    config: CorrectConfig, templates: Sequence[PromptTemplate], known: Sequence[Mapping[str, str]]
) -> None:
    """UserError where something is asked for that no Aligner's prompt has a slot for, or a name that one does not know."""
    wanted = "objectives" if config.objectives else "feedback"
    if getattr(config, wanted) and not any(template.takes_feedback for template in templates):
        raise UserError(
            f"--{wanted}: the prompt '{templates[0].name}' has no slot for it. Train an Aligner with --prompt_template {wanted}, "
            "or try that prompt on this one."
        )
    for template, table in zip(templates, known, strict=True):
        if template.takes_feedback:
            sentences(config.objectives, table)


def _upstream_of(config: CorrectConfig) -> UpstreamModel | None:
    """The model that answers rows without an answer, where one is given."""
    if not config.upstream_url:
        return None
    server = Server(
        config.upstream_url, config.upstream_model or "", config.upstream_key, config.concurrency, config.timeout
    )
    return UpstreamModel(server, config.upstream_max_tokens, config.upstream_temperature)


def _names(folders: Sequence[str]) -> list[str]:
    """The last part of each folder's path, with its place in the stack where two have the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]


def _open(config: CorrectConfig, member: RoutedModel, settings: Settings) -> Corrector | ServedAligner:
    """An Aligner on this machine, or behind a server; of a served one the prompt and the tokenizer are used here."""
    options, folder = config.options, member.model
    if not member.aligner_url:
        how = member.prompt_template, settings, options.trust_remote_code, options.dtype
        return Corrector.load(folder, *how, config.steering)
    name = member.aligner_model or folder
    server = Server(member.aligner_url[0], name, member.aligner_key, config.concurrency, config.timeout)
    encoder = Encoder(load_tokenizer(folder, options.trust_remote_code))
    positions = positions_of(load_config(folder, options.trust_remote_code)) or 10**9
    return ServedAligner(server, prompt_of(folder, member.prompt_template), encoder, positions, settings)


def summary_lines(summary: CorrectionSummary, config: CorrectConfig) -> Iterator[str]:
    """How many rows were corrected, and what of the corrections needs a second look."""
    generated = f" ({summary.upstream_answers:,} generated by the upstream)" if summary.upstream_answers else ""
    yield f"{summary.corrected:,} of {summary.rows:,} answers corrected{generated}: {config.output}"
    if summary.cut:
        yield f"{summary.cut:,} answers were cut off at the upstream's limit ('answer_finished' says which)"
    if summary.empty:
        yield f"{summary.empty:,} corrections are empty: the Aligner ended at once. Do not put it in front of people"
    if summary.unfinished:
        limit = f"{config.options.max_new_tokens:,} tokens (or the model's)"
        action = "were cut off" if config.keep_unfinished else "their answers were kept ('guard', 'cut_off' say where)"
        share = f"{summary.unfinished / max(1, summary.corrected):.0%}"
        yield f"{summary.unfinished:,} of them ({share}) did not end within {limit}: {action}"
    if summary.left_alone:
        reasons = "structured, fenced code, script, likelihood, route"
        yield f"{summary.left_alone:,} answers were left alone ({reasons}): 'guard_reason' says why"
    if summary.unread:
        yield f"{summary.unread:,} rows have feedback, which the Aligner's prompt has no slot for: it was ignored"


def drift_lines(drift: Sequence[Drift]) -> list[str]:
    """A table of what each pass changed; empty for a single pass."""
    if len(drift) < 2 or math.isnan(drift[0].unchanged):  # no row was corrected
        return []
    width = max(len(each.name) for each in drift)
    lines = [f"{'':<{width}}  unchanged  like its input  like the answer  length  no end"]
    for each in drift:
        lines.append(
            f"{each.name:<{width}}{each.unchanged:>11.0%}{each.to_input:>15.2f}{each.to_answer:>17.2f}{each.length:>8.2f}"
            f"{each.unfinished:>8.0%}"
        )
    return lines
