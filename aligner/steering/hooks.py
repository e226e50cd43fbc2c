"""Plain forward hooks on a model's decoder layers: what the residual stream holds behind each (reading), and a vector added to it
(control), as in the paper's section 3.4 and appendix B.6, which follow Zou et al. 2023 (RepE).

    R(M, x)[l]               `read`: the states behind layer l, of which a caller keeps what it needs and nothing else
    M' = M + alpha V_c       `steer`: alpha times the residual's norm times a unit vector, at every position behind one layer

A vector that depends on no other position leaves decoding as it is: a token that is read beside drafts, in a batch or from a cache
has the same states as by itself. So drafts are verified by the steered model, and no code of decoding knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from aligner.records import UserError

TRIED = list(range(3, 12))  # ids of a row that shows which modules are the decoder layers
Sink = Callable[[int, torch.Tensor], None]


def states_of(output: Any) -> torch.Tensor:
    """The hidden states in what a layer returns: a tensor in transformers 5, the first of a tuple in older and foreign code."""
    states: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return states


def with_states(output: Any, states: torch.Tensor) -> Any:
    """What a layer returns, with other hidden states."""
    if not isinstance(output, tuple | list):
        return states
    made = getattr(output, "_make", type(output))  # of a named tuple
    return made((states, *output[1:]))


@torch.inference_mode()
def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """A model's decoder layers, first to last, found by trial whatever a family calls them: of all lists of modules the longest
    whose members each return states of the model's width for every token of a short row, plain projections aside. UserError where
    there is none: the layers return something else, such as several streams of states."""
    ids_1L = torch.tensor([TRIED], device=model.device)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    returned: dict[nn.Module, Any] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        with suppress(LookupError, AttributeError):
            returned[module] = states_of(output).shape

    members = {member for each in lists for member in each}
    handles = [member.register_forward_hook(note) for member in members]
    try:
        model(input_ids=ids_1L, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    shape = (1, len(TRIED), width_of(model))
    layers = [
        list(each) for each in lists if all(returned.get(m) == shape and not isinstance(m, nn.Linear) for m in each)
    ]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no list of layers that return its hidden states: it cannot be read or steered."
        )
    return max(layers, key=len)


def width_of(model: PreTrainedModel) -> int:
    """The numbers in a state of the residual stream."""
    embedded = model.get_input_embeddings().weight.shape[-1]  # type: ignore[index]
    return int(getattr(model.config.get_text_config(), "hidden_size", embedded))


def without_head(model: PreTrainedModel) -> Any:
    """The model below its head: nobody reads logits over a whole vocabulary here."""
    return model.base_model


@contextmanager
def read(layers: Sequence[nn.Module], sink: Sink) -> Iterator[None]:
    """Give `sink(layer, states_BLH)` what each layer returns, as forward passes reach it. Nothing is kept here: memory holds one
    layer's states at a time."""
    handles = [
        layer.register_forward_hook(lambda _, __, output, number=number: sink(number, states_of(output).detach()))
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def steer(layer: nn.Module, vector_H: torch.Tensor) -> Any:
    """Add a vector to the states behind a layer, at every position, until the handle that is returned is removed."""

    def add(_: nn.Module, __: Any, output: Any) -> Any:
        states = states_of(output)
        return with_states(output, states + vector_H.to(states.device, states.dtype))

    return layer.register_forward_hook(add)
