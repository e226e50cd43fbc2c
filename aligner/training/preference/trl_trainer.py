"""Flags -> TRL's own configuration and trainer. The one file that knows TRL.

Its trainers take text and tokenise it; here they are given ids, so that they see what this project trains and asks with.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from transformers import PrinterCallback

from aligner.console import has_terminal
from aligner.models import load_config
from aligner.records import UserError
from aligner.training.config import RunConfig
from aligner.training.distributed.hardware import gpus_here
from aligner.training.engine.zero import CLIP, deepspeed_config
from aligner.training.preference.rows import Row
from aligner.training.preference_config import ONLINE
from aligner.training.stages import Stage

CHECKPOINTS = "checkpoints"  # TRL's, in the output folder
NAMES = {"dpo": "DPO", "kto": "KTO", "reward": "Reward", "rloo": "RLOO", "grpo": "GRPO"}


def trl_configuration(config: RunConfig, stage: Stage, ranks: int) -> Any:
    """TRL's configuration of a run. UserError where its batch holds no whole group of drawn answers."""
    import trl

    o, p = stage.optimization, config.preference
    kind = getattr(trl, f"{NAMES[p.method]}Config")
    given = {name: value for name in _flags_of(p.method) if (value := getattr(p, name)) is not None}
    if p.method in ("dpo", "kto"):
        given |= {"precompute_ref_log_probs": True}  # no second model beside the trained one
    if p.method in ("dpo", "kto", "reward"):
        given |= {"max_length": config.model.max_length, "disable_dropout": True}
    if p.sft_weight:
        given |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, p.sft_weight]}
    if p.method in ONLINE:
        given |= {"ds3_gather_for_generation": True}  # or each token would gather every layer (trl#3858)
        _check_groups(config, given.get("num_generations") or kind.num_generations, ranks)
    return kind(
        output_dir=str(stage.folder / CHECKPOINTS),
        num_train_epochs=o.epochs,
        per_device_train_batch_size=o.per_device_train_batch_size,
        gradient_accumulation_steps=o.gradient_accumulation_steps,
        learning_rate=o.lr,
        lr_scheduler_type=o.lr_scheduler_type,
        warmup_steps=o.lr_warmup_ratio,  # below 1 it is a share
        weight_decay=o.weight_decay,
        adam_beta2=0.95,  # as in this project's own loop
        max_grad_norm=CLIP,
        seed=o.seed,
        bf16=bool(o.bf16),
        fp16=o.fp16,
        tf32=o.tf32 or None,
        use_cpu=not gpus_here(),
        gradient_checkpointing=config.recomputed == "all",
        model_init_kwargs={"dtype": "float32"},  # the master weights, which DeepSpeed computes with in 16 bits
        trust_remote_code=config.model.trust_remote_code,
        deepspeed=zero_for_trl(config, stage) if config.launch.zero_stage else None,
        logging_steps=1,
        save_strategy="steps" if config.output.save_interval else "no",
        save_steps=config.output.save_interval or 1,
        save_total_limit=config.output.save_total_limit,
        report_to="none",
        disable_tqdm=not has_terminal(),
        dataloader_pin_memory=gpus_here() > 0,
        **given,
    )


def _flags_of(method: str) -> tuple[str, ...]:
    """The flags of a method that TRL has under the same name."""
    drawn = ("num_generations", "max_completion_length", "temperature") if method in ONLINE else ()
    return (*drawn, *(() if method == "reward" else ("beta",)))


def _check_groups(config: RunConfig, group: int, ranks: int) -> None:
    o = config.optimization
    answers = o.per_device_train_batch_size * o.gradient_accumulation_steps * ranks
    if answers % group:
        raise UserError(
            f"an update has {answers} answers ({o.per_device_train_batch_size} x {o.gradient_accumulation_steps} accumulation x "
            f"{ranks} ranks), which are no whole groups of {group} to a question. Give another --num_generations."
        )


def zero_for_trl(config: RunConfig, stage: Stage) -> dict[str, Any]:
    """This project's ZeRO settings as transformers' trainer takes them: it knows the batch, and gathers whole weights to save."""
    model = load_config(stage.start_from, config.model.trust_remote_code)
    settings = deepspeed_config(stage.optimization, config.launch, model)
    o = stage.optimization
    settings |= {
        "train_micro_batch_size_per_gpu": o.per_device_train_batch_size,
        "gradient_accumulation_steps": o.gradient_accumulation_steps,
    }
    if config.launch.zero_stage == 3:  # without it TRL saves a folder without weights, and says nothing
        settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return settings


def write_rows(rows: Sequence[Row], folder: Path) -> None:
    """Rows in a file that all ranks map: reference log-probabilities are kept beside it, by whichever rank computed them."""
    Dataset.from_list(list(rows)).save_to_disk(str(folder))


def build_trainer(
    config: RunConfig, stage: Stage, ranks: int, rows: Path, tokenizer: Any, callbacks: Sequence[Any]
) -> Any:
    """TRL's trainer of a run, with the model it starts from. Called by all ranks."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL tells its authors which trainer runs
    os.environ.setdefault("TQDM_DISABLE", "" if has_terminal() else "1")
    import trl

    method = config.preference.method
    dataset: Any = load_from_disk(str(rows))
    kind = getattr(trl, f"{NAMES[method]}Trainer")
    more: dict[str, Any] = {}
    if method in ONLINE:
        ids = dict(zip(dataset["prompt"], dataset["prompt_ids"], strict=True))
        dataset = dataset.remove_columns("prompt_ids")
        kind = _taking(kind, _tokenize_prompts=partial(_known_ids, ids))
        more["reward_funcs"] = config.preference.reward_model
    else:
        kind = _taking(kind, _prepare_dataset=lambda dataset, *rest, **named: dataset)
    trainer = kind(
        model=stage.start_from,
        args=trl_configuration(config, stage, ranks),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        **more,
    )
    trainer.remove_callback(PrinterCallback)  # the run has a log of its own
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)  # whose accumulation holds, which is the same
    return trainer


def _known_ids(ids: Mapping[str, list[int]], prompts: Sequence[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
    """What TRL's online trainers make of prompts: ids, images, and what else a model of images takes."""
    return [ids[prompt] for prompt in prompts], None, {}


def _taking(trainer: type, **methods: Any) -> type:
    """The trainer, with functions in the place of its own methods that tokenise."""
    return type(trainer.__name__, (trainer,), {name: staticmethod(method) for name, method in methods.items()})
