"""DeepSpeed's configuration, and ZeRO-3's limits from the model: what a rank may hold whole at once, and what
it fetches ahead."""

from __future__ import annotations

from typing import Any

from aligner.training.config import LaunchConfig, OptimizationConfig

CLIP = 1.0  # the original's gradient clipping
LIVE, PREFETCH = 1_000_000_000, 50_000_000  # DeepSpeed's defaults
BUCKET = (
    500_000_000  # gradients that DeepSpeed reduces at once, by default; it allocates them whatever the model's size
)


def deepspeed_config(
    optimization: OptimizationConfig, launch: LaunchConfig, model: Any, rank: int | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration of a run of a model with this configuration. Batch sizes are 1: batching.py plans the updates.

    rank: of LoRA adapters, where they alone are trained.
    """
    offload = launch.offload
    bucket = reduce_bucket(model.get_text_config(), rank)
    zero: dict[str, Any] = {"stage": launch.zero_stage, "reduce_bucket_size": bucket}
    if offload in ("optimizer", "all"):
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload in ("parameter", "all"):
        zero["offload_param"] = {"device": "cpu"}
    if launch.zero_stage == 3:
        zero |= zero3_limits(model.get_text_config())
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": CLIP,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if optimization.bf16:
        config["bf16"] = {"enabled": True}
        if launch.zero_stage:  # at stage 0 DeepSpeed accumulates in bf16 or not at all
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif optimization.fp16:
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    return config


def inner_size(text: Any) -> int:
    """The width of the MLP."""
    inner = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", 4 * text.hidden_size)
    return int(max(inner) if isinstance(inner, list | tuple) else inner)  # one for each layer


def layer_size(text: Any) -> int:
    """About the parameters of a decoder layer: four attention matrices and three of the MLP."""
    return 4 * text.hidden_size * text.hidden_size + 3 * text.hidden_size * inner_size(text)


def reduce_bucket(text: Any, rank: int | None = None) -> int:
    """Numbers in DeepSpeed's gradient bucket: its default, or about all that is trained where that is known to be smaller.

    rank: of LoRA adapters, where they alone are trained; a matrix has as many numbers as its two sides times the rank.
    """
    layers = getattr(text, "num_hidden_layers", None)  # a model of several parts may count the layers of each
    if not layers:
        return BUCKET
    if rank:
        return min(BUCKET, layers * rank * (11 * text.hidden_size + 3 * inner_size(text)))
    return min(BUCKET, layers * layer_size(text) + 2 * text.hidden_size * text.vocab_size)


def zero3_limits(text: Any) -> dict[str, int]:
    """Limits for a model with this text configuration. (The original's are below one matrix of a 7B model.)

    Norms and biases are never split; a whole decoder layer is fetched ahead; the largest matrix and two layers may be whole
    at once.
    """
    hidden, layer = text.hidden_size, layer_size(text)
    return {
        "stage3_param_persistence_threshold": 10 * hidden,
        "stage3_prefetch_bucket_size": max(PREFETCH, layer),
        "stage3_max_live_parameters": max(LIVE, hidden * text.vocab_size + 2 * layer),
    }
