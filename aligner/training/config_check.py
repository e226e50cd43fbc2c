"""Settings that cannot be meant, alone or together: an error before anything is read or started."""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib.util import find_spec

from aligner.records import UserError
from aligner.training.config import OFFLOAD_STAGES, PARTS, LoraConfig, RunConfig
from aligner.training.preference_config import ONLINE, PreferenceConfig

# Flags of this project's own loop, which TRL's trainers do not read.
NOT_OF_TRL = {
    *("eval_datasets", "need_eval", "eval_split_ratio", "eval_strategy", "eval_interval", "per_device_eval_batch_size"),
    *("unspellable", "tokens_per_micro_batch", "records_per_update", "loss_reduction", "on_nonfinite"),
    *("identity_proportion", "identity_epochs", "identity_learning_rate", "equal_proportion", "sentences"),
    *(each.name for each in fields(LoraConfig)),
    *("save_16bit", "export", "save_minutes", "show_corrections", "stage"),
}


def check(config: RunConfig) -> None:
    """UserError where values cannot be meant, alone or together."""
    check_values(config)
    check_combinations(config)
    check_lora(config.lora, config.launch.zero_stage)
    check_preference(config)


def check_values(config: RunConfig) -> None:
    """UserError where a value alone cannot be meant."""
    o, d, output = config.optimization, config.data, config.output
    positive = {
        "max_length": config.model.max_length,
        "epochs": o.epochs,
        "eval_interval": d.eval_interval,
        "per_device_train_batch_size": o.per_device_train_batch_size,
        "per_device_eval_batch_size": d.per_device_eval_batch_size,
        "gradient_accumulation_steps": o.gradient_accumulation_steps,
        "save_total_limit": output.save_total_limit,
        "records_per_update": o.records_per_update,
        "tokens_per_micro_batch": o.tokens_per_micro_batch,
        "identity_epochs": o.identity_epochs,
        "lora_rank": config.lora.lora_rank,
        "lora_alpha": config.lora.lora_alpha,
        "gpus": config.launch.gpus,
    }
    for name, number in positive.items():
        if number is not None and number < 1:
            raise UserError(f"--{name} is {number}: it must be at least 1.")
    for name, number in {"save_interval": output.save_interval, "show_corrections": output.show_corrections}.items():
        if number < 0:
            raise UserError(f"--{name} is {number}: it must be at least 0.")
    shares = {"lr_warmup_ratio": o.lr_warmup_ratio, "identity_proportion": o.identity_proportion}
    shares |= {"equal_proportion": o.equal_proportion}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"--{name} is {share}: it must lie between 0 and 1.")
    if d.eval_split_ratio is not None and not 0 < d.eval_split_ratio < 1:
        raise UserError(f"--eval_split_ratio is {d.eval_split_ratio}: it must lie between 0 and 1.")
    for name, rate in {"lr": o.lr, "identity_learning_rate": o.identity_learning_rate}.items():
        if rate is not None and not 0 < rate < float("inf"):
            raise UserError(f"--{name} is {rate}: it must be above 0.")
    if output.save_minutes is not None and not 0 < output.save_minutes < float("inf"):
        raise UserError(f"--save_minutes is {output.save_minutes}: it must be above 0.")
    if not 0 <= o.weight_decay < float("inf") or o.seed < 0:
        raise UserError("--weight_decay and --seed must be at least 0.")


def check_lora(lora: LoraConfig, stage: int) -> None:
    """UserError where LoRA's flags stand without a rank or at a ZeRO stage not for them."""
    if lora.lora_rank is None:
        if set_alone := [name for name, value in vars(lora).items() if value != getattr(LoraConfig, name)]:
            raise UserError(f"--{set_alone[0]} is for LoRA and needs --lora_rank N.")
    elif lora.lora_4bit and stage == 3:
        raise UserError("--lora_4bit needs --zero_stage 0, 1 or 2: ZeRO-3 cannot split weights of 4 bits.")
    elif not all(lora.lora_target.split(",")):
        raise UserError(
            f"--lora_target '{lora.lora_target}' has an empty name: give all-linear, or names as q_proj,v_proj."
        )


def _changed(config: RunConfig) -> set[str]:
    """The flags that are not as they are by default."""
    return {
        each.name
        for kind, part in zip(PARTS, vars(config).values(), strict=True)
        for each in fields(kind)
        if getattr(part, each.name) != (each.default if each.default is not MISSING else [])
    }


def check_preference(config: RunConfig) -> None:
    """UserError where a flag is not of the method, or its value cannot be meant."""
    p, changed = config.preference, _changed(config)
    for name in ("beta", "sft_weight", "temperature", "num_generations", "max_completion_length"):
        least = {"beta": 0.0, "num_generations": 2, "max_completion_length": 1}.get(name, 1e-6)
        if (value := getattr(p, name)) is not None and not least <= value < float("inf"):
            raise UserError(f"--{name} is {value}: it must be at least {least:g}.")
    own = {each.name for each in fields(PreferenceConfig)} - {"method"}
    read = {"dpo": {"beta", "sft_weight"}, "kto": {"beta"}}.get(p.method, set())
    read = own - {"sft_weight"} if p.method in ONLINE else read
    if wrong := sorted(changed & own - read):
        raise UserError(f"--{wrong[0]} is not for --method {p.method}: leave it out.")
    if p.by_trl and (wrong := sorted(changed & NOT_OF_TRL)):
        raise UserError(
            f"--{wrong[0]} is for --method sft: TRL, which trains {p.method}, does not read it. Leave it out."
        )
    if p.method in ONLINE and not p.reward_model:
        raise UserError(f"--method {p.method} needs --reward_model: train one with --method reward.")
    if p.method == "kto" and config.optimization.per_device_train_batch_size < 2:
        raise UserError(
            "--method kto compares the rows of a micro-batch: --per_device_train_batch_size must be at least 2."
        )
    if p.by_trl and config.recomputed == "some":
        raise UserError("--gradient_checkpointing some is for --method sft: give True or False.")


def check_packages(config: RunConfig) -> None:
    """UserError where a package that the flags need is not installed here."""
    if config.lora.lora_rank and find_spec("peft") is None:
        raise UserError("--lora_rank needs the package peft: pip install 'peft>=0.21'.")
    if config.preference.by_trl and find_spec("trl") is None:
        raise UserError(f"--method {config.preference.method} needs the package trl: pip install 'trl>=1.16,<1.17'.")


def check_combinations(config: RunConfig) -> None:
    """UserError where values exclude each other."""
    o, d, output = config.optimization, config.data, config.output
    if d.eval_datasets and d.eval_split_ratio is not None:
        raise UserError("--eval_datasets and --eval_split_ratio are both given: choose one.")
    if d.need_eval and not d.eval_datasets and d.eval_split_ratio is None:
        raise UserError("--need_eval needs --eval_datasets PATH or --eval_split_ratio SHARE.")
    if output.export == "best" and not config.evaluates:
        raise UserError("--export best needs held-out records: --eval_split_ratio SHARE or --eval_datasets PATH.")
    if config.launch.stage == "identity" and not o.identity_proportion:
        raise UserError("--stage identity needs --identity_proportion SHARE.")
    if config.launch.stage == "equal" and not o.equal_proportion:
        raise UserError("--stage equal needs --equal_proportion SHARE.")
    if o.bf16 and o.fp16:
        raise UserError("--bf16 and --fp16 are both given: choose one.")
    if not output.save_16bit and config.launch.zero_stage == 0 and (o.bf16 or o.fp16):
        raise UserError(
            "--save_16bit False needs ZeRO stage 1, 2 or 3 in a 16-bit run: stage 0 hides its fp32 weights."
        )
    if config.launch.hostfile and config.launch.gpus:
        raise UserError("--hostfile and --gpus are both given: the hostfile's slots are the ranks.")
    if config.launch.launcher_args and not config.launch.hostfile:
        raise UserError("--launcher_args is for several hosts and needs --hostfile.")
    stages = OFFLOAD_STAGES[config.launch.offload]
    if config.launch.zero_stage not in stages:
        valid = " or ".join(filter(None, (", ".join(map(str, stages[:-1])), str(stages[-1]))))
        raise UserError(
            f"--offload {config.launch.offload} works at ZeRO stage {valid}; this run is at {config.launch.zero_stage}."
        )
