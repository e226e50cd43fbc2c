"""`aligner plan`: before a GPU hour is spent, the memory, the rows and updates, the hours, and the paper's resource claim."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aligner.demo import locate
from aligner.models import load_tokenizer
from aligner.quantised import check_unpacking
from aligner.records import UserError
from aligner.training.config import RunConfig
from aligner.training.config_check import check_packages
from aligner.training.datasets.mixture import identity_size
from aligner.training.datasets.token_table import lengths_of
from aligner.training.flags import parse
from aligner.training.plan import Plan
from aligner.training.planning.memory import Size, size_of
from aligner.training.planning.memory_plan import (
    GB,
    Hardware,
    fit_lines,
    is_half,
    memory_lines,
    need_of,
    one_gpu_line,
    recomputing_line,
    settle_recomputing,
)
from aligner.training.planning.shapes import Shape, shape_of_model
from aligner.training.stages import plan_of, recipes, records_per_update, sides_as_tokens, stage_data
from aligner.training.train_log import read_log

RECOMPUTED_SHARE = {"all": 1.0, "some": 0.5, "none": 0.0}  # of the layers


@dataclass(frozen=True)
class PlanRequest:
    """The flags of `aligner plan` besides those of training; memory in GB, throughput as one of three."""

    gpu_memory: float = 80
    cpu_memory: float | None = None
    gpus_per_node: int = 8
    rows: int = 50_000
    tokens_per_row: float | None = None
    tokens_per_second: float | None = None
    tflops: float | None = None
    measured: str | None = None
    upstream: list[float] | None = None


def check_request(request: PlanRequest) -> None:
    """UserError where a number cannot be meant."""
    numbers = {name: value for name, value in asdict(request).items() if isinstance(value, int | float)}
    for number in request.upstream or []:
        numbers["upstream"] = min(number, numbers.get("upstream", number))
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise UserError(f"--{name} is {number}: it must be above 0.")


def report(flags: Sequence[str], request: PlanRequest) -> tuple[list[str], bool]:
    """`aligner plan`: its lines, and whether the run fits."""
    check_request(request)
    config = parse(flags, "aligner plan [--config FILE] [flags of training] [flags below]")
    check_packages(config)
    name = config.model.model_name_or_path
    if not name:
        raise UserError("--model_name_or_path is missing. Name a model, or a --config that does.")
    measured = measured_speed(request.measured) if request.measured else None
    gpus = config.launch.gpus or 1
    cpu = int(request.cpu_memory * GB) if request.cpu_memory else None
    slots = request.gpus_per_node
    on_cpu = config.launch.device == "cpu"
    memory = None if on_cpu else int(request.gpu_memory * GB)
    hardware = Hardware(gpus, min(gpus, slots), memory, cpu, slots, on_cpu)
    shape = shape_of_model(name, config.model.trust_remote_code)
    check_unpacking(name, shape.config)
    size = size_of(shape, config.lora)
    where = "on the CPU" if on_cpu else f"{gpus} x {request.gpu_memory:g} GB"
    where += f" in {hardware.nodes} nodes" if hardware.nodes > 1 else ""
    kind = "16 bit" if is_half(config) else "32 bit"
    lines = [
        f"{name}: {size.parameters / 1e9:,.2f} billion parameters; {where}; ZeRO-{config.launch.zero_stage}, {kind}"
    ]
    if size.adapters:
        lines.append(
            f"LoRA of rank {config.lora.lora_rank}: {size.adapters / 1e6:,.1f} million parameters are trained beside them"
        )
    settled = settle_recomputing(config, shape, size, hardware)
    need = need_of(settled, shape, size, hardware)
    lines += [
        recomputing_line(config, settled),
        *memory_lines(need, hardware),
        *fit_lines(settled, shape, size, hardware, need),
        *one_gpu_line(config, gpus),
    ]
    rows, per_row = count_rows(config, request)
    plans = plans_of(config, rows, gpus)
    lines += [f"{stage}: {plan.line()}" for stage, plan in plans.items()]
    speed = measured or stated_speed(settled, request, shape, size, per_row)
    ask = "time: give --tokens_per_second, --tflops or --measured DIR"
    lines.append(time_line(plans.values(), per_row, *speed) if speed else ask)
    if request.upstream:
        lines += resource_claim(shape.nominal or size.parameters / 1e9, request.upstream)
    return lines, need.fits(hardware)


def count_rows(config: RunConfig, request: PlanRequest) -> tuple[int, float]:
    """The records that are kept and their mean tokens: of the data where they are given, else as requested."""
    if not config.data.train_datasets:
        return request.rows, request.tokens_per_row or float(config.model.max_length)
    base = locate(config.model.model_name_or_path or "")
    tokenizer = load_tokenizer(base, config.model.trust_remote_code)
    (tokens, _), _ = sides_as_tokens(config, stage_data(config, "correction"), tokenizer)
    return len(tokens), float(lengths_of(tokens).mean())


def plans_of(config: RunConfig, rows: int, gpus: int) -> dict[str, Plan]:
    """The arithmetic of the stages by name: the warm-up where there is one, then the correction."""
    o, per_update = config.optimization, records_per_update(config, gpus)
    sizes = {"identity": identity_size(rows, o.identity_proportion), "correction": rows}
    if o.equal_proportion:  # how many pairs are rated the same only the data can tell
        if not config.data.train_datasets:
            raise UserError("--equal_proportion needs the data to plan with: --train_datasets SPEC.")
        sizes["equal"] = len(stage_data(config, "equal").train)
    return {name: plan_of(recipe, sizes[name], per_update, gpus) for name, recipe in recipes(o).items()}


def measured_speed(folder: str) -> tuple[float, str]:
    """Tokens a second of all GPUs together in an output folder's log, and where the figure comes from; UserError: none there."""
    speeds = [line["tokens_per_second"] for line in read_log(Path(folder)) if "tokens_per_second" in line]
    if not speeds:
        raise UserError(f"{folder}: has no train_log.jsonl with updates in it.")
    return statistics.median(speeds), f"median of {len(speeds)} updates in {folder}"


def stated_speed(
    config: RunConfig, request: PlanRequest, shape: Shape, size: Size, per_row: float
) -> tuple[float, str] | None:
    """Tokens a second of all GPUs together as the flags state it, and where the figure comes from; None where they do not."""
    if request.tokens_per_second:
        return request.tokens_per_second, "stated"
    if request.tflops:
        each = flops_per_token(size, shape, per_row, RECOMPUTED_SHARE[config.recomputed])
        return (config.launch.gpus or 1) * request.tflops * 1e12 / each, f"stated: {request.tflops:g} TFLOP/s a GPU"
    return None


def time_line(plans: Iterable[Plan], tokens_per_row: float, tokens_per_second: float, source: str) -> str:
    """Hours at a throughput, over all stages."""
    tokens = sum(plan.records * plan.epochs for plan in plans) * tokens_per_row
    hours = tokens / tokens_per_second / 3600
    return f"{tokens / 1e6:,.0f} million tokens at {tokens_per_second:,.0f} tokens/s ({source}): {hours:,.1f} hours"


def resource_claim(aligner: float, upstreams: list[float]) -> list[str]:
    """The paper's account of resources (section 2; derived): bytes of training states of other ways over the Aligner's.

    A trained parameter is 16 bytes, a frozen one 2. DPO trains the upstream beside a frozen copy; RLHF trains an actor and
    a critic beside a frozen reference and reward model, all of the upstream's size. Sizes in billions of parameters.
    """
    lines = [
        f"resources of aligning the upstream itself, over training this Aligner of {aligner:g}B (model states alone)"
    ]
    for upstream in upstreams:
        dpo, rlhf = (16 + 2) * upstream / (16 * aligner), (16 + 16 + 2 + 2) * upstream / (16 * aligner)
        lines.append(f"  upstream {upstream:g}B: DPO {dpo:.4g}x, RLHF {rlhf:.4g}x")
    return lines


def flops_per_token(size: Size, shape: Shape, length: float, recomputed: float) -> float:
    """Floating-point operations for training on one token: 6 per parameter and causal attention (PaLM, appendix B), and those of
    a forward pass, a third of them, again where it runs twice. A parameter that LoRA freezes has no gradient: 4."""
    text = shape.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 6 * text.num_hidden_layers * text.num_attention_heads * head * length
    spared = 2 * size.parameters if size.adapters else 0
    return (6 * (size.parameters + size.adapters) + attention) * (1 + recomputed / 3) - spared
