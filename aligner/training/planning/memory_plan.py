"""What a run needs on each GPU, whether it fits, and the smallest change that makes it fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from aligner.training.config import RunConfig
from aligner.training.planning.memory import (
    LEARNED,
    Size,
    States,
    buffers,
    frozen_states,
    gpu_workspace,
    model_states,
    peak_activations,
)
from aligner.training.planning.shapes import Shape
from aligner.training.preference_config import ONLINE, PAIRED

GB = 1e9
FILLED = 0.9  # of a GPU's memory, that `auto` lets a plan take
# On a GPU, measured on an H100 (tests/acceptance/README.md): the context and NCCL; and what the allocator keeps of freed tensors,
# as a share of all that is counted.
CONTEXT, FRAGMENTS = int(1.8 * GB), 0.05
# A rank on a CPU, measured (README.md): Python and its libraries, and what the C library keeps of freed tensors, as a share
# of all that lives at the peak: micro-batches differ in length, so that one's pieces do not fit the next one's.
PROCESS, KEPT = int(0.7 * GB), 0.4


@dataclass(frozen=True)
class Hardware:
    """GPUs in all, on each node, and the memory of one in bytes; a node's CPU memory in bytes where it is known.

    slots: GPUs that a node could have. on_cpu: there are none, and ranks are processes on the CPU.
    """

    gpus: int
    per_node: int
    gpu_memory: int | None = None
    cpu_memory: int | None = None
    slots: int = 8
    on_cpu: bool = False

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.gpus // self.per_node)


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU (states, activations and logits, buffers, reserve), and in each node's CPU memory.

    on_cpu: ranks are processes on the CPU, and what a GPU would hold is in the node's memory.
    """

    states: States
    activations: int
    buffers: int
    on_cpu: bool = False

    @property
    def reserve(self) -> int:
        """Bytes on each GPU beside all that is counted."""
        counted = self.states.gpu + self.activations + self.buffers
        fixed, share = (PROCESS, KEPT) if self.on_cpu else (CONTEXT, FRAGMENTS)
        return fixed + int(share * counted)

    @property
    def gpu(self) -> int:
        """Bytes on each GPU."""
        return self.states.gpu + self.activations + self.buffers + self.reserve

    def cpu(self, hardware: Hardware) -> int:
        """Bytes in each node's CPU memory."""
        return self.gpu * hardware.per_node if self.on_cpu else self.states.cpu

    def fits(self, hardware: Hardware) -> bool:
        """Whether it is within the memory that is known."""
        gpu, cpu = hardware.gpu_memory, hardware.cpu_memory
        return (gpu is None or self.gpu <= gpu) and (cpu is None or self.cpu(hardware) <= cpu)


def is_half(config: RunConfig) -> bool:
    """Whether a GPU would compute in 16 bits: bf16 unless it was switched off."""
    return config.optimization.fp16 or config.optimization.bf16 is not False


def need_of(config: RunConfig, shape: Shape, size: Size, hardware: Hardware) -> Need:
    """What a run needs in the worst case: micro-batches of rows that all have max_length tokens. What TRL trains is counted as if
    this project's own loop computed it."""
    o, least = config.optimization, need_without_activations(config, shape, size, hardware)
    dtype = torch.bfloat16 if is_half(config) else torch.float32
    rows, length = o.per_device_train_batch_size, config.model.max_length
    if o.tokens_per_micro_batch:
        rows = -(-o.tokens_per_micro_batch // length)
    if config.preference.method in PAIRED:
        rows *= 2
    recomputed = "all" if config.recomputed == "auto" else config.recomputed
    activations = peak_activations(shape, rows, length, recomputed, dtype, config.lora)
    if not hardware.on_cpu:
        vocabulary = shape.config.get_text_config().vocab_size
        activations += gpu_workspace(vocabulary, int(LEARNED * rows * length), dtype.itemsize)
    return replace(least, activations=activations)


def need_without_activations(config: RunConfig, shape: Shape, size: Size, hardware: Hardware) -> Need:
    """The part of `need_of` that is arithmetic alone."""
    launch, half = config.launch, is_half(config)
    states = model_states(size, half, launch.zero_stage, launch.offload, hardware.gpus, hardware.nodes)
    if config.preference.method in ONLINE:  # a frozen reference and a frozen reward model, of its size
        frozen = frozen_states(size, half, launch.zero_stage, launch.offload, hardware.gpus, hardware.nodes)
        states = States(states.gpu + 2 * frozen.gpu, states.cpu + 2 * frozen.cpu)
    extra = buffers(shape, size, half, launch.zero_stage, hardware.gpus, config.lora.lora_rank)
    return Need(states, 0, extra, hardware.on_cpu)


def fits(config: RunConfig, shape: Shape, size: Size, hardware: Hardware) -> bool:
    """Whether the run's need is within the memory that is known. Activations are watched only where the rest leaves room."""
    return need_without_activations(config, shape, size, hardware).fits(hardware) and need_of(
        config, shape, size, hardware
    ).fits(hardware)


def settle_recomputing(config: RunConfig, shape: Shape, size: Size, hardware: Hardware) -> RunConfig:
    """The configuration with `--gradient_checkpointing auto` replaced by the fastest value that fits a GPU: False, some, True.

    True where no GPU's memory is known. FILLED leaves room for what a plan cannot see.
    """
    if config.recomputed != "auto":
        return config
    choices = ("False", "some") if hardware.gpu_memory else ()
    for value in choices:
        settled = with_flags(config, {"gradient_checkpointing": value})
        if need_of(settled, shape, size, hardware).gpu <= FILLED * (hardware.gpu_memory or 0):
            return settled
    return with_flags(config, {"gradient_checkpointing": "True"})


def recomputing_line(config: RunConfig, settled: RunConfig) -> str:
    """What is recomputed, and who chose it."""
    layers = {"none": "no layer", "some": "every second layer", "all": "every layer"}[settled.recomputed]
    chosen = (
        ": the fastest that fits; the original's launcher recomputes every one" if config.recomputed == "auto" else ""
    )
    value = settled.optimization.gradient_checkpointing
    return f"activations are recomputed in {layers} (--gradient_checkpointing {value}{chosen})"


def changes(config: RunConfig) -> Iterator[dict[str, object]]:
    """Flags that need less memory, those that cost least first."""
    o, launch = config.optimization, config.launch
    if config.recomputed == "none":
        yield {"gradient_checkpointing": "some"}
    if config.recomputed in ("none", "some"):
        yield {"gradient_checkpointing": "True"}
    if launch.zero_stage < 3:
        yield {"zero_stage": 3}
    tokens = o.tokens_per_micro_batch or o.per_device_train_batch_size * config.model.max_length
    while tokens > config.model.max_length:
        tokens = max(tokens // 2, config.model.max_length)
        yield {"tokens_per_micro_batch": tokens}
    if launch.offload == "none":
        yield {"offload": "optimizer"}
    if launch.offload != "all":
        yield {"offload": "all"}


def with_flags(config: RunConfig, flags: dict[str, object]) -> RunConfig:
    """The configuration with these flags of its recipe and its launch."""
    launch = {k: v for k, v in flags.items() if hasattr(config.launch, k)}
    recipe = {k: v for k, v in flags.items() if k not in launch}
    optimization = replace(config.optimization, **recipe)  # type: ignore[arg-type]
    return replace(config, optimization=optimization, launch=replace(config.launch, **launch))  # type: ignore[arg-type]


def smallest_change(config: RunConfig, shape: Shape, size: Size, hardware: Hardware) -> dict[str, object] | None:
    """The fewest and cheapest flags with which it fits, else the fewest GPUs (beyond one node, whole nodes); None: nothing."""
    singles = list(changes(config))
    for count in (1, 2, 3):
        for several in itertools.combinations(singles, count):
            names = [name for flags in several for name in flags]
            if len(set(names)) < len(names):
                continue
            flags = {name: value for one in several for name, value in one.items()}
            changed = with_flags(config, flags)
            if changed.launch.offload == "all" and changed.launch.zero_stage < 3:
                continue
            if fits(changed, shape, size, hardware):
                return flags
    node = hardware.per_node if hardware.nodes > 1 else hardware.slots
    for gpus in (*range(hardware.gpus + 1, node), *range(max(node, hardware.gpus // node * node + node), 4096, node)):
        larger = replace(hardware, gpus=gpus, per_node=min(gpus, node))
        if fits(config, shape, size, larger):
            return {"gpus": gpus}
    return None


def readable(number: float) -> str:
    """Bytes for a reader."""
    return f"{number / GB:,.1f} GB" if number >= GB / 10 else f"{number / 1e6:,.1f} MB"


def memory_lines(need: Need, hardware: Hardware) -> list[str]:
    """The need of one GPU, or of one rank on a CPU, part by part."""
    room = f" of {readable(hardware.gpu_memory)}" if hardware.gpu_memory else ""
    reserve = f"{'process' if need.on_cpu else 'context'}, what the allocator keeps (measured)"
    return [
        f"model states (weights, gradients, optimizer)  {readable(need.states.gpu):>10}",
        f"activations and logits (worst micro-batch)    {readable(need.activations):>10}",
        f"DeepSpeed's buffers                           {readable(need.buffers):>10}",
        f"{reserve:<45} {readable(need.reserve):>10}",
        f"{'on each rank (CPU)' if need.on_cpu else 'on each GPU (rank)':<45} {readable(need.gpu):>10}{room}",
        f"CPU memory of each node                       {readable(need.cpu(hardware)):>10}",
    ]


def one_gpu_line(config: RunConfig, gpus: int) -> list[str]:
    """A word on ZeRO-3 where there is nothing to split. (Figures: tests/acceptance/README.md.)"""
    if gpus > 1 or config.launch.zero_stage < 3 or config.launch.offload != "none" or config.launch.device == "cpu":
        return []
    return [
        "on one GPU ZeRO-3 splits nothing and waits for the device at every layer: --zero_stage 1 takes the same memory and "
        "was 1.9 times as fast (Gemma-2B on an H100); the updates are the same"
    ]


def fit_lines(config: RunConfig, shape: Shape, size: Size, hardware: Hardware, need: Need) -> list[str]:
    """Whether it fits, and else the smallest change with which it does."""
    if need.fits(hardware):
        return ["it fits"]
    change = smallest_change(config, shape, size, hardware)
    if change is None:
        return ["it does not fit, and none of these flags and no number of GPUs makes it: take larger GPUs"]
    gpus = int(str(change.get("gpus", hardware.gpus)))
    larger = replace(hardware, gpus=gpus, per_node=min(gpus, hardware.slots) if "gpus" in change else hardware.per_node)
    config = with_flags(config, {k: v for k, v in change.items() if k != "gpus"})
    then = need_of(config, shape, size, larger)
    flags = " ".join(f"--{name} {value}" for name, value in change.items())
    lines = [
        f"it does not fit. It does with {flags}: {readable(then.gpu)} on each GPU, {readable(then.cpu(larger))} CPU memory a node"
    ]
    if "gpus" in change:
        lines.append("  (with --records_per_update as it is, the updates stay the same)")
    return lines
