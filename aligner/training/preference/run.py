"""A run that TRL trains, as every rank makes it: from its records to a finished folder, which looks like any other run's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from aligner.card import Card, card_from, differences, write_card
from aligner.console import setup_logging
from aligner.encoder import Encoder
from aligner.files import COMPLETED, is_completed, read_json, remove_folder, whole_folder, write_text
from aligner.models import load_config, load_tokenizer, quiet_libraries
from aligner.plots import draw_loss
from aligner.records import UserError
from aligner.training.checkpoint.chat_template import set_chat_template
from aligner.training.checkpoint.resume import RunState, begin_run, run_mismatch_error
from aligner.training.config import RunConfig
from aligner.training.datasets.tally import Tally
from aligner.training.distributed.ranks import Ranks
from aligner.training.distributed.stop_signals import Stopped
from aligner.training.finetune.announce import announce
from aligner.training.finetune.metrics import Metrics
from aligner.training.flags import rerun_script
from aligner.training.planning.here import settled_recomputing
from aligner.training.planning.memory_plan import with_flags
from aligner.training.preference.rows import Row, training_rows
from aligner.training.preference.trl_trainer import CHECKPOINTS, build_trainer, write_rows
from aligner.training.preference.weights import check_weights
from aligner.training.preference_config import ONLINE
from aligner.training.stages import Stage, StageData, check_positions, make_card, plan_of, stage_data, stages
from aligner.training.train_log import read_log

log = logging.getLogger("aligner")
ROWS = "rows"  # in the folder of checkpoints: what TRL reads
CARD = "card.json"  # in a checkpoint: the run that it is of
PREFIX = "checkpoint-"


def train_preference(config: RunConfig, ranks: Ranks, stop_requested: Callable[[], bool] = lambda: False) -> None:
    """Train what is left of a run by TRL. Called by all ranks; raises what `finetune.run.train_run` raises."""
    settled = ranks.broadcast_from_rank0(partial(settled_recomputing, config, ranks.count))
    config = with_flags(config, {"gradient_checkpointing": settled})
    if not ranks.broadcast_from_rank0(partial(begin_run, config, ranks.count)):
        return
    (stage,) = stages(config)
    setup_logging(stage.folder / "train.log" if ranks.first else None, quiet=not ranks.first)
    check_positions(config, stage)
    tokenizer = load_tokenizer(stage.start_from, config.model.trust_remote_code)
    data = stage_data(config, stage.name)
    rows, tally = rows_of(config, stage, data, tokenizer)
    per_update = config.optimization.per_device_train_batch_size * config.optimization.gradient_accumulation_steps
    card = make_card(config, stage, data, per_update * ranks.count, {"train": asdict(tally)})
    ranks.assert_same_on_all_ranks({**card.fingerprint_fields(), "number of rows": [tally.rows, tally.kept]})
    start = ranks.broadcast_from_rank0(partial(prepare_folder, config, stage, card, rows))
    plan = plan_of(stage.optimization, len(rows), card.records_per_update, ranks.count)
    if ranks.first:
        announce(stage, plan, data, tally, Tally())
    metrics = (
        Metrics(config.output, stage.folder, config.preference.method, plan.updates, _update(start), card.config,
                watched=config.preference.method not in ONLINE)
        if ranks.first else None
    )  # fmt: skip
    watcher = Watcher(ranks, metrics, card, stop_requested)
    trainer = build_trainer(config, stage, ranks.count, stage.folder / CHECKPOINTS / ROWS, tokenizer, [watcher])
    if metrics:
        metrics.set_updates(updates_of(trainer))
    with closing(metrics) if metrics else nullcontext():
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        if watcher.stopped_after:
            raise Stopped(f"update {watcher.stopped_after}")
        finish(trainer, tokenizer, config, stage, card, ranks)


def rows_of(config: RunConfig, stage: Stage, data: StageData, tokenizer: Any) -> tuple[list[Row], Tally]:
    """The rows that TRL trains on, and what became of all. UserError where the model has no row for a token of its tokenizer."""
    vocabulary = load_config(stage.start_from, config.model.trust_remote_code).get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"{stage.start_from}: its tokenizer has {len(tokenizer)} tokens and the model {vocabulary} rows for them. Train it "
            "with --method sft first, which adds them."
        )
    o = stage.optimization
    rows, tally = training_rows(
        config.preference.method,
        data.train,
        data.prompts.correcting,
        Encoder(tokenizer),
        config.model.max_length,
        config.data.overlength,
        o.per_device_train_batch_size,
        o.seed,
    )
    for row in data.skipped:
        tally.add(f"left out: {row.reason}", row.origin)
    tally.rows += len(data.skipped)
    return rows, tally


def prepare_folder(config: RunConfig, stage: Stage, card: Card, rows: list[Row]) -> Path | None:
    """Write the rows where TRL reads them, and find the newest whole checkpoint; one that a kill left half-written is removed.

    UserError where the checkpoints are of another run.
    """
    folder = stage.folder / CHECKPOINTS
    if config.output.resume == "never":
        remove_folder(folder)
    kept = sorted(folder.glob(f"{PREFIX}*"), key=_update)
    for each in [each for each in kept if not is_completed(each)]:
        remove_folder(each)
        kept.remove(each)
    changed = differences(card_from(read_json(kept[-1] / CARD), str(kept[-1] / CARD)), card) if kept else []
    if changed and config.output.resume != "force":
        raise run_mismatch_error(stage.folder, RunState(False, kept[-1], card.records_per_update, tuple(changed)))
    with whole_folder(folder / ROWS) as partial_folder:
        write_rows(rows, partial_folder)
    write_text(stage.folder / "command.sh", rerun_script(config))
    if kept:
        log.info("resuming after update %s", _update(kept[-1]))
    return kept[-1] if kept else None


def _update(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix(PREFIX)) if checkpoint else 0


def updates_of(trainer: Any) -> int:
    """How many updates TRL will make."""
    steps = len(trainer.get_train_dataloader()) // trainer.args.gradient_accumulation_steps
    return max(1, steps) * int(trainer.args.num_train_epochs)


class Watcher(TrainerCallback):
    """Between TRL and a run: figures go into its log, a whole checkpoint is marked as one, and a request to stop is heard."""

    def __init__(self, ranks: Ranks, metrics: Metrics | None, card: Card, stop_requested: Callable[[], bool]) -> None:
        self.ranks, self.metrics, self.card, self.stop_requested = ranks, metrics, card, stop_requested
        self.stopped_after = 0

    def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """An update's figures, under this project's names; what TRL says at the end is left out."""
        logs = rest["logs"]
        if self.metrics and "loss" in logs:
            named = {"update": state.global_step, "epoch": logs.get("epoch"), "loss": logs["loss"]}
            named |= {"lr": logs.get("learning_rate"), "grad_norm": logs.get("grad_norm")}
            others = {name: value for name, value in logs.items() if name not in (*named, "learning_rate")}
            self.metrics.record({**named, **others})

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """All ranks have written their share."""
        self.ranks.wait()
        if self.ranks.first:
            folder = Path(args.output_dir) / f"{PREFIX}{state.global_step}"
            write_card(folder, self.card)
            (folder / "aligner.json").replace(folder / CARD)  # a checkpoint is no model folder of ours
            write_text(folder / COMPLETED, "")

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Stop where some rank heard of a request: the checkpoint is written first."""
        if state.global_step < state.max_steps and self.ranks.any(self.stop_requested()):
            self.stopped_after = state.global_step
            control.should_save = control.should_training_stop = True


def finish(trainer: Any, tokenizer: Any, config: RunConfig, stage: Stage, card: Card, ranks: Ranks) -> None:
    """Write the model as a whole folder, compare its weights with those it started from, and COMPLETED last of all."""
    reward = config.preference.method == "reward"
    if not reward:
        set_chat_template(tokenizer, card.prompt)
    quiet_libraries()
    trainer.save_model(str(stage.folder))  # collective: under ZeRO-3 each rank gives its share

    def complete() -> None:
        (stage.folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing reads
        tokenizer.save_pretrained(stage.folder)
        differ = check_weights(stage.folder, stage.start_from, reward, config.model.trust_remote_code)
        log.info("the weights are whole: read back, %s tensors differ from %s", differ, stage.start_from)
        write_card(stage.folder, card)
        draw_loss(read_log(stage.folder), f"{config.preference.method}: {card.base_model}", stage.folder / "loss.png")
        remove_folder(stage.folder / CHECKPOINTS / ROWS)
        write_text(stage.folder / COMPLETED, "")
        log.info("%s is complete: %s", config.preference.method, stage.folder)

    ranks.broadcast_from_rank0(complete)
