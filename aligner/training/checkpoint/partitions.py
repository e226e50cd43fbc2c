"""Where DeepSpeed keeps the fp32 weights and AdamW's moments of each parameter on this rank, at every ZeRO stage.

At stages 1 to 3 a rank has a few flat fp32 tensors, each holding a run of numbers of many parameters; at stage 0 every
parameter is whole on every rank. Said as pieces, all four are alike, and a state saved by some ranks can be read by others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from aligner.training.checkpoint.tensor_index import Piece
from aligner.training.engine.engine import Engine, numel

MOMENTS = ("exp_avg", "exp_avg_sq")


def flat_tensors(engine: Engine) -> list[torch.Tensor]:
    """This rank's fp32 master weights: the tensors that AdamW updates."""
    outer = engine.deepspeed.optimizer
    if engine.stage == 3:
        return list(outer.fp32_partitioned_groups_flat)
    if engine.stage:  # in bf16 stage 1 has an optimizer of its own
        partition = getattr(outer, "fp32_groups_flat_partition", None)
        return list(partition if partition is not None else outer.single_partition_of_fp32_groups)
    return [parameter for group in outer.param_groups for parameter in group["params"]]


def pieces(engine: Engine) -> list[Piece]:
    """Which numbers of which parameter are where in `flat_tensors`. At stage 0 all ranks have the same."""
    names = {id(parameter): name for name, parameter in engine.model.named_parameters()}
    find = {0: _whole, 1: _fragments, 2: _fragments, 3: _shards}[engine.stage]
    return [Piece(names[id(parameter)], *place) for parameter, *place in find(engine)]


def _whole(engine: Engine) -> Iterator[tuple[Any, int, int, int, int]]:
    outer = engine.deepspeed.optimizer
    groups = getattr(outer, "fp16_groups", None) or [group["params"] for group in outer.param_groups]
    for flat, parameter in enumerate(parameter for group in groups for parameter in group):
        yield parameter, 0, parameter.numel(), flat, 0


def _fragments(engine: Engine) -> Iterator[tuple[Any, int, int, int, int]]:
    outer = engine.deepspeed.optimizer
    for flat, group in enumerate(getattr(outer, "bf16_groups", None) or outer.bit16_groups):
        for parameter in group:
            if (mapping := parameter._hp_mapping) is not None:
                own, here = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield parameter, own.start, own.numel, flat, here.start


def _shards(engine: Engine) -> Iterator[tuple[Any, int, int, int, int]]:
    for flat, group in enumerate(engine.deepspeed.optimizer.fp16_groups):
        offset = 0
        for parameter in group:
            share = parameter.ds_tensor.ds_numel  # the same on every rank; the last one's may end in padding
            start = share * engine.ranks.rank
            yield parameter, start, max(0, min(share, numel(parameter) - start)), flat, offset
            offset += share


def moments(engine: Engine, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's moments of a flat tensor; zeros before its first step."""
    state = engine.optimizer.state[flat]
    if "step" not in state:
        state["step"] = torch.zeros((), device=flat.device)
    for name in MOMENTS:
        if name not in state:
            state[name] = torch.zeros_like(flat)
    return {name: state[name] for name in MOMENTS}


def optimizer_steps(engine: Engine) -> int:
    """AdamW's count of its steps."""
    steps = [state["step"] for state in engine.optimizer.state.values() if "step" in state]
    return int(steps[0]) if steps else 0


def set_optimizer_steps(engine: Engine, count: int) -> None:
    """Put AdamW's count back. Each tensor gets one of its own: a shared one would run ahead."""
    for flat in flat_tensors(engine):
        engine.optimizer.state[flat]["step"] = torch.tensor(float(count), device=flat.device)


def refresh_weights(engine: Engine) -> None:
    """Make the weights that the model computes with from the fp32 masters. Called by all ranks."""
    outer = engine.deepspeed.optimizer
    if engine.stage == 3:
        outer.checkpoint_event_prologue()  # releases the parameters that are kept whole
        groups = outer.fp32_partitioned_groups_flat, outer.fp16_partitioned_groups_flat, outer.fp16_partitioned_groups
        for master, shards, own in zip(*groups, strict=True):
            shards.data.copy_(master.data)
            for shard, view in zip(own, outer.unflatten(shards, own), strict=True):
                shard.data = view.data
        outer.checkpoint_event_epilogue()
    elif engine.stage:
        outer.update_lp_params()
    else:
        for group, masters in zip(getattr(outer, "fp16_groups", []), getattr(outer, "fp32_groups", []), strict=True):
            for parameter, master in zip(group, masters, strict=True):
                parameter.data.copy_(master.data)
