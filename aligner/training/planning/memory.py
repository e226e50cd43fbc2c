"""What a rank's memory holds: model states by DeepSpeed's own account, activations by watching the real code run weightless.

A model is built without weights, and one forward and backward pass is run with tensors that have a shape and no content;
the most bytes that live at once are counted. So the figure follows the model's and this project's code, whatever they are.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from aligner.records import Origin
from aligner.training.config import LoraConfig
from aligner.training.datasets.supervised import Tokens
from aligner.training.engine.adapters import add_adapters
from aligner.training.engine.attention import supports
from aligner.training.engine.batching import Layout, MicroBatch, collate
from aligner.training.engine.head_loss import CPU_WORKSPACE, WORKSPACE
from aligner.training.engine.objective import Objective
from aligner.training.engine.recompute import checkpointed_layers, recompute_activations
from aligner.training.engine.zero import reduce_bucket, zero3_limits
from aligner.training.planning.shapes import Shape

LEARNED = 0.5  # share of a row's tokens that are learned; 0.46 in 2,415 published rows (question, answer, correction)
PACKED = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # bytes of a weight in NF4 with quantised scales (QLoRA, section 3)
HOST_FACTOR = 1.5  # DeepSpeed's own allowance for buffers in CPU memory


@dataclass(frozen=True)
class Size:
    """Parameters of a model (shared ones once), of its largest layer, of the LoRA adapters that are trained in its place, and
    those of the model that are held in 4 bits then."""

    parameters: int
    largest_layer: int
    adapters: int = 0
    packed: int = 0


@dataclass(frozen=True)
class States:
    """Bytes of weights, gradients and optimizer: on each GPU, and in the CPU memory of each node."""

    gpu: int
    cpu: int


def weightless(shape: Shape, dtype: torch.dtype) -> Any:
    """The model with shapes and no content."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(shape.config), dtype=dtype)
    model.tie_weights()
    return model


def size_of(shape: Shape, lora: LoraConfig | None = None) -> Size:
    """Count a model's parameters, and its adapters', without building its weights."""
    model = weightless(shape, torch.bfloat16)
    layers = (sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    size = Size(sum(p.numel() for p in model.parameters()), max(layers))
    if lora is None or not lora.lora_rank:
        return size
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()]
    packed = sum(m.weight.numel() for m in linear) if lora.lora_4bit else 0
    add_adapters(model, lora, seed=0)
    return replace(size, adapters=sum(p.numel() for p in model.parameters() if p.requires_grad), packed=packed)


def model_states(size: Size, half: bool, stage: int, offload: str, gpus: int, nodes: int) -> States:
    """Model states of a rank. Stages 2 and 3 in 16 bit follow DeepSpeed's estimate_zero{2,3}_model_states_mem_needs.

    In 16 bit a parameter is 2 bytes of weight, 2 + 4 of gradient, 4 of master weight, 8 of Adam; in 32 bit 4 of weight,
    4 of gradient, 4 of DeepSpeed's copy (not at stage 0), 8 of Adam. Stage 1 splits copy and Adam, 2 also the gradients,
    3 also the weights; DeepSpeed's account of stage 3 counts a 16-bit gradient or weight once less. A node's CPU memory
    is what is offloaded, and else what loading takes. With adapters these are alone in all that, beside the model's weights.
    """
    if size.adapters:
        trained = model_states(Size(size.adapters, 0), half, stage, offload, gpus, nodes)
        frozen = frozen_states(size, half, stage, offload, gpus, nodes)
        return States(trained.gpu + frozen.gpu, trained.cpu + frozen.cpu)
    n, weight, gradient, optimizer = size.parameters, (2 if half else 4), (6 if half else 4), 12
    if stage == 3:
        split = 18 if half else 20
        kept = {"none": split, "optimizer": weight, "parameter": split - weight, "all": 0}[offload]
        offloaded = (split - kept) * n // nodes if offload != "none" else 4 * size.largest_layer * (gpus // nodes)
        return States(4 * size.largest_layer + kept * n // gpus, int(offloaded * HOST_FACTOR))
    if stage == 2 and offload == "optimizer":
        return States(weight * n, int(n * max(4 * gpus, 16) * HOST_FACTOR))
    whole = {0: weight + gradient + (12 if half else 8), 1: weight + gradient, 2: weight}[stage]
    shared = {0: 0, 1: optimizer, 2: optimizer + gradient}[stage]
    if offload == "optimizer":
        return States(whole * n, int(n * max(4 * gpus, 16) * HOST_FACTOR))
    return States(whole * n + shared * n // gpus, int(4 * n * (gpus // nodes) * HOST_FACTOR))


def frozen_states(size: Size, half: bool, stage: int, offload: str, gpus: int, nodes: int) -> States:
    """Weights that nothing trains: no gradient, no master, no optimizer. Stage 3 splits them, or has them in CPU memory."""
    width, loading = (2 if half else 4), 4 * (gpus // nodes)
    weights = width * (size.parameters - size.packed) + int(PACKED * size.packed)
    weights += width * size.largest_layer if size.packed else 0  # one is unpacked to be computed with
    if stage < 3:
        return States(weights, int(loading * size.parameters * HOST_FACTOR))
    gathered = 4 * size.largest_layer
    if offload in ("parameter", "all"):
        return States(gathered, int(weights // nodes * HOST_FACTOR))
    return States(gathered + weights // gpus, int(loading * size.largest_layer * HOST_FACTOR))


def buffers(shape: Shape, size: Size, half: bool, stage: int, gpus: int, rank: int | None = None) -> int:
    """Bytes of DeepSpeed's own buffers: the reduce bucket, and at stage 3 the gathered weights. rank: of adapters."""
    width = 2 if half else 4
    text = shape.config.get_text_config()
    limit = zero3_limits(text)["stage3_max_live_parameters"]
    live = min(limit, size.parameters) if stage == 3 and gpus > 1 else 0
    return width * ((reduce_bucket(text, rank) if stage else 0) + live)


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations allocate, while they live."""

    def __init__(self, counted: list[torch.Tensor]) -> None:
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in counted}
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, storage._cdata)

    def _release(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@lru_cache(maxsize=64)
def peak_activations(
    shape: Shape, rows: int, length: int, recomputed: str, dtype: torch.dtype, lora: LoraConfig | None = None
) -> int:
    """The most bytes that a forward and backward pass over (rows x length) tokens holds besides the model states.

    Activations, logits, and one weight's gradient before it is handed on. Learned tokens: LEARNED of all. Of many equal layers
    a few are run, and the rest are as many bytes each, where two more layers added as much as two more before them.
    """

    def peak(count: int | None) -> int:
        model = weightless(shape, dtype)
        if count is not None:
            del equal_layers(model)[count:]
        return _peak(model, rows, length, recomputed, lora)

    count = len(equal_layers(weightless(shape, dtype)))
    few = [4 + count % 2 + more for more in (0, 2, 4)]  # even or odd as all of them: `some` recomputes every second one
    if count <= sum(few):
        return peak(None)
    first, second, third = map(peak, few)
    return third + (third - second) // 2 * (count - few[-1]) if third - second == second - first else peak(None)


def equal_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The decoder layers of a model, where they differ in nothing but their number; else none."""
    layers = checkpointed_layers(model)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and list(module) == layers:
            return module if all(_kind(layer) == _kind(layers[0]) for layer in layers) else torch.nn.ModuleList()
    return torch.nn.ModuleList()


def _kind(layer: torch.nn.Module) -> object:
    """All that decides what a layer computes: its modules' classes and plain attributes, and its weights' shapes."""
    modules = [
        (name, type(m), {k: v for k, v in vars(m).items() if k != "layer_idx" and isinstance(v, int | float | str)})
        for name, m in layer.named_modules()
    ]
    return modules, [(name, p.shape) for name, p in layer.named_parameters()]


def _peak(model: Any, rows: int, length: int, recomputed: str, lora: LoraConfig | None) -> int:
    """`peak_activations` of this very model."""
    if lora is not None and lora.lora_rank:
        add_adapters(model, lora, seed=0)
    recompute_activations(model, recomputed)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu").train()
        model.tie_weights()
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.register_post_accumulate_grad_hook(_hand_on)
        flat = supports(model)
        batch = worst_batch(rows, length, flat)
        inputs = [value for value in (getattr(batch, f.name) for f in fields(batch)) if isinstance(value, torch.Tensor)]
        live = _Live([*model.parameters(), *model.buffers(), *inputs])
        with live:
            Objective(model, flat)(batch).backward()
    return live.peak


def gpu_workspace(vocabulary: int, targets: int, itemsize: int) -> int:
    """Bytes of logits that a GPU's larger pieces of the head hold at once beyond the CPU's, which `peak_activations` sees: in
    fp32, and twice in the type of the head."""
    numbers = min(WORKSPACE, 4 * vocabulary * targets) // 4
    return max(0, numbers * (4 + 2 * itemsize) - 2 * CPU_WORKSPACE)


def worst_batch(rows: int, length: int, flat: bool) -> MicroBatch:
    """A micro-batch of rows that all have this length, of which LEARNED is learned; its ids are all 0."""
    row = Tokens(np.zeros(length, dtype=np.int32), int(length * (1 - LEARNED)), Origin("worst", 0), False, False)
    return collate([row] * rows, [1.0] * rows, Layout(flat, rows, rows * length, 0))


def _hand_on(parameter: torch.Tensor) -> None:
    parameter.grad = None  # as ZeRO does with each gradient at once
