"""The settings of a run: frozen dataclasses whose fields are the flags and the YAML keys.

Defaults are those of the original's launcher where it has the flag. flags.py reads them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from aligner.objectives import FILE as OBJECTIVES
from aligner.training.flag_fields import flag, switch
from aligner.training.preference_config import PreferenceConfig

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")

# What --gradient_checkpointing stands for: which decoder layers are recomputed.
RECOMPUTED = {"auto": "auto", "true": "all", "yes": "all", "some": "some", "false": "none", "no": "none"}


@dataclass(frozen=True)
class ModelConfig:
    """The model to start from and the prompt."""

    _argument_group_name = "model and prompt"
    model_name_or_path: str | None = flag(None, "base model: a folder or a hub id; 'embedded' is the built-in one")
    max_length: int = flag(2048, "longest prompt plus correction, in tokens")
    prompt_template: str | None = flag(
        None,
        "prompt: a known name, chat (the base's own template), question (that, without the answer: for an upstream), or a YAML "
        "file (default: the data's, or 'correction')",
    )
    trust_remote_code: bool = flag(False, "run Python code that comes with the model; off unless you trust it")


@dataclass(frozen=True)
class DataConfig:
    """The records to learn and to hold out."""

    _argument_group_name = "records"
    train_datasets: list[str] = flag(
        [], "paths, or specs NAME[:PROPORTION[:PATH]]; of a bare path the first rows tell the format"
    )
    eval_datasets: list[str] = flag([], "records to evaluate on, same grammar")
    register: list[str] = flag([], "Python files that register further data sets")
    columns: list[str] = flag(
        [],
        "fields of Q-A-C rows that are called otherwise: [DATASET:]question=NAME,answer=NAME,correction=NAME,feedback=NAME",
    )
    prefer: str | None = flag(
        None, "which judgement of pku-saferlhf decides (default: better)", choices=("better", "safer")
    )
    format: str | None = flag(
        None,
        "what the rows of bare paths are (default: found out from the first)",
        choices=("correction-json", "trl", "sharegpt", "alpaca", "messages"),
    )
    multi_turn: bool = flag(False, "take dialogues of several turns, which are left out otherwise")
    pairs: str | None = flag(
        None,
        "of rated answers: a record in both directions, or in the one with more objectives (default: as the data set's authors)",
        choices=("both", "majority"),
    )
    margin: float | None = flag(None, "of rated answers: the least difference of a rating that counts (default: any)")
    pairs_per_question: int | None = flag(None, "of rated answers: most pairs of a question's (default: 6)")
    damage: str | None = flag(None, "kinds of damage of restoration, comma-separated (default: all)")
    hold_back: str | None = flag(
        None, "of restoration, kept out of training: 'phrases' (a quarter of every kind's) and whole kinds"
    )
    objectives_file: str = flag(OBJECTIVES, "file with the sentence of each objective that rows name (NAME: SENTENCE)")
    sentences: bool = flag(
        False,
        "turn each row into a record for each sentence of its answer, behind the corrected ones before it (package sentencex)",
    )
    overlength: str = flag(
        "cut", "a row longer than max_length: cut it, drop it, or stop", choices=("cut", "drop", "error")
    )
    unspellable: str = flag(
        "keep",
        "a correction that the tokenizer cannot spell: keep it, drop it, or stop",
        choices=("keep", "drop", "error"),
    )
    need_eval: bool | None = switch("evaluate (default: when eval_datasets or eval_split_ratio is given)")
    eval_split_ratio: float | None = flag(
        None, "share of the training questions to hold out instead of eval_datasets, 0 to 1"
    )
    eval_strategy: str = flag(
        "epoch", "when to evaluate besides the start and the end", choices=("epoch", "steps", "none")
    )
    eval_interval: int = flag(100, "with eval_strategy steps: updates between two evaluations")
    per_device_eval_batch_size: int = flag(16, "rows per evaluation micro-batch and rank")


@dataclass(frozen=True)
class OptimizationConfig:
    """The recipe: what decides the weights (paper, table 22)."""

    _argument_group_name = "recipe"
    epochs: int = flag(3, "times each record is seen")
    per_device_train_batch_size: int = flag(4, "rows per micro-batch and rank")
    gradient_accumulation_steps: int = flag(8, "micro-batches per update and rank")
    tokens_per_micro_batch: int | None = flag(
        None, "most tokens computed at once on a rank (default: per_device_train_batch_size x max_length)"
    )
    records_per_update: int | None = flag(
        None, "rows per update (default: rows x accumulation x ranks when the run begins)"
    )
    loss_reduction: str = flag(
        "micro_batch",
        "mean over virtual micro-batches (the paper's) or over target tokens",
        choices=("micro_batch", "token"),
    )
    on_nonfinite: str = flag(
        "stop",
        "an update whose loss or gradient is not finite: stop the run, or skip the update",
        choices=("stop", "skip"),
    )
    lr: float = flag(2e-5, "peak learning rate of AdamW (0.9, 0.95)", short="--learning_rate")
    lr_scheduler_type: str = flag("cosine", "learning-rate schedule", choices=SCHEDULES)
    lr_warmup_ratio: float = flag(0.03, "share of the updates in which the learning rate rises from 0")
    weight_decay: float = flag(0.0, "AdamW weight decay; biases and norms are spared")
    seed: int = flag(42, "decides sampling, order, split and dropout")
    bf16: bool | None = switch("train in bfloat16 (default: where the GPU or CPU has it)")
    fp16: bool = flag(False, "train in float16 with loss scaling; GPU only")
    tf32: bool | None = switch("TensorFloat-32 matrix products in fp32 parts (default: where a GPU has it)")
    gradient_checkpointing: str = field(
        default="auto",
        metadata={
            "help": "decoder layers whose activations are recomputed in the backward pass, for less memory and up to a third more "
            "time; True, and without a value: all, as the original's launcher does; some: every second; False: none; auto: on a "
            "GPU the fastest of these that the plan fits in, on a CPU all",
            "nargs": "?",
            "const": "True",
            "choices": [*RECOMPUTED, "True", "False"],
            "metavar": "auto|True|some|False",
        },
    )
    identity_proportion: float = flag(
        0.0, "share of the training records for the identity (Q-A-A) warm-up, 0 to 1; paper: 0.2"
    )
    identity_epochs: int | None = flag(None, "epochs of the warm-up (default: epochs)")
    identity_learning_rate: float | None = flag(None, "peak learning rate of the warm-up (default: lr)")
    equal_proportion: float = flag(
        0.0,
        "of rated answers: share of the pairs rated the same for a stage of equal preference before the correction, 0 to 1",
    )


@dataclass(frozen=True)
class LoraConfig:
    """LoRA: small matrices beside the model's own, which alone are trained. They decide the weights too."""

    _argument_group_name = "LoRA"
    lora_rank: int | None = flag(
        None, "train adapters of this rank and leave the model's own weights alone (default: train all of it)"
    )
    lora_alpha: int | None = flag(
        None, "the adapters' output is weighed by this over the rank (default: twice the rank)"
    )
    lora_target: str = flag(
        "all-linear", "layers that get one: all-linear (all but the head), or names as q_proj,v_proj"
    )
    lora_4bit: bool = flag(
        False, "hold the weights that stay as they are in 4 bits (QLoRA): needs a GPU, bitsandbytes, and ZeRO 0, 1 or 2"
    )

    @property
    def alpha(self) -> int:
        """The weight of the adapters' output, times their rank."""
        return 2 * (self.lora_rank or 0) if self.lora_alpha is None else self.lora_alpha


@dataclass(frozen=True)
class OutputConfig:
    """What is written, where, and when."""

    _argument_group_name = "output"
    output_dir: str | None = flag(None, "folder for the checkpoint, the log and the picture")
    save_16bit: bool = flag(True, "export the 16-bit weights of a 16-bit run; off: its fp32 master weights")
    export: str = flag(
        "last",
        "which weights the folder gets: last: those after the last update; best: those with the lowest held-out loss (every "
        "evaluation saves a resume state then, and the best one is kept)",
        choices=("last", "best"),
    )
    save_interval: int = flag(100, "updates between two resume states (and one at the end); 0: none")
    save_minutes: float | None = flag(
        None,
        "minutes between two resume states, beside those of save_interval (0 there: these alone, and one at the end)",
    )
    save_total_limit: int = flag(1, "resume states to keep")
    resume: str = flag(
        "auto",
        "auto: go on where the folder's run stopped; never: start over; force: go on with a stopped run although data, prompt or "
        "recipe changed",
        choices=("auto", "never", "force"),
    )
    show_corrections: int = flag(0, "held-out corrections to generate and show at the end")
    log_type: str | None = flag(
        None, "besides train_log.jsonl (default: wandb where a key is set)", choices=("wandb", "tensorboard", "none")
    )
    log_dir: str | None = flag(None, "folder for wandb or tensorboard files (default: the stage's folder)")
    log_project: str = flag("aligner", "wandb project")
    log_run_name: str | None = flag(None, "wandb run name (default: the output folder's name)")


@dataclass(frozen=True)
class LaunchConfig:
    """On what hardware, and how it is split."""

    _argument_group_name = "hardware and launch"
    zero_stage: int = flag(3, "DeepSpeed ZeRO stage", choices=(0, 1, 2, 3))
    offload: str = flag("none", "what to keep in CPU memory", choices=("none", "parameter", "optimizer", "all"))
    device: str = flag(
        "auto",
        "auto: the GPUs there are, and an error where torch cannot use them; cpu: the CPU",
        choices=("auto", "cpu"),
    )
    hostfile: str | None = flag(None, "DeepSpeed hostfile: many nodes over pdsh")
    launcher_args: str | None = flag(
        None, "further arguments of DeepSpeed's launcher in one word, as '--master_addr 10.0.0.1 --ssh_port 2222'"
    )
    gpus: int | None = flag(None, "ranks on this machine (default: all GPUs; one process where there is none)")
    local_rank: int = flag(-1, "set by the launcher")
    stage: str | None = flag(
        None, "train this stage alone (default: all in order)", choices=("identity", "equal", "correction")
    )
    config: str | None = flag(None, "YAML file of flags; a flag on the command line wins")
    dry_run: bool = flag(False, "print the launch command, the arithmetic, the tally and examples, and stop")


@dataclass(frozen=True)
class RunConfig:
    """One run, in seven parts; a function takes the part it reads."""

    model: ModelConfig
    data: DataConfig
    optimization: OptimizationConfig
    lora: LoraConfig
    output: OutputConfig
    launch: LaunchConfig
    preference: PreferenceConfig = PreferenceConfig()

    @property
    def recomputed(self) -> str:
        """Which layers are recomputed in the backward pass: auto, all, some or none."""
        return RECOMPUTED[self.optimization.gradient_checkpointing.lower()]

    @property
    def evaluates(self) -> bool:
        """Whether records are held out and evaluated on."""
        implied = bool(self.data.eval_datasets) or self.data.eval_split_ratio is not None
        return implied if self.data.need_eval is None else self.data.need_eval


PARTS: Any = (ModelConfig, DataConfig, OptimizationConfig, LoraConfig, OutputConfig, LaunchConfig, PreferenceConfig)


# The ZeRO stages at which DeepSpeed honours an offload; elsewhere it would silently ignore it.
OFFLOAD_STAGES = {"none": (0, 1, 2, 3), "optimizer": (1, 2, 3), "parameter": (3,), "all": (3,)}
# Of the recipe, what does not decide one stage's weights: a run may be resumed when these differ. (Records per
# update do, and are kept as a number of their own.)
NOT_IN_FINGERPRINT = {
    "identity_proportion",
    "identity_epochs",
    "identity_learning_rate",
    "equal_proportion",
    "gradient_accumulation_steps",
    "records_per_update",
    "gradient_checkpointing",
    "tf32",
    "tokens_per_micro_batch",
    "on_nonfinite",
}


def fingerprint_fields(config: RunConfig) -> dict[str, Any]:
    """The settings that decide one stage's weights, for the card and for resuming."""
    settings = {k: v for k, v in asdict(config.optimization).items() if k not in NOT_IN_FINGERPRINT}
    chosen: dict[str, Any] = {"unspellable": config.data.unspellable} if config.data.unspellable != "keep" else {}
    if config.lora.lora_rank:
        lora = {name: value for name, value in asdict(config.lora).items() if value}
        chosen |= {**lora, "lora_alpha": config.lora.alpha}
    if config.preference.by_trl:
        chosen |= {name: value for name, value in asdict(config.preference).items() if value is not None}
    return {**settings, **chosen, "max_length": config.model.max_length, "overlength": config.data.overlength}
