"""The plan of a run on the machine that this process is on."""

from __future__ import annotations

import logging

from aligner.training.config import RunConfig
from aligner.training.distributed.hardware import gpu_memory, gpus_here
from aligner.training.planning.memory import size_of
from aligner.training.planning.memory_plan import Hardware, settle_recomputing
from aligner.training.planning.shapes import shape_of_model

log = logging.getLogger("aligner")


def settled_recomputing(config: RunConfig, ranks: int) -> str:
    """The value of `--gradient_checkpointing` with auto settled for the GPUs here.

    True, which needs the least memory, on a CPU and where the plan cannot be made: a plan is no reason to end a run.
    """
    if config.recomputed != "auto":
        return config.optimization.gradient_checkpointing
    memory = gpu_memory()
    if memory is None:
        return "True"
    hardware = Hardware(ranks, min(ranks, gpus_here()), memory)
    try:
        shape = shape_of_model(config.model.model_name_or_path or "", config.model.trust_remote_code)
        return settle_recomputing(
            config, shape, size_of(shape, config.lora), hardware
        ).optimization.gradient_checkpointing
    except Exception as error:  # whatever a model's code does with tensors that have no content
        log.warning(
            "its memory cannot be planned (%s): every layer is recomputed. --gradient_checkpointing decides", error
        )
        return "True"
