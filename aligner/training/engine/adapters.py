"""LoRA (arXiv 2106.09685) through PEFT: two small matrices beside each chosen linear layer, which alone are trained.

A layer gives W x + (alpha / rank) B A x. A is random and B zero, so that a run begins as its base; afterwards the sum is merged
into W. PEFT puts them into the model itself, under names of their own: `q_proj.weight` is `q_proj.base_layer.weight` then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aligner.file_systems import give_usual_mode
from aligner.files import sync
from aligner.records import UserError
from aligner.training.config import LoraConfig
from aligner.training.stages import ADAPTER

ALL = "all-linear"
FILE = "adapter_model.safetensors"
NAME = "default"  # PEFT's, of the one set of adapters

Fetch = Callable[[str], torch.Tensor]


def add_adapters(model: PreTrainedModel, lora: LoraConfig, seed: int, start: Path | None = None) -> None:
    """Put adapters into a model, in its own type, and freeze all else. They follow from the seed alone, at any ZeRO stage and
    on any number of ranks.

    start: the folder of a run's adapters to go on with. UserError where a target is not there, or not to be adapted.
    """
    import peft

    targets = ALL if lora.lora_target == ALL else lora.lora_target.split(",")
    options: dict[str, Any] = {"r": lora.lora_rank, "lora_alpha": lora.alpha, "target_modules": targets}
    settings = peft.LoraConfig(**options, task_type="CAUSAL_LM")
    weightless = next(model.parameters()).is_meta
    dtype = model.dtype
    torch.manual_seed(seed)
    try:
        peft.get_peft_model(model, settings, autocast_adapter_dtype=False, low_cpu_mem_usage=weightless)
    except ValueError as error:
        raise _no_target(model, lora.lora_target) from error
    check_targets(model, lora.lora_target)
    for _, parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.to(dtype)
    if start is not None:
        load_adapters(model, start)


def check_targets(model: PreTrainedModel, target: str) -> None:
    """UserError where a named layer is not there, is no linear one, or is the embedding or the head, which are applied and
    written by themselves."""
    layers = adapted_layers(model)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name in [] if target == ALL else target.split(","):
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            raise _no_target(model, name)
    for name, layer in layers.items():
        if any(layer is end for end in ends) or not isinstance(layer.get_base_layer(), torch.nn.Linear | Conv1D):
            raise UserError(
                f"--lora_target {target}: {name} is no linear layer between embedding and head. Give {ALL}."
            )


def _no_target(model: PreTrainedModel, target: str) -> UserError:
    kinds = (torch.nn.Linear, Conv1D)
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kinds)}
    known = ", ".join(sorted(linear - {"base_layer", "lora_A", "lora_B", NAME, "lm_head"}))
    return UserError(
        f"--lora_target {target}: {type(model).__name__} has no such layer. Give {ALL}, or some of {known}."
    )


def adapted_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether a model has adapters."""
    return bool(adapted_layers(model))


def plain_names(model: torch.nn.Module) -> dict[str, str]:
    """The names of a model's tensors as if it had no adapters, each with the name that it has beside them.

    What bitsandbytes keeps beside a weight of 4 bits (its scales) is none of them.
    """
    packed = tuple(f"{name}." for name, p in model.named_parameters() if hasattr(p, "quant_state"))
    names = (name for name in model.state_dict() if ".lora_" not in name and not name.startswith(packed))
    return {name.replace(".base_layer.", "."): name for name in names}


def adapter_parameters(model: torch.nn.Module) -> dict[str, tuple[str, torch.nn.Parameter]]:
    """By PEFT's name in a file, each adapter's matrix and its name in the model."""
    named = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    return {f"base_model.model.{name.replace(f'.{NAME}.', '.')}": (name, p) for name, p in named.items()}


def merging(model: torch.nn.Module, own: Fetch) -> Fetch:
    """A function that gives the tensors of the model with its adapters merged, by their plain names, out of one that gives
    those that it has. Sums are taken in fp32. Of ranks among which the model is split all but the first get empty ones.
    """
    names, layers = plain_names(model), adapted_layers(model)

    def fetch(name: str) -> torch.Tensor:
        weight = own(names[name])
        place = names[name].removesuffix(".base_layer.weight")
        if place not in layers:
            return weight
        a, b = (own(f"{place}.lora_{side}.{NAME}.weight").float() for side in "AB")
        if not weight.numel():
            return weight
        layer = layers[place]
        delta = layer.scaling[NAME] * (b @ a)
        return (weight.float() + (delta.T if layer.fan_in_fan_out else delta)).to(weight.dtype)

    return fetch


def write_adapters(model: torch.nn.Module, own: Fetch, output: Path | None) -> None:
    """Write a model's adapters, if it has any, as PEFT does: `PeftModel.from_pretrained(base, OUTPUT/adapter)` opens them.

    `own`: gives a tensor by its name in the model. Ranks among which it is split all call this; those without a folder write
    nothing. UserError where it cannot be written.
    """
    tensors = {file_name: own(name).contiguous() for file_name, (name, _) in adapter_parameters(model).items()}
    if output is None or not tensors:
        return
    folder = output / ADAPTER
    settings = copy.copy(vars(model)["peft_config"][NAME])
    settings.inference_mode, settings.target_modules = True, sorted(settings.target_modules)
    try:
        folder.mkdir()
        save_file(tensors, folder / FILE, metadata={"format": "pt"})
        settings.save_pretrained(folder)
        give_usual_mode(folder / FILE)
        sync(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be written ({error}). Make room and run the same command again.") from None


def load_adapters(model: torch.nn.Module, folder: Path) -> None:
    """Give a model's adapters the numbers of a folder. UserError where it has others."""
    try:
        saved = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: its adapters cannot be read ({error}). --resume never trains them anew.") from None
    own = adapter_parameters(model)
    if {name: t.shape for name, t in saved.items()} != {name: p.shape for name, (_, p) in own.items()}:
        raise UserError(f"{folder}: has adapters of another shape than this run's. --resume never trains them anew.")
    with torch.no_grad():
        for name, (_, parameter) in own.items():
            parameter.copy_(saved[name])
