"""`aligner baseline`: from its settings to a job, and what is printed at the end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from aligner.baselines.answer_file import BaselineJob, BaselineSummary, answer_file
from aligner.baselines.config import BaselineConfig
from aligner.baselines.corrector import AlignerStage
from aligner.baselines.local import LocalModel, LocalUpstream
from aligner.baselines.protocol import ALIGNER, REWARD, UPSTREAM, Responder, Usage
from aligner.baselines.rewards import LikelihoodReward, PairReward, ScoreReward
from aligner.baselines.served import ServedUpstream
from aligner.card import prompt_of
from aligner.console import progress
from aligner.demo import locate
from aligner.evaluation.judges.dimensions import DIMENSIONS
from aligner.evaluation.judges.scores import ScoreJudge
from aligner.evaluation.judges.served import ServedJudge
from aligner.inference.corrector import Corrector, Settings, best_dtype
from aligner.inference.servers import Server, ServerGone
from aligner.models import check_place, fingerprint, quiet_libraries
from aligner.records import UserError
from aligner.terminal import print_errors, print_lines
from aligner.training.datasets.options import QAC, parse_columns


def run_baseline(config: BaselineConfig) -> int:
    """Answer a file and print what came of it. Returns the exit status: 0, or 1 where rows could not be answered."""
    quiet_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is handled as Ctrl-C
    job = job_of(config)
    try:
        summary = answer_file(job, partial(progress, unit=" replies"))
    except (KeyboardInterrupt, OSError, ServerGone):
        if Path(f"{config.output}.journal").exists():
            print_errors(f"replies are kept in {config.output}.journal: the same command continues")
        raise
    for fault in summary.faults:
        print_errors(f"error: {fault}")
    print_lines(*summary_lines(summary, config))
    return 1 if summary.answered < summary.rows else 0


def job_of(config: BaselineConfig) -> BaselineJob:
    """The job that the settings describe. UserError where a model cannot be used as they say."""
    config = _located(config)
    settings = config.method_settings()
    trusted = config.options.trust_remote_code
    upstream = (
        fingerprint(config.model, trusted) if config.model else f"served {config.upstream_model} {config.dialect}"
    )
    about = {  # not the address of a server: it may come back elsewhere
        "upstream": upstream,
        "prompts": settings.prompts.about(),
        "max_new_tokens": config.options.max_new_tokens,
        "rounds": settings.rounds,
        "seed": settings.seed,
        "dtype": config.options.dtype or best_dtype(),
    }
    reward_model = ""
    if config.method == "bon":
        reward_model = f"{config.reward_kind} {_reward_name(config)}"
        about |= {"n": settings.n, "temperature": settings.temperature, "reward": reward_model}
    if config.method == "beam":
        about["width"] = settings.width
    if config.aligner:
        prompt = prompt_of(config.aligner, config.options.prompt_template)  # before anything is paid for
        if prompt.by_sentence:
            raise UserError(
                f"--aligner {config.aligner}: it corrects sentence by sentence, and the answers here are whole."
            )
        about |= {"aligner": fingerprint(config.aligner, trusted), "aligner prompt": prompt.text}
    return BaselineJob(
        config.method,
        config.input,
        config.output,
        settings,
        _responders(config),
        about,
        bool(config.aligner),
        parse_columns(config.columns, "") or QAC,
        reward_model,
    )


def _located(config: BaselineConfig) -> BaselineConfig:
    """The settings with the folders that they name. UserError where one is not there."""
    folders = {"model": config.model, "aligner": config.aligner}
    if config.method == "bon" and config.reward_kind != "served":
        folders["reward_model"] = config.reward_model or config.model
    placed = {name: locate(folder) for name, folder in folders.items() if folder}
    for folder in placed.values():
        check_place(folder)
    return replace(config, **placed)  # type: ignore[arg-type]


def _reward_name(config: BaselineConfig) -> str:
    if config.reward_kind == "served":
        return f"{config.reward_model} {config.dimension}"
    return fingerprint(config.reward_model or "", config.options.trust_remote_code)


def _responders(config: BaselineConfig) -> dict[str, Callable[[], Responder]]:
    """How to open whoever replies; a model here that is upstream and reward is opened once."""
    local = cache(lambda folder: LocalModel.load(folder, config.options.trust_remote_code, config.options.dtype))
    return {
        UPSTREAM: partial(_open_upstream, config, local),
        REWARD: partial(_open_reward, config, local),
        ALIGNER: partial(_open_aligner, config),
    }


def _open_upstream(config: BaselineConfig, local: Callable[[str], LocalModel]) -> Responder:
    if config.model:
        return LocalUpstream(local(config.model), config.options.max_new_tokens, config.options.batch_size)
    url, name = config.upstream_url or "", config.upstream_model or ""
    server = Server(url, name, config.upstream_key, config.concurrency, config.timeout)
    return ServedUpstream(server, config.options.max_new_tokens, config.dialect)


def _open_reward(config: BaselineConfig, local: Callable[[str], LocalModel]) -> Responder:
    model = config.reward_model or ""
    if config.reward_kind == "likelihood":
        return LikelihoodReward(local(model))
    if config.reward_kind == "served":
        server = Server(config.judge_url or "", model, config.judge_key, config.concurrency, config.timeout)
        return PairReward(ServedJudge(server), DIMENSIONS[config.dimension])
    return ScoreReward(ScoreJudge.load(model, config.reward_kind == "cost", config.options.trust_remote_code))


def _open_aligner(config: BaselineConfig) -> Responder:
    # Twice the upstream's: an answer that was cut off at its limit has room for a correction all the same.
    settings = Settings(config.options.batch_size, 2 * config.options.max_new_tokens, whole_only=True)
    folder, trusted = config.aligner or "", config.options.trust_remote_code
    return AlignerStage(Corrector.load(folder, config.options.prompt_template, settings, trusted, config.options.dtype))


def summary_lines(summary: BaselineSummary, config: BaselineConfig) -> Iterator[str]:
    """How many rows were answered, what failed, and what it cost."""
    yield f"{summary.answered:,} of {summary.rows:,} questions answered by {config.method}: {config.output}"
    failed = ", ".join(f"{count:,} {failure}" for failure, count in summary.failures.items() if count)
    if failed:
        kept = "the text before it stands" if config.method not in ("bon", "beam") else "'failure' says which"
        yield f"failures of the method: {failed} ({kept})"
    if summary.unchanged:
        yield f"{summary.unchanged:,} revisions changed nothing"
    if summary.kept:
        yield f"{summary.kept:,} corrections of the Aligner did not end: the answer was kept"
    for payee, usage in summary.cost.items():
        yield f"{payee}: {_usage_text(usage)}"


def _usage_text(usage: Usage) -> str:
    unknown = f" ({usage.unknown:,} calls without a count: the server states no usage)" if usage.unknown else ""
    return (
        f"{usage.calls:,} calls, {usage.prompt_tokens:,} tokens read, {usage.completion_tokens:,} written{unknown}, "
        f"{usage.passes:,} forward passes, {usage.seconds:,.1f} s"
    )
