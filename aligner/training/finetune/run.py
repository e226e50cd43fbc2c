"""Build the parts of one stage, run them, leave a finished folder. Every rank runs this."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from aligner.card import Card, write_card
from aligner.console import speak
from aligner.file_systems import require_usable
from aligner.files import COMPLETED, write_text
from aligner.models import fit_embedding, load_config, load_model, load_tokenizer, quiet_libraries
from aligner.plots import draw_loss
from aligner.records import UserError, system_error
from aligner.training.checkpoint import save_and_load
from aligner.training.checkpoint.resume import (
    Standing,
    another_run,
    clear,
    read_state,
    standing,
    the_only_run,
    warm_up_differs,
)
from aligner.training.config import RunConfig
from aligner.training.datasets.supervised import Tally
from aligner.training.distributed.hardware import dtype_of, resolved
from aligner.training.distributed.heartbeat import LAUNCHER, sign_of_life
from aligner.training.distributed.launcher_variables import alone, rank_variables
from aligner.training.distributed.ranks import Ranks, connect
from aligner.training.distributed.stop_signals import EXIT_AGAIN, Asked, Stopped, is_requested, withdraw
from aligner.training.engine.attention import FAMILIES, supports
from aligner.training.engine.batching import Layout
from aligner.training.engine.engine import Engine, load_partitioned, numel, release_memory
from aligner.training.engine.zero import deepspeed_config
from aligner.training.finetune.loop import Parts, train
from aligner.training.finetune.metrics import Metrics, read_log
from aligner.training.flags import parse, rerun_script
from aligner.training.plan import Plan
from aligner.training.stages import (
    Stage,
    StageData,
    check_positions,
    make_card,
    plan_of,
    records_per_update,
    sides_as_tokens,
    stage_data,
    stages,
)

GRACE = 3.0  # seconds that other ranks wait: when one ends, the launcher ends all, and the first is to say why
log = logging.getLogger("aligner")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the stage that `--stage` names, or all. Returns the exit status: 0; 1 for a fault, with its traceback; 2 for
    something the user can mend; 75 where the run was stopped and can go on."""
    joined = dist.is_initialized()
    status = as_rank(arguments, joined)
    if dist.is_initialized() and not joined:  # a group that was there before is its maker's
        if status in (1, 2) and dist.get_world_size() > 1:
            leave(status)
        dist.destroy_process_group()
    return status


def leave(status: int) -> NoReturn:
    """End this process at once: to end the group in order, NCCL would wait for ranks that wait for this one."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def as_rank(arguments: Sequence[str] | None, joined: bool) -> int:
    """`main`, but for leaving the process group. `joined`: it was there before."""
    first = int(os.environ.get("RANK", "0")) == 0
    speak(quiet=not first)
    try:
        if joined:
            started: dict[str, str] | None = {"RANK": str(dist.get_rank())}
        else:
            started = rank_variables(os.environ)
        os.environ.update(alone() if started is None else started)
        first = int(os.environ["RANK"]) == 0
        speak(quiet=not first)
        config = resolved(parse(sys.argv[1:] if arguments is None else arguments))
        if config.launch.dry_run:
            raise UserError("--dry_run is for scripts/sft-correction.sh; this program trains.")
        quiet_libraries()
        train_stages(config, first)
    except Stopped as stopped:
        log.warning("%s", stopped)
        dist.barrier()  # a rank that ends first would have the others killed, and the first one has more to do
        return 0 if LAUNCHER in os.environ else EXIT_AGAIN  # the launch script sees that the stage is not complete
    except (UserError, OSError) as error:
        if not first:
            time.sleep(GRACE)
            speak()
        log.error("%s", system_error(error) if isinstance(error, OSError) else error)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def train_stages(config: RunConfig, first: bool) -> None:
    """Train what `--stage` names, or all, as one of the ranks. Raises Stopped."""
    alone_here = LAUNCHER not in os.environ  # no launch script that keeps the folder and takes the signals
    asked, whole = Asked() if alone_here else None, stages(config)[-1].folder
    with the_only_run(whole) if first and alone_here else nullcontext():
        for stage in stages(config):
            if config.launch.stage in (None, stage.name):
                speak(stage.folder / "train.log" if first else None, quiet=not first)
                with sign_of_life(stage.folder, int(os.environ["RANK"])):
                    try:
                        run_stage(config, stage, partial(is_asked, asked, whole if first else None))
                        release_memory()
                    finally:
                        if first and alone_here:
                            withdraw(whole)


def is_asked(asked: Asked | None, folder: Path | None) -> bool:
    """Whether this rank has heard that the run is to stop: by a signal or, on the first, by the file in the folder."""
    return bool(asked and asked.seen) or bool(folder and is_requested(folder))


def run_stage(config: RunConfig, stage: Stage, asked: Callable[[], bool] = lambda: False) -> None:
    """Train one stage from its records to its COMPLETED folder. Raises Stopped where a rank is `asked` to stop."""
    check_positions(config, stage)
    tokenizer = load_tokenizer(stage.start_from, config.model.trust_remote_code)
    data = stage_data(config, stage.name)
    # Before the group: slow work starves no rank.
    (train_tokens, tally), (held_out, held_out_tally) = sides_as_tokens(config, data, tokenizer)

    ranks = connect(config.launch.local_rank)
    if config.launch.gpus and not config.launch.hostfile and config.launch.gpus != ranks.count:
        raise UserError(f"--gpus is {config.launch.gpus} and {ranks.count} ranks were started. Leave it out.")
    tallies = {"train": asdict(tally), "eval": asdict(held_out_tally)}
    card = make_card(config, stage, data, records_per_update(config, ranks.count), tallies)
    counts = [[counted.rows, counted.kept] for counted in (tally, held_out_tally)]
    ranks.agree({**card.deciding(), "number of rows": counts})
    found = begin(config, stage, card, ranks)
    if found.finished:
        log.info("%s is already complete: %s", stage.name, stage.folder)
        return
    card = found.card
    plan = plan_of(stage.optimization, len(train_tokens), card.records_per_update, ranks.count)
    if ranks.first:
        write_text(stage.folder / "command.sh", rerun_script(config))
        announce(stage, plan, data, tally, held_out_tally)

    engine = build_engine(config, stage, plan, ranks, tokenizer)
    start = 0
    if found.state:
        save_and_load.load(engine, found.state)
        start = read_state(found.state)["update"]
        log.info("going on after update %s", start)
    metrics = (
        Metrics(config.output, stage.folder, stage.name, plan.updates, start, card.config) if ranks.first else None
    )
    save = partial(save_state, engine, config, stage, card)
    layouts = layouts_of(config, engine, tokenizer.pad_token_id)
    parts = Parts(
        engine, train_tokens, held_out, plan, stage.optimization, config.data, *layouts, metrics, save,
        config.output.save_interval, asked,
    )  # fmt: skip
    with closing(metrics) if metrics else nullcontext():  # closed last: a tracker may take its time to send what it has
        train(parts, start)
        finish(engine, tokenizer, config, stage, card)
    engine.close()


def begin(config: RunConfig, stage: Stage, card: Card, ranks: Ranks) -> Standing:
    """What the folder holds of this very run, after clearing what `--resume never` gives up.

    Raises UserError where it belongs to another run, or where the warm-up to start from does.
    """

    def look() -> Standing:
        require_usable(stage.folder)
        if config.output.resume == "never":
            clear(stage.folder)
        found = standing(config, stage.folder, card)
        if found.changed:
            raise another_run(stage.folder, found)
        check_warm_up(config, stage)
        return found

    return ranks.first_decides(look)


def check_warm_up(config: RunConfig, stage: Stage) -> None:
    """UserError where a main stage would start from a warm-up that is missing or of another run."""
    first = stages(config)[0]
    if stage.name == first.name or config.output.resume == "force":
        return
    card = make_card(config, first, stage_data(config, first.name), 0, {})
    if differs := warm_up_differs(first.folder, card):
        raise UserError(
            f"the warm-up in {first.folder} cannot be started from ({', '.join(differs)}). Leave --stage out to train it."
        )


def announce(stage: Stage, plan: Plan, data: StageData, tally: Tally, held_out: Tally) -> None:
    """Say what is about to be trained, and what became of every row."""
    log.info("%s: %s", stage.name, plan.line())
    if plan.warmup_updates >= plan.updates:
        log.warning("all %s updates are learning-rate warm-up, and the first has learning rate 0: little or nothing is "
                    "learned. Give fewer rows per update, more epochs, or --lr_warmup_ratio 0", plan.updates)  # fmt: skip
    for side, counted in (("training", tally), ("held out", held_out)):
        for line in counted.lines() if counted.rows else []:
            log.info("  %s: %s", side, line.strip())
    log.info("  prompt: %s; from %s into %s", data.template.name, stage.start_from, stage.folder)


def build_engine(config: RunConfig, stage: Stage, plan: Plan, ranks: Ranks, tokenizer: Any) -> Engine:
    """The model, split over the ranks, behind an engine."""
    o, trusted = stage.optimization, config.model.trust_remote_code
    ds_config = deepspeed_config(o, config.launch, load_config(stage.start_from, trusted))
    torch.manual_seed(o.seed)  # of rows that the embedding may be given for new tokens
    load = partial(load_model, stage.start_from, dtype_of(config), trusted)
    model = load_partitioned(ds_config, load, partial(fit_embedding, tokenizer=tokenizer))
    if o.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if o.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    flat = supports(model)
    if ranks.first and not flat:
        kind = model.config.get_text_config().model_type
        log.info(
            "  rows are padded: %s is not among the models trained without padding (%s)", kind, ", ".join(FAMILIES)
        )
    return Engine(model, ds_config, o, plan, flat, ranks)


def layouts_of(config: RunConfig, engine: Engine, pad: int) -> tuple[Layout, Layout]:
    """How rows are laid into micro-batches in training and in evaluation.

    A flattened micro-batch holds at most what a padded one of per_device_train_batch_size rows would at worst.
    """
    o, length = config.optimization, config.model.max_length
    model, flat = engine.model, engine.flat
    ends = {id(m.weight): numel(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}  # type: ignore[arg-type]
    head = max(ends.values())
    body = sum(map(numel, model.parameters())) - sum(ends.values())
    train, evaluate = o.per_device_train_batch_size, config.data.per_device_eval_batch_size
    budget = o.tokens_per_micro_batch or train * length
    cost = head / max(1, body)
    return Layout(flat, train, budget, pad, cost), Layout(flat, evaluate, evaluate * length, pad, cost)


def save_state(engine: Engine, config: RunConfig, stage: Stage, card: Card, update: int) -> None:
    """Save a resume state that says which run it belongs to."""
    state = {
        "update": update, "ranks": engine.ranks.count, "zero_stage": engine.stage, "card": asdict(card),
    }  # fmt: skip
    save_and_load.save(engine, stage.folder, state, config.output.save_total_limit)


def finish(engine: Engine, tokenizer: Any, config: RunConfig, stage: Stage, card: Card) -> None:
    """Export the model, draw the loss, write the card, and say COMPLETED last of all."""
    half = config.optimization.bf16 or config.optimization.fp16
    master = bool(half and not config.output.save_16bit)
    save_and_load.export(engine, tokenizer, stage.folder, master, config.model.trust_remote_code)
    if engine.ranks.first:
        write_card(stage.folder, card)
        draw_loss(read_log(stage.folder), f"{stage.name}: {card.base_model}", stage.folder / "loss.png")
        write_text(stage.folder / COMPLETED, "")
        log.info("%s is complete: %s", stage.name, stage.folder)
    engine.ranks.wait()
