"""The stages of a run: identity warm-up, equal preference and correction are one program on other records (paper, section 2).

What a stage trains, where it writes, what it starts from, and the records it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from aligner.card import Card, package_versions
from aligner.chat_prompt import prompt_of_base
from aligner.console import progress
from aligner.demo import locate
from aligner.encoder import Encoder, warn_of_lost_newlines
from aligner.known_prompts import EQUAL, OF_BASE, QUESTION
from aligner.models import fingerprint, load_config, load_tokenizer, positions_of
from aligner.objectives import read_objectives
from aligner.prompts import PromptTemplate
from aligner.records import Correction, Skipped, UserError
from aligner.training.config import OptimizationConfig, RunConfig, fingerprint_fields
from aligner.training.datasets import cache
from aligner.training.datasets.cache import Tokenised
from aligner.training.datasets.mixture import Source, equal_preference, identity, mix, part_equal, split
from aligner.training.datasets.options import Options, options_from
from aligner.training.datasets.registry import check_options, parse_spec, register_files
from aligner.training.datasets.run_prompts import RunPrompts, check_identity, prompts_of
from aligner.training.datasets.supervised import Tally, tokenise
from aligner.training.plan import Plan

BEFORE = {"identity": "warm-up", "equal": "equal-preference stage"}  # the stages before the correction, for a reader
ADAPTER = "adapter"  # in an output folder: its LoRA adapters by themselves


@dataclass(frozen=True)
class Stage:
    """One stage: its output folder, the model it starts from, and the recipe with its own epochs and learning rate.

    adapters_from: a folder of LoRA adapters to go on with; None: new ones, or none at all.
    """

    name: str
    folder: Path
    start_from: str
    optimization: OptimizationConfig
    adapters_from: Path | None = None


@dataclass(frozen=True)
class StageData:
    """The records of a stage, the rows its data sets left out, the prompts, and the sources they came from."""

    train: Sequence[Correction]
    held_out: Sequence[Correction]
    skipped: Sequence[Skipped]
    held_out_skipped: Sequence[Skipped]
    prompts: RunPrompts
    train_sources: Sequence[Source]
    eval_sources: Sequence[Source]


def stages(config: RunConfig) -> list[Stage]:
    """The stages of a run in order: warm-up and equal preference where a proportion is given, then the correction."""
    o = config.optimization
    if config.output.output_dir is None or config.model.model_name_or_path is None:
        raise UserError("a run needs --output_dir and --model_name_or_path.")
    folder, base = Path(config.output.output_dir), locate(config.model.model_name_or_path)
    if Path(base).resolve() == folder.resolve():
        raise UserError(f"--output_dir {folder} is the base model's own folder. Give another.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file. Give a folder.")
    chain: list[Stage] = []
    for name, recipe in recipes(o).items():
        place = folder if name == "correction" else folder / name
        before = chain[-1].folder if chain else None
        if before and config.lora.lora_rank:  # one set of adapters for all: they are all that differs from the base
            chain.append(Stage(name, place, base, recipe, before / ADAPTER))
        else:
            chain.append(Stage(name, place, str(before or base), recipe))
    return chain


def stages_to_train(config: RunConfig) -> list[Stage]:
    """The stages of this start: the one that `--stage` names, or all."""
    return [stage for stage in stages(config) if config.launch.stage in (None, stage.name)]


def recipes(o: OptimizationConfig) -> dict[str, OptimizationConfig]:
    """The stages of a run in order, by name: each one's recipe, with its own epochs and learning rate."""
    warmup = replace(o, epochs=o.identity_epochs or o.epochs, lr=o.identity_learning_rate or o.lr)
    shares = {"identity": o.identity_proportion, "equal": o.equal_proportion, "correction": 1.0}
    return {name: warmup if name == "identity" else o for name, share in shares.items() if share}


def stage_data(config: RunConfig, stage: str) -> StageData:
    """Read, mix and split the records of a stage. Warm-up records come from the training side of the split."""
    d, seed = config.data, config.optimization.seed
    register_files(d.register)
    options = options_of(config)
    chosen = options, config.model.prompt_template, read_objectives(d.objectives_file)
    mixture = mix(d.train_datasets, seed, *chosen)
    train, held_out = list(mixture.records), []
    held_out_skipped: Sequence[Skipped] = ()
    eval_sources: Sequence[Source] = ()
    if config.evaluates and d.eval_datasets:
        evaluation = mix(d.eval_datasets, seed, *chosen)
        held_out, held_out_skipped = list(evaluation.records), evaluation.skipped
        eval_sources = evaluation.sources
    elif config.evaluates and d.eval_split_ratio is not None:
        train, held_out = split(train, d.eval_split_ratio, seed)
    (equal, train), (_, held_out) = part_equal(train), part_equal(held_out)
    if not train:
        raise UserError("every pair is rated the same in all its objectives: there is nothing to correct.")
    prompts = prompts_of(chosen_prompt(config), train, held_out)
    if config.optimization.identity_proportion:
        check_identity(prompts)
    if stage == "identity":
        train = identity(train, config.optimization.identity_proportion, seed)
    elif stage == "equal":
        train = equal_preference(equal, config.optimization.equal_proportion, seed)
        prompts = replace(prompts, by_name={**prompts.by_name, EQUAL.name: EQUAL})
    return StageData(train, held_out, mixture.skipped, held_out_skipped, prompts, mixture.sources, eval_sources)


def names_objectives(data: StageData) -> bool:
    """Whether any record names an objective, so that the card keeps their sentences."""
    return any(record.objectives for side in (data.train, data.held_out) for record in side)


def chosen_prompt(config: RunConfig) -> str | PromptTemplate | None:
    """What `--prompt_template` says; of `chat` and `question` the base's own chat template around it."""
    model = config.model
    name = model.prompt_template or (QUESTION if config.preference.by_trl else None)
    if name is None or name not in OF_BASE:
        return name
    return prompt_of_base(name, load_tokenizer(locate(model.model_name_or_path or ""), model.trust_remote_code))


def options_of(config: RunConfig) -> Options:
    """The flags that data sets read. UserError for one that none of them reads."""
    d, options = config.data, options_from(config.data, config.optimization)
    check_options([parse_spec(text, options) for text in (*d.train_datasets, *d.eval_datasets)], options)
    return options


def tokens_of(
    config: RunConfig, data: StageData, records: Sequence[Correction], skipped: Sequence[Skipped], encoder: Encoder
) -> Tokenised:
    """The records of one side as tokens, and what became of all its rows."""
    if not records:
        return [], Tally()
    bar = partial(progress, desc="tokenising", delay=2)
    what = records, data.prompts, encoder, config.model.max_length, config.data.overlength, config.data.unspellable
    tokens, tally = cache.load_or_compute(cache.name_of(*what), lambda: tokenise(*what, progress=bar))
    for row in skipped:
        tally.add(f"left out: {row.reason}", row.origin)
    tally.rows += len(skipped)
    return tokens, tally


def sides_as_tokens(config: RunConfig, data: StageData, tokenizer: Any) -> tuple[Tokenised, Tokenised]:
    """Training and held-out records as tokens, each with its tally."""
    encoder = Encoder(tokenizer)
    warn_of_lost_newlines(encoder)
    train = tokens_of(config, data, data.train, data.skipped, encoder)
    return train, tokens_of(config, data, data.held_out, data.held_out_skipped, encoder)


def records_per_update(config: RunConfig, ranks: int) -> int:
    """Rows of one update: the flag, or rows x accumulation x ranks."""
    o = config.optimization
    return o.records_per_update or o.per_device_train_batch_size * o.gradient_accumulation_steps * ranks


def check_positions(config: RunConfig, stage: Stage) -> None:
    """UserError where max_length is more than the model has positions for."""
    positions = positions_of(load_config(stage.start_from, config.model.trust_remote_code))
    if positions and config.model.max_length > positions:
        raise UserError(f"--max_length {config.model.max_length} is more than the model's {positions} positions.")


def plan_of(o: OptimizationConfig, records: int, rows: int, ranks: int) -> Plan:
    """The arithmetic of a stage with this recipe."""
    return Plan(records, rows, o.per_device_train_batch_size, ranks, o.epochs, o.lr_warmup_ratio)


def make_card(config: RunConfig, stage: Stage, data: StageData, records_per_update: int, tally: dict[str, Any]) -> Card:
    """The card of a stage's output folder."""
    o = config.optimization
    warmup = [o.identity_proportion, o.identity_epochs, o.identity_learning_rate] if o.identity_proportion else None
    settings = {
        **fingerprint_fields(replace(config, optimization=stage.optimization)),
        "stage": stage.name,
        "identity": warmup,
        **({"equal": o.equal_proportion} if o.equal_proportion and stage.name != "identity" else {}),
    }
    base = config.model.model_name_or_path or ""
    others = {template.name: template.text for template in data.prompts.all()[1:]}
    return Card(
        prompt=data.prompts.correcting,
        stage=stage.name,
        base_model=base,
        base_model_sha256=fingerprint(locate(base), config.model.trust_remote_code),
        max_length=config.model.max_length,
        records_per_update=records_per_update,
        data={
            "train": [asdict(source) for source in data.train_sources],
            "eval": [asdict(source) for source in data.eval_sources],
            "tally": tally,
            "deciding": {
                "train_datasets": [[s.dataset, s.sha256, s.rows, s.taken] for s in data.train_sources],
                "eval_datasets": [[s.dataset, s.sha256, s.rows, s.taken] for s in data.eval_sources],
                "eval_split_ratio": config.data.eval_split_ratio if config.evaluates else None,
                **({"other prompts": others} if others else {}),
                **({"objectives": read_objectives(config.data.objectives_file)} if names_objectives(data) else {}),
            },
        },
        settings=settings,
        config={k: v for part in asdict(config).values() for k, v in part.items()},
        versions=package_versions(),
    )
