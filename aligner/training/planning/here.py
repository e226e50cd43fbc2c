"""The plan of a run on the machine that this process is on."""

from __future__ import annotations

from aligner.training.config import RunConfig
from aligner.training.distributed.hardware import gpu_memory, gpus_here
from aligner.training.planning.memory import size_of
from aligner.training.planning.memory_plan import Hardware, settle_recomputing
from aligner.training.planning.shapes import shape_of_model


def settled_recomputing(config: RunConfig, ranks: int) -> str:
    """The value of `--gradient_checkpointing` with auto settled for the GPUs here; on a CPU every layer is recomputed."""
    memory = gpu_memory()
    if config.recomputed != "auto" or memory is None:
        return "True" if config.recomputed == "auto" else config.optimization.gradient_checkpointing
    shape = shape_of_model(config.model.model_name_or_path or "", config.model.trust_remote_code)
    settled = settle_recomputing(config, shape, size_of(shape), Hardware(ranks, min(ranks, gpus_here()), memory))
    return settled.optimization.gradient_checkpointing
