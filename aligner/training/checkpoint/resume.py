"""What a run's folder holds from an earlier start: complete stages, resume states, or nothing; of this run or of another.

`inspect_run` is the one place that decides what is left to train. The launch script calls it before it starts anything,
to refuse a folder or to find the run complete; the first rank calls it for all ranks.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from aligner.card import Card, card_from, differences, read_card
from aligner.file_systems import require_usable
from aligner.files import COMPLETED, is_completed, read_json, remove_folder, sha256_of
from aligner.locks import take
from aligner.records import UserError
from aligner.training.config import RunConfig
from aligner.training.stages import BEFORE, Stage, make_card, records_per_update, stage_data, stages, stages_to_train
from aligner.training.train_log import evaluations, read_log

log = logging.getLogger("aligner")
STATE_NAME = re.compile(r"update-(\d+)")


@dataclass(frozen=True)
class RunState:
    """What a stage's folder holds, compared with the run that is about to begin.

    finished: the stage is complete. resume_from: an unfinished stage's newest whole resume state. records_per_update: what
    the stage goes on with, which is what it began with. changed: the names of what decides the weights and differs from
    the earlier run; with any, the folder is another run's.
    """

    finished: bool
    resume_from: Path | None
    records_per_update: int
    changed: tuple[str, ...] = ()


def inspect_run(config: RunConfig, ranks: int) -> dict[str, RunState]:
    """The stages that are still to be trained, by name and in order; none where the run is complete. Changes nothing.

    Raises UserError where the folder holds another run, or where `--stage correction` has no warm-up to start from, and
    DataError for a record that cannot be used.
    """
    *warm_ups, last = stages_to_train(config)
    last_state = inspect_stage(config, last, ranks)
    if last_state.changed and last.name == "correction":
        raise run_mismatch_error(last.folder, last_state)
    if last_state.finished and not last_state.changed:
        return {}
    states = {stage.name: inspect_stage(config, stage, ranks) for stage in warm_ups} | {last.name: last_state}
    if not warm_ups:
        check_warm_up(config, last)
    return {name: state for name, state in states.items() if state.changed or not state.finished}


def begin_run(config: RunConfig, ranks: int) -> dict[str, RunState]:
    """`inspect_run`, after which what an earlier run left is removed: by `--resume never`, and a warm-up of another run.

    That is done before any stage begins, the last stage first, so that a kill leaves nothing that looks complete.
    """
    remaining = inspect_run(config, ranks)
    for stage in stages_to_train(config):
        if stage.name in remaining:
            require_usable(stage.folder)
    if config.output.resume == "never":
        for stage in reversed(stages_to_train(config)):
            discard(stage.folder)
        names = {stage.name for stage in stages(config)}
        for name in BEFORE.keys() - names:  # an earlier run's stages, which this one does not have
            remove_folder(stages(config)[-1].folder / name)
        return remaining
    for stage in stages_to_train(config):
        if stage.name not in remaining:
            log_complete(stage)
        elif changed := remaining[stage.name].changed:
            log.info(
                "the %s in %s differs in %s: training it anew", BEFORE[stage.name], stage.folder, ", ".join(changed)
            )
            remove_folder(stage.folder)
            remaining[stage.name] = RunState(False, None, records_per_update(config, ranks))
    return remaining


def log_complete(stage: Stage) -> None:
    """Report that there is nothing to do for a stage."""
    log.info("%s is already complete: %s", stage.name, stage.folder)


def inspect_stage(config: RunConfig, stage: Stage, ranks: int) -> RunState:
    """Compare a stage's folder with the run that is about to begin on so many ranks."""
    data = stage_data(config, stage.name)
    return inspect_output(config, stage.folder, make_card(config, stage, data, records_per_update(config, ranks), {}))


def inspect_output(config: RunConfig, folder: Path, card: Card) -> RunState:
    """Compare a stage's folder with the run that this card describes."""
    finished, kept_states = is_completed(folder), states(folder)
    if config.output.resume == "never" or not (finished or kept_states):
        return RunState(False, None, card.records_per_update)
    state = None if finished else kept_states[-1]
    old = card_from(read_state(state)["card"], str(state)) if state else read_card(folder)
    if old is None:
        raise UserError(f"{folder} is complete but has no card. Give another --output_dir, or --resume never.")
    if config.optimization.records_per_update is None:
        card = replace(card, records_per_update=old.records_per_update)
    changed = tuple(differences(old, card))
    if changed and config.output.resume == "force" and (state or card.stage != "correction"):
        log.warning("going on although %s changed: what follows is neither run's", ", ".join(changed))
        changed = ()
    return RunState(finished, state, card.records_per_update, changed)


def check_warm_up(config: RunConfig, stage: Stage) -> None:
    """UserError where a stage trained alone would start from a warm-up that is missing, incomplete or of another run."""
    order = stages(config)
    before = [each for each, after in pairwise(order) if after.name == stage.name]
    if not before or config.output.resume == "force":
        return
    first = before[0]
    card = make_card(config, first, stage_data(config, first.name), 0, {})
    old = read_card(first.folder) if is_completed(first.folder) else None
    changed = differences(old, replace(card, records_per_update=old.records_per_update)) if old else ["not complete"]
    if changed:
        raise UserError(
            f"the {BEFORE[first.name]} in {first.folder} cannot be started from ({', '.join(changed)}). "
            "Leave --stage out to train it."
        )


def states(output: Path) -> list[Path]:
    """The whole resume states of an output folder, oldest first."""
    folders = [p for p in (output / "checkpoints").glob("update-*") if STATE_NAME.fullmatch(p.name)]
    return sorted((p for p in folders if (p / COMPLETED).is_file()), key=lambda p: int(p.name.split("-")[1]))


def best_state(output: Path) -> Path | None:
    """The whole resume state with the lowest held-out loss in the log, the earliest of equals; None where none was evaluated."""
    kept = {path.name: path for path in states(output)}
    by_loss = sorted((loss, update) for update, loss in evaluations(read_log(output)))
    return next((kept[name] for _, update in by_loss if (name := f"update-{update}") in kept), None)


def read_state(state: Path) -> dict[str, Any]:
    """The description in a resume state: `update`, `card`, and what save_and_load.py needs. UserError where it is incomplete or
    not as it was written (COMPLETED has its sha256, since states have checksums)."""
    value = read_json(state / "state.json")
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    if missing := {"update", "card", "shapes", "moves", "schedule", "scaler"} - fields.keys():
        raise UserError(
            f"{state} says nothing of {min(missing)}: it is damaged, or of another version. Remove it to go on from an earlier one."
        )
    noted = (state / COMPLETED).read_bytes().strip()
    if ("checksums" in fields or noted) and noted.decode(errors="replace") != sha256_of(state / "state.json"):
        raise UserError(
            f"{state}/state.json is not as it was written: it is damaged. Remove {state} to go on from an earlier one."
        )
    return fields


def discard(folder: Path) -> None:
    """Remove an earlier run's results, in an order that a kill cannot turn into something they are not."""
    (folder / COMPLETED).unlink(missing_ok=True)
    for state in (folder / "checkpoints").glob("update-*"):
        remove_folder(state)
    (folder / "train_log.jsonl").unlink(missing_ok=True)


@contextmanager
def run_lock(folder: Path) -> Iterator[Path]:
    """Keep an output folder for this run while the block lasts. UserError where another one is writing into it."""
    release = take(
        folder / ".lock",
        f"another run is writing into {folder}. Wait for its end, stop it, or give another --output_dir.",
    )
    try:
        yield folder
    finally:
        release()


def run_mismatch_error(folder: Path, state: RunState) -> UserError:
    """The error for a folder that holds another run."""
    kind = "finished" if state.finished else "stopped"
    force = "" if state.finished else ", or --resume force to go on all the same"
    return UserError(
        f"{folder} holds a {kind} run that differs in {', '.join(state.changed)}. "
        f"Give another --output_dir, {'or ' if state.finished else ''}--resume never to start over{force}."
    )
