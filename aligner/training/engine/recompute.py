"""Which decoder layers forget their activations and compute them again in the backward pass: all, every second, or none."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_activations(model: PreTrainedModel, layers: str) -> None:
    """Set what a model recomputes. `layers`: all, some (every second decoder layer) or none. Values stay the same, bit for bit."""
    if layers == "none":
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if layers == "some":
        for layer in checkpointed_layers(model)[::2]:
            layer.gradient_checkpointing = False  # type: ignore[assignment]


def checkpointed_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that transformers would recompute, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
