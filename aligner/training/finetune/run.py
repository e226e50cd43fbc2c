"""A run, as every rank makes it: stage after stage, each from its records to a finished folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from aligner.card import Card, write_card
from aligner.console import setup_logging
from aligner.files import COMPLETED, write_text
from aligner.models import load_tokenizer
from aligner.plots import draw_loss
from aligner.records import UserError
from aligner.training.checkpoint import save_and_load
from aligner.training.checkpoint.chat_template import set_chat_template
from aligner.training.checkpoint.folder_writer import plan_folder
from aligner.training.checkpoint.resume import RunState, begin_run, best_state, read_state
from aligner.training.checkpoint.state_writer import StateWriter
from aligner.training.config import RunConfig
from aligner.training.datasets.token_table import lengths_of
from aligner.training.distributed.ranks import Ranks
from aligner.training.distributed.stop_signals import Stopped
from aligner.training.engine.build import build_engine, layouts
from aligner.training.engine.engine import Engine, release_memory
from aligner.training.engine.objective_check import check_objective
from aligner.training.finetune.announce import announce
from aligner.training.finetune.loop import TrainState, train
from aligner.training.finetune.metrics import Metrics
from aligner.training.flags import rerun_script
from aligner.training.planning.here import settled_recomputing
from aligner.training.planning.memory_plan import with_flags
from aligner.training.stages import Stage, check_positions, make_card, plan_of, sides_as_tokens, stage_data, stages
from aligner.training.train_log import evaluations, read_log

log = logging.getLogger("aligner")


def train_run(config: RunConfig, ranks: Ranks, stop_requested: Callable[[], bool] = lambda: False) -> None:
    """Train what is left of a run. Called by all ranks; the first decides what that is.

    Raises Stopped, after saving, where `stop_requested` holds on some rank; UserError where the folder holds another run.
    """
    if config.launch.gpus and not config.launch.hostfile and config.launch.gpus != ranks.count:
        raise UserError(f"--gpus is {config.launch.gpus} and {ranks.count} ranks were started. Leave it out.")
    settled = ranks.broadcast_from_rank0(partial(settled_recomputing, config, ranks.count))
    config = with_flags(config, {"gradient_checkpointing": settled})  # alone: ranks that differ elsewhere are noticed
    remaining = ranks.broadcast_from_rank0(partial(begin_run, config, ranks.count))
    for stage in stages(config):
        if stage.name in remaining:
            setup_logging(stage.folder / "train.log" if ranks.first else None, quiet=not ranks.first)
            train_stage(config, stage, remaining.pop(stage.name), ranks, stop_requested)
            release_memory()
            if remaining and ranks.any(stop_requested()):
                raise Stopped(f"the {stage.name} stage")


def train_stage(
    config: RunConfig, stage: Stage, run_state: RunState, ranks: Ranks, stop_requested: Callable[[], bool]
) -> None:
    """Train one stage, from the start or from its resume state, and leave a finished folder."""
    check_positions(config, stage)
    tokenizer = load_tokenizer(stage.start_from, config.model.trust_remote_code)
    data = stage_data(config, stage.name)
    (train_tokens, tally), (held_out, held_out_tally) = sides_as_tokens(config, data, tokenizer)
    tallies = {"train": asdict(tally), "eval": asdict(held_out_tally)}
    card = make_card(config, stage, data, run_state.records_per_update, tallies)
    counts = [[counted.rows, counted.kept] for counted in (tally, held_out_tally)]
    ranks.assert_same_on_all_ranks({**card.fingerprint_fields(), "number of rows": counts})

    plan = plan_of(stage.optimization, len(train_tokens), card.records_per_update, ranks.count)
    if ranks.first:
        write_text(stage.folder / "command.sh", rerun_script(config))
        announce(stage, plan, data, tally, held_out_tally)
    del data  # the text of all records, which nothing reads any more
    engine = build_engine(config, stage, plan, ranks, tokenizer)
    plan_folder(engine.model)  # what could not be written in the end is refused here
    rows = min(stage.optimization.per_device_train_batch_size, plan.records)
    check_objective(engine, train_tokens, rows, tokenizer.pad_token_id)
    start = load_state(engine, run_state)
    longest = max(int(lengths_of(side).max()) for side in (train_tokens, held_out) if side)
    metrics = (
        Metrics(config.output, stage.folder, stage.name, plan.updates, start, card.config) if ranks.first else None
    )
    train_state = TrainState(
        engine,
        train_tokens,
        held_out,
        plan,
        stage.optimization,
        config.data,
        *layouts(config, engine, tokenizer.pad_token_id, longest),
        metrics,
        state_writer(engine, config, stage, card),
        stop_requested,
    )
    with closing(metrics) if metrics else nullcontext():  # closed last: a tracker may take its time to send what it has
        train(train_state, start)
        finish(engine, tokenizer, config, stage, card)
    engine.close()


def load_state(engine: Engine, run_state: RunState) -> int:
    """Load the resume state, if there is one. Returns the number of updates that are done."""
    if run_state.resume_from is None:
        return 0
    save_and_load.load(engine, run_state.resume_from)
    done: int = read_state(run_state.resume_from)["update"]
    log.info("resuming after update %s", done)
    return done


def state_writer(engine: Engine, config: RunConfig, stage: Stage, card: Card) -> StateWriter:
    """What writes a stage's resume states, each with the card of its run."""
    about = {"ranks": engine.ranks.count, "zero_stage": engine.stage, "card": asdict(card)}
    return StateWriter(engine, stage.folder, about, config.output, exports_best(config, stage))


def exports_best(config: RunConfig, stage: Stage) -> bool:
    """Whether the folder gets the weights with the lowest held-out loss; an earlier stage's are always its last."""
    return config.output.export == "best" and stage.name == "correction"


def warn_of_no_gain(stage: Stage) -> None:
    """Say it where no evaluation was as good as the one before the first update, of which there is no state."""
    (first, before), *later = evaluations(read_log(stage.folder))
    if first == 0 and later and before < min(loss for _, loss in later):
        log.warning("training did not lower the held-out loss: it was %.4f before the first update", before)


def finish(engine: Engine, tokenizer: Any, config: RunConfig, stage: Stage, card: Card) -> None:
    """Export the model (its last weights, or its best), draw the loss, write the card, and COMPLETED last of all."""
    if exports_best(config, stage) and (best := engine.ranks.broadcast_from_rank0(partial(best_state, stage.folder))):
        save_and_load.load(engine, best)
        card = replace(card, stage=f"{card.stage}, after {best.name.replace('-', ' ')}")
        log.info("exporting %s, which has the lowest held-out loss of the states", best.name)
        warn_of_no_gain(stage)
    half = config.optimization.bf16 or config.optimization.fp16
    master = bool(half and not config.output.save_16bit)
    set_chat_template(tokenizer, card.prompt)
    save_and_load.export(engine, tokenizer, stage.folder, master, config.model.trust_remote_code)
    if engine.ranks.first:
        write_card(stage.folder, card)
        draw_loss(read_log(stage.folder), f"{stage.name}: {card.base_model}", stage.folder / "loss.png")
        write_text(stage.folder / COMPLETED, "")
        log.info("%s is complete: %s", stage.name, stage.folder)
    engine.ranks.wait()
