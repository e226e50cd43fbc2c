"""`aligner plan --rounds`: memory, hours and disk of all stages of all rounds, before any of them begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from aligner.records import UserError
from aligner.rounds.config import METHODS
from aligner.training.config import RunConfig
from aligner.training.flags import parse
from aligner.training.planning.memory import Size, size_of
from aligner.training.planning.memory_plan import CONTEXT, FRAGMENTS, GB, Hardware, is_half, need_of, settle_recomputing
from aligner.training.planning.report import RECOMPUTED_SHARE, PlanRequest, check_request, flops_per_token
from aligner.training.planning.shapes import Shape, shape_of_model
from aligner.training.preference_config import ONLINE, PAIRED
from aligner.training.train_log import read_log

FORWARD = 1 / 3  # of the operations of a forward and a backward pass
STATE = 12  # bytes a parameter in a resume state: master weight and two moments
HEADS = ("stage", "times", "GB a GPU", "M tokens", "hours", "GB of disk")


@dataclass(frozen=True)
class RoundsRequest:
    """Flags of the plan besides those of a single run. rounds: how many. aligner: its base, whose size it has. question_tokens,
    answer_tokens: means. decoding: tokens a second that all GPUs together write, or None where it is not known."""

    rounds: int
    aligner: str
    question_tokens: float = 100
    answer_tokens: float = 300
    decoding: float | None = None
    batch_size: int = 8


@dataclass(frozen=True)
class StagePlan:
    """A stage of one round, and how often it is made: bytes on each GPU, tokens that it reads and writes, hours where a throughput
    is known, and bytes that stay on the disk."""

    name: str
    times: int
    gpu: int
    tokens: float
    hours: float | None
    disk: float = 0


def rounds_report(flags: Sequence[str], request: PlanRequest, rounds: RoundsRequest) -> tuple[list[str], bool]:
    """The lines of the plan, and whether every stage fits."""
    check_request(request)
    _check(rounds)
    given = _parsed(flags)
    if given.preference.method not in METHODS:
        raise UserError(f"--method {given.preference.method} is none of aligner rounds' ({', '.join(METHODS)}).")
    if not given.model.model_name_or_path:
        raise UserError("--model_name_or_path is missing: name the upstream.")
    stages = list(stage_plans(given, request, rounds))
    fits = all(stage.gpu <= request.gpu_memory * GB for stage in stages)
    gpus = given.launch.gpus or 1
    lines = [
        f"{rounds.rounds} rounds of {given.preference.method}: {given.model.model_name_or_path} learns from {rounds.aligner}; "
        f"{request.rows:,} questions of {rounds.question_tokens:g} tokens, answers of {rounds.answer_tokens:g}; {gpus} x "
        f"{request.gpu_memory:g} GB",
        *_table(stages),
    ]
    if any(stage.hours is None for stage in stages):
        lines.append("hours: give --tflops, --tokens_per_second or --measured DIR, and --decoding for what is written")
    tight = next((stage for stage in stages if stage.gpu > request.gpu_memory * GB), None)
    lines.append(
        "it fits" if tight is None else f"it does not fit: {tight.name} needs {tight.gpu / GB:,.1f} GB on each GPU"
    )
    return lines, fits


def _parsed(flags: Sequence[str]) -> RunConfig:
    """The flags of the upstream's training, whose reward model is made in the rounds."""
    try:
        return parse(flags)
    except UserError as error:
        if "needs --reward_model" not in str(error):
            raise
        return parse([*flags, "--reward_model", "of the round"])


def _check(rounds: RoundsRequest) -> None:
    for name in ("rounds", "question_tokens", "answer_tokens", "decoding", "batch_size"):
        number = getattr(rounds, name)
        if number is not None and not 0 < number < float("inf"):
            raise UserError(f"--{name} is {number}: it must be above 0.")


def stage_plans(config: RunConfig, request: PlanRequest, rounds: RoundsRequest) -> Iterator[StagePlan]:
    """The stages that take memory or hours; a round has each once."""
    upstream, aligner = (shape_of_model(name or "") for name in (config.model.model_name_or_path, rounds.aligner))
    rows, q, a = request.rows, rounds.question_tokens, rounds.answer_tokens
    yield decoding("upstream answers", upstream, rounds, rows, q, a)
    yield decoding("Aligner corrects", aligner, rounds, rows, q + a, a)
    if config.preference.method == "rloo":
        reward = parse(
            ["--config", "configs/upstream/reward.yaml", "--model_name_or_path", config.model.model_name_or_path or ""]
        )
        yield training("reward model", replace(reward, launch=config.launch), upstream, request, rounds)
    yield training(f"upstream learns ({config.preference.method})", config, upstream, request, rounds)


def decoding(name: str, shape: Shape, rounds: RoundsRequest, rows: int, read: float, written: float) -> StagePlan:
    """Rows are read and written by a model in 16 bits, whole on a GPU, beside the keys and values of its batch."""
    text, size = shape.config.get_text_config(), size_of(shape)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kept = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head  # bytes of a token's keys and values
    counted = 2 * size.parameters + int(kept * rounds.batch_size * (read + written))
    gpu = CONTEXT + int((1 + FRAGMENTS) * counted)
    hours = rows * written / rounds.decoding / 3600 if rounds.decoding else None
    return StagePlan(name, rounds.rounds, gpu, rows * (read + written), hours)


def training(name: str, config: RunConfig, shape: Shape, request: PlanRequest, rounds: RoundsRequest) -> StagePlan:
    """A training of the upstream's size, as this project's own loop needs memory (TRL's was not measured)."""
    size, method, gpus = size_of(shape), config.preference.method, config.launch.gpus or 1
    hardware = Hardware(gpus, min(gpus, request.gpus_per_node), int(request.gpu_memory * GB))
    settled = settle_recomputing(config, shape, size, hardware)
    gpu, half = need_of(settled, shape, size, hardware).gpu, is_half(config)
    length = rounds.question_tokens + rounds.answer_tokens
    group = (config.preference.num_generations or 2) if method in ONLINE else 2 if method in PAIRED else 1
    once = request.rows * group * length
    passes = config.optimization.epochs + _forward_passes(config)
    hours = _hours(settled, request, shape, size, once * passes, length)
    if hours is not None and method in ONLINE:
        written = config.optimization.epochs * request.rows * group * rounds.answer_tokens
        hours = hours + written / rounds.decoding / 3600 if rounds.decoding else None
    weights = (2 if half else 4) * size.parameters
    state = STATE * size.parameters + (weights if config.preference.by_trl else 0)
    kept = config.output.save_total_limit if config.output.save_interval else 0
    return StagePlan(name, rounds.rounds, gpu, once * config.optimization.epochs, hours, weights + kept * state)


def _forward_passes(config: RunConfig) -> float:
    """Passes over the tokens besides training's, as shares of one of them: of a reference once, or of it and the reward model each
    epoch."""
    if config.preference.method in ("dpo", "kto"):
        return FORWARD
    return 2 * FORWARD * config.optimization.epochs if config.preference.method in ONLINE else 0


def _hours(
    config: RunConfig, request: PlanRequest, shape: Shape, size: Size, tokens: float, length: float
) -> float | None:
    """Hours of so many tokens; None where no throughput is given."""
    speed = request.tokens_per_second
    if request.tflops:
        each = flops_per_token(size, shape, length, RECOMPUTED_SHARE[config.recomputed])
        speed = (config.launch.gpus or 1) * request.tflops * 1e12 / each
    elif request.measured:
        speeds = sorted(line["tokens_per_second"] for line in read_log(request.measured) if "tokens_per_second" in line)
        if not speeds:
            raise UserError(f"{request.measured}: has no train_log.jsonl with updates in it.")
        speed = speeds[len(speeds) // 2]
    return tokens / speed / 3600 if speed else None


def _table(stages: Sequence[StagePlan]) -> list[str]:
    """A line for each stage, all rounds of it together, and the sum; memory is not added up: stages follow each other."""
    rows = [(s.name, str(s.times), s.gpu, s.tokens * s.times, _all(s), s.disk * s.times) for s in stages]
    hours = [time for *_, time, _ in rows if time is not None]
    total = sum(hours) if len(hours) == len(rows) else None
    tokens, disk = (sum(s.times * getattr(s, name) for s in stages) for name in ("tokens", "disk"))
    rows.append(("all", "", max(s.gpu for s in stages), tokens, total, disk))
    cells = [
        (name, times, f"{gpu / GB:,.1f}", f"{tokens / 1e6:,.1f}", _hours_text(time), f"{disk / GB:,.1f}")
        for name, times, gpu, tokens, time, disk in rows
    ]
    width = max(len(row[0]) for row in cells)
    lines = [f"{HEADS[0]:<{width}}" + "".join(f"{head:>13}" for head in HEADS[1:])]
    return [*lines, *(f"{row[0]:<{width}}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in cells)]


def _all(stage: StagePlan) -> float | None:
    """The hours of a stage in all rounds."""
    return None if stage.hours is None else stage.hours * stage.times


def _hours_text(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.1f}"
