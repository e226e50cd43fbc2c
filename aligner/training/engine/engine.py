"""DeepSpeed behind one class: the partitioned model, and whole updates of it.

An update is planned in batching.py, so DeepSpeed's own accumulation is off: for each micro-batch this class sets whether
it is the update's last, passes forward through the engine, and scales the loss by the number of ranks, over which
DeepSpeed averages. Clipping then acts once per update, on the summed gradient.
"""

from __future__ import annotations

import gc
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from aligner.training.distributed.ranks import Ranks  # first: it sets the accelerator of a machine without a GPU

# isort: split
import deepspeed
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from transformers import PreTrainedModel, get_scheduler
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from aligner.records import UserError
from aligner.training.config import OptimizationConfig
from aligner.training.engine.batching import MicroBatch
from aligner.training.engine.objective import Objective
from aligner.training.plan import Plan

BETAS = (0.9, 0.95)  # paper, table 22
log = logging.getLogger("aligner")


def load_partitioned(
    config: dict[str, Any],
    load: Callable[[], PreTrainedModel],
    grow: Callable[[PreTrainedModel], None],
    whole_first: bool = False,
) -> PreTrainedModel:
    """Load a model, then grow it, so that under ZeRO-3 each rank keeps its share alone.

    `whole_first`: every rank loads all of it into its host's memory, and then keeps its share (what is quantised is unpacked
    as a whole). So it is with a model whose code cannot be built in shares, because it reads the shapes of its weights.
    """
    split, reason = config["zero_optimization"]["stage"] == 3, ""
    unset_hf_deepspeed_config()
    if split and not whole_first:
        try:
            return _load_in_shares(config, load, grow)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what is wrong with the folder itself, loading it whole tells again
            reason = " ".join(str(error).split())[:200]
        finally:
            unset_hf_deepspeed_config()
    model = load()
    if reason:
        log.info(
            "  each rank loads the whole model into its host's memory first: it cannot be built in shares (%s)", reason
        )
    grow(model)
    if split:
        deepspeed.zero.Init(module=model, config_dict_or_path=config)
    return model


def _load_in_shares(
    config: dict[str, Any], load: Callable[[], PreTrainedModel], grow: Callable[[PreTrainedModel], None]
) -> PreTrainedModel:
    """Load a model of which no rank ever holds more than its share. AssertionError where one would."""
    partitioning = HfDeepSpeedConfig(config)  # transformers uses it as long as this object lives
    model = load()
    whole = [name for name, parameter in model.named_parameters() if not hasattr(parameter, "ds_id")]
    assert not whole, f"ZeRO-3: {len(whole)} parameters were loaded whole on every rank"
    grow(model)
    del partitioning
    return model


def is_undecayed(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether weight decay leaves a parameter alone: biases, norms, and whatever is no matrix or says so itself (a state
    space's A_log and D, an attention's sinks)."""
    named = "bias" in name or "norm" in name.lower() or "ln_" in name
    return named or len(shape_of(parameter)) < 2 or getattr(parameter, "_no_weight_decay", False) or "A_log" in name


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: biases, norms and their like are not decayed."""
    undecayed: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (undecayed if is_undecayed(name, parameter) else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def fetch_experts_together(model: torch.nn.Module) -> None:
    """Let ZeRO-3 take fused experts for one module. How often their parts run (an activation, an expert that returns what it is
    given) depends on a rank's rows, and DeepSpeed fetches parameters by an order of modules that all ranks must share.
    Nothing more is fetched at once: the parts have no parameters."""
    for module in model.modules():
        own, parts = sum(1 for _ in module.parameters(recurse=False)), sum(1 for _ in module.children())
        if own and parts and own == sum(1 for _ in module.parameters()):
            deepspeed.utils.set_z3_leaf_module(module, True)


class Engine:
    """A DeepSpeed engine for whole updates. Every method is called by all ranks together."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: dict[str, Any],
        o: OptimizationConfig,
        plan: Plan,
        flat: bool,
        ranks: Ranks,
    ) -> None:
        groups = parameter_groups(model, o.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=BETAS, fused=True)
        schedule = get_scheduler(
            o.lr_scheduler_type, optimizer, num_warmup_steps=plan.warmup_updates, num_training_steps=plan.updates
        )
        self.ranks, self.model, self.flat, self.optimizer = ranks, model, flat, optimizer
        if config["zero_optimization"]["stage"] == 3:
            fetch_experts_together(model)
        objective = Objective(model, flat)
        self.deepspeed, _, _, self.schedule = deepspeed.initialize(
            model=objective, optimizer=optimizer, lr_scheduler=schedule, config=config, dist_init_required=False
        )
        self.stage: int = config["zero_optimization"]["stage"]
        if self.stage == 0:
            # In 16 bit DeepSpeed makes an empty step to allocate AdamW's state: its bias correction would run ahead.
            optimizer.state.clear()
        self.scaled = bool(o.fp16)  # fp16's loss scaler expects overflows and skips them itself
        self._nonfinite = torch.zeros((), device=ranks.device)
        trained = [p for p in model.parameters() if p.requires_grad and not self.scaled]
        self._hooks = [parameter.register_hook(self._note_if_nonfinite) for parameter in trained]

    def _note_if_nonfinite(self, gradient: torch.Tensor) -> None:
        """Note, without waiting for the device, whether a gradient is finite (its sum is not, if one entry is not)."""
        self._nonfinite += (~torch.isfinite(gradient.sum(dtype=torch.float32))).float()

    def pad_rows(self) -> None:
        """Take padded micro-batches from here on."""
        self.flat = False
        self.deepspeed.module.set_flat(False)

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """The weighted negative log-likelihood of a micro-batch. Through the engine: under ZeRO-3 nothing else is right."""
        loss: torch.Tensor = self.deepspeed(batch)
        return loss

    def accumulate(
        self, batches: Sequence[MicroBatch], signals: Callable[[], Sequence[bool]] = tuple
    ) -> tuple[float, list[bool]]:
        """Forward and backward over this rank's share of one update. Returns the update's loss over all ranks, and which of
        the `signals`, asked for at its end, hold on any of them.

        Raises FloatingPointError where the loss or a gradient is not finite; the weights are unchanged then.
        """
        self.deepspeed.train()
        self._nonfinite.zero_()
        loss = torch.zeros((), device=self.ranks.device)
        for index, batch in enumerate(batches):
            self.deepspeed.set_gradient_accumulation_boundary(index == len(batches) - 1)
            part = self.forward(batch.to(self.ranks.device))
            self.deepspeed.backward(part * self.ranks.count, scale_wrt_gas=False)
            # Recomputing stops as soon as it has what it needs, and leaves its modules on this stack, two a layer.
            parameter_offload.FWD_MODULE_STACK.clear()
            loss += part.detach()
        own = torch.tensor([float(signal) for signal in signals()], device=self.ranks.device)
        total, nonfinite, *counts = self.ranks.sum(torch.cat([torch.stack([loss, self._nonfinite]), own]))
        if not self.scaled and (nonfinite or not math.isfinite(total)):
            raise FloatingPointError("a gradient is not finite" if math.isfinite(total) else f"the loss is {total}")
        return total, [count > 0 for count in counts]

    def update(self) -> tuple[float, float]:
        """Clip the gradient, step the optimizer, advance the schedule. Returns the learning rate used and the gradient's norm."""
        rate = self.schedule.get_last_lr()[0]
        norm = self._own_norm() if self.stage == 0 and self.deepspeed.get_global_grad_norm() is None else None
        scaled = self.scaled and self.stage == 0  # there the norm is reported of the scaled gradient
        scale = self._scaler().cur_scale if scaled else 1.0
        self.deepspeed.step()
        reported = self.deepspeed.get_global_grad_norm()
        return rate, float(norm if norm is not None else reported) / scale

    def overflowed(self) -> bool:
        """Whether the last gradient was too large for fp16, and the weights were not changed."""
        return self.scaled and bool(self.deepspeed.optimizer.overflow)

    def skip(self) -> None:
        """Discard a gradient that is not finite: the weights and AdamW's moments stay, the schedule advances."""
        if self.stage == 0 and self.deepspeed.optimizer is self.optimizer:
            self.deepspeed.optimizer.zero_grad()
        else:
            self.deepspeed.step()  # it checks the gradient itself, clears it, and changes no weight
            if not self.deepspeed.optimizer.overflow:
                raise UserError("the loss is not finite and the gradient is: this update cannot be skipped.")
        self.schedule.step()

    def restore_schedule(self, steps: int, scaler: dict[str, float]) -> None:
        """Put the learning rate to where it was after so many steps, and fp16's loss scaler to what it was."""
        self.schedule.last_epoch = steps - 1
        self.schedule.step()
        for group, rate in zip(self.deepspeed.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        for name, value in scaler.items():
            setattr(self._scaler(), name, value)

    def scaler_state(self) -> dict[str, float]:
        """The numbers of fp16's loss scaler."""
        if not self.scaled:
            return {}
        numbers = {name: value for name, value in vars(self._scaler()).items() if type(value) in (int, float)}
        return {name: value for name, value in numbers.items() if name.startswith(("cur_", "last_"))}

    def _scaler(self) -> Any:
        """fp16's loss scaler: ZeRO's optimizer has it under another name than stage 0's."""
        outer = self.deepspeed.optimizer
        return getattr(outer, "loss_scale_config", None) or outer.loss_scaler

    def _own_norm(self) -> float:
        """Stage 0 in fp32 reports no norm: every rank holds the whole gradients."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch]) -> float:
        """The summed weighted negative log-likelihood over all ranks."""
        self.deepspeed.eval()
        parts = [self.forward(batch.to(self.ranks.device)).double() for batch in batches]
        return self.ranks.sum(torch.stack(parts).sum(0, keepdim=True))[0]

    def close(self) -> None:
        """Release what DeepSpeed and the hooks hold, so that another engine can follow in this process."""
        for hook in self._hooks:
            hook.remove()
        self.deepspeed.destroy()
        # Two things of ZeRO-3 outlive `destroy` and would hold every model state: a cache on the coordinator's class, and the
        # stack of modules in their forward pass.
        cached: Any = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
        inspect.getclosurevars(cached).nonlocals["func"].cache_clear()
        parameter_offload.FWD_MODULE_STACK.clear()


def seed_dropout(seed: int, update: int, rank: int) -> None:
    """Make dropout a function of (seed, update, rank), so that resuming needs no random state."""
    torch.manual_seed(int(np.random.SeedSequence([seed, update, rank]).generate_state(1)[0]))


def release_memory() -> None:
    """Give back what a closed engine held. Nobody may hold the engine any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gathered(parameters: Sequence[torch.nn.Parameter]) -> Any:
    """A context in which these parameters are whole on every rank, whatever the stage."""
    split = [p for p in parameters if hasattr(p, "ds_id")]
    return deepspeed.zero.GatheredParameters(split, modifier_rank=None, enabled=bool(split))


def full_precision(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A parameter's fp32 master weights, whole on every rank. All ranks call it together."""
    master = deepspeed.utils.safe_get_full_fp32_param(parameter)
    if master is None:
        raise UserError("the fp32 master weights cannot be read at this ZeRO stage. Export with --save_16bit.")
    return master


def numel(parameter: torch.nn.Parameter) -> int:
    """A parameter's numbers in all, also while it is split over ranks."""
    return math.prod(int(size) for size in shape_of(parameter))


def shape_of(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """A parameter's whole shape, also while it is split over ranks."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
