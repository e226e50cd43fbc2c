"""From a configuration to an engine: the model, split over the ranks, and how rows are laid into its micro-batches."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from aligner.models import fit_embedding, freeze_as_built, load_config, load_model
from aligner.quantised import packing, unpacking
from aligner.records import UserError
from aligner.training.config import LoraConfig, RunConfig
from aligner.training.distributed.hardware import dtype_of
from aligner.training.distributed.ranks import Ranks
from aligner.training.engine.adapters import add_adapters
from aligner.training.engine.attention import FAMILIES, supports
from aligner.training.engine.batching import Layout
from aligner.training.engine.engine import Engine, load_partitioned, numel
from aligner.training.engine.recompute import recompute_activations
from aligner.training.engine.rotations import rotation_border
from aligner.training.engine.zero import deepspeed_config
from aligner.training.plan import Plan
from aligner.training.stages import Stage

log = logging.getLogger("aligner")


def build_engine(config: RunConfig, stage: Stage, plan: Plan, ranks: Ranks, tokenizer: Any) -> Engine:
    """The model that a stage starts from, split over the ranks, behind an engine. Called by all ranks."""
    o, trusted = stage.optimization, config.model.trust_remote_code
    ds_config = deepspeed_config(o, config.launch, load_config(stage.start_from, trusted), config.lora.lora_rank)
    torch.manual_seed(o.seed)  # of rows that the embedding may be given for new tokens
    quarter = config.lora.lora_4bit
    packed = (
        packing(stage.start_from, dtype_of(config), ranks.device, trusted)
        if quarter
        else unpacking(stage.start_from, trusted)
    )
    if packed and not quarter:
        log.info("  %s is quantised: it is unpacked, and trained and written in full", stage.start_from)
    load = partial(load_model, stage.start_from, dtype_of(config), trusted, **packed)
    grow = partial(prepare, tokenizer=tokenizer, lora=config.lora, stage=stage)
    model = load_partitioned(ds_config, load, grow, whole_first=bool(packed))
    freeze_as_built(model)
    recompute_activations(model, config.recomputed)
    if o.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    flat = supports(model)
    if ranks.first and not flat:
        kind, families = model.config.get_text_config().model_type, ", ".join(FAMILIES)
        log.info("  rows are padded: %s is not among the models trained without padding (%s)", kind, families)
    return Engine(model, ds_config, o, plan, flat, ranks)


def prepare(model: PreTrainedModel, tokenizer: Any, lora: LoraConfig, stage: Stage) -> None:
    """Fit the embedding to the tokenizer, or give the model its adapters. UserError where new tokens meet LoRA."""
    if not lora.lora_rank:
        return fit_embedding(model, tokenizer)
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"{stage.start_from}: its tokenizer has {len(tokenizer) - rows} tokens for which the model has no row, and LoRA "
            "does not train the embedding. Leave --lora_rank out."
        )
    return add_adapters(model, lora, stage.optimization.seed, stage.adapters_from)


def layouts(config: RunConfig, engine: Engine, pad: int, longest: int) -> tuple[Layout, Layout]:
    """How rows are laid into micro-batches in training and in evaluation. longest: tokens of the longest row of both.

    A flattened micro-batch holds at most what a padded one of per_device_train_batch_size rows would at worst.
    """
    o, length = config.optimization, longest
    model, flat = engine.model, engine.flat
    ends = {id(m.weight): numel(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}  # type: ignore[arg-type]
    head = max(ends.values())
    body = sum(map(numel, model.parameters())) - sum(ends.values())
    train_rows, eval_rows = o.per_device_train_batch_size, config.data.per_device_eval_batch_size
    most_tokens = o.tokens_per_micro_batch or train_rows * length
    target_cost = head / max(1, body)
    border = rotation_border(model.config)
    train_layout = Layout(flat, train_rows, most_tokens, pad, target_cost, border)
    return train_layout, Layout(flat, eval_rows, eval_rows * length, pad, target_cost, border)
