"""What a stage's folder holds from an earlier run: a finished stage, a resume state, nothing; of this run or of another."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aligner.card import Card, card_from, differences, read_card
from aligner.files import COMPLETED, is_completed, read_json, remove_folder
from aligner.locks import take
from aligner.records import UserError
from aligner.training.config import RunConfig

log = logging.getLogger("aligner")
STATE_NAME = re.compile(r"update-(\d+)")


@dataclass(frozen=True)
class Standing:
    """What is there. `card` is the new run's, with the records per update that an earlier run began with.

    changed: the names of what decides the weights and differs from the earlier run's; with any, it is another run.
    """

    finished: bool
    state: Path | None
    card: Card
    changed: tuple[str, ...]


def states(output: Path) -> list[Path]:
    """The whole resume states of an output folder, oldest first."""
    found = [p for p in (output / "checkpoints").glob("update-*") if STATE_NAME.fullmatch(p.name)]
    return sorted((p for p in found if (p / COMPLETED).is_file()), key=lambda p: int(p.name.split("-")[1]))


def read_state(state: Path) -> dict[str, Any]:
    """What a resume state says of its run: `update`, `card`, and what save_and_load.py needs. UserError where it does not."""
    value = read_json(state / "state.json")
    known: dict[str, Any] = value if isinstance(value, dict) else {}
    if missing := {"update", "card", "shapes", "moves", "schedule", "scaler"} - known.keys():
        raise UserError(
            f"{state} says nothing of {min(missing)}: it is damaged, or of another version. Remove it to go on from an earlier one."
        )
    return known


def standing(config: RunConfig, folder: Path, card: Card) -> Standing:
    """Look at a stage's folder as the run with this card would find it."""
    finished, kept = is_completed(folder), states(folder)
    if config.output.resume == "never" or not (finished or kept):
        return Standing(False, None, card, ())
    state = None if finished else kept[-1]
    old = card_from(read_state(state)["card"], str(state)) if state else read_card(folder)
    if old is None:
        raise UserError(f"{folder} is complete but has no card. Give another --output_dir, or --resume never.")
    if config.optimization.records_per_update is None:
        card = replace(card, records_per_update=old.records_per_update)
    changed = tuple(differences(old, card))
    if changed and config.output.resume == "force" and (state or card.stage == "identity"):
        log.warning("going on although %s changed: what follows is neither run's", ", ".join(changed))
        changed = ()
    return Standing(finished, state, card, changed)


def warm_up_differs(folder: Path, card: Card) -> list[str]:
    """What keeps a main stage from starting from this warm-up: that it is not complete, or what differs from its card."""
    old = read_card(folder) if is_completed(folder) else None
    if old is None:
        return ["not complete"]
    return differences(old, replace(card, records_per_update=old.records_per_update))


def clear(folder: Path) -> None:
    """Give up what an earlier run left, in an order that a kill cannot turn into something it is not."""
    (folder / COMPLETED).unlink(missing_ok=True)
    for state in (folder / "checkpoints").glob("update-*"):
        remove_folder(state)
    (folder / "train_log.jsonl").unlink(missing_ok=True)


@contextmanager
def the_only_run(folder: Path) -> Iterator[Path]:
    """Keep an output folder for this run while the block lasts. UserError where another one is writing into it."""
    let_go = take(
        folder / ".lock",
        f"another run is writing into {folder}. Wait for its end, stop it, or give another --output_dir.",
    )
    try:
        yield folder
    finally:
        let_go()


def another_run(folder: Path, found: Standing) -> UserError:
    """The error for a folder that holds another run."""
    kind = "finished" if found.finished else "stopped"
    force = "" if found.finished else ", or --resume force to go on all the same"
    return UserError(
        f"{folder} holds a {kind} run that differs in {', '.join(found.changed)}. "
        f"Give another --output_dir, {'or ' if found.finished else ''}--resume never to start over{force}."
    )
