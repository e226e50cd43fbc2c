"""Resume states, written while training goes on: copied to host memory after an update, then written by a thread.

All ranks write into `update-N.partial`; when all are done, the first renames it, and until then the state before it is untouched.
Ranks talk to each other in their main threads alone: whether one still writes is known from what they add up at every
update anyway (Engine.accumulate), so nobody waits for a disk between two updates.
"""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from aligner.file_systems import give_usual_mode, move_folder
from aligner.files import COMPLETED, remove_folder, sha256_of, sync, write_json, write_text
from aligner.records import UserError
from aligner.training.checkpoint.checksums import FILE, KIND, tensor_checksum
from aligner.training.checkpoint.partitions import flat_tensors, moments, optimizer_steps, pieces
from aligner.training.checkpoint.resume import best_state, states
from aligner.training.checkpoint.tensor_index import INDEX, Piece
from aligner.training.config import OutputConfig
from aligner.training.distributed.hardware import spare_memory
from aligner.training.engine.engine import Engine, numel, shape_of

STATE_BYTES = 12  # of a trained parameter: its fp32 weight and two moments
TAKEN = 0.5  # of a host's spare memory, that copies of a state may take
log = logging.getLogger("aligner")


@dataclass(frozen=True)
class Share:
    """What one rank writes of a state: flat tensors by the name of their file, and the index of what they hold."""

    tensors: dict[str, torch.Tensor]
    index: list[Piece]


class StateWriter:
    """Writes the resume states of a run into its folder. `begin` and `settle` are called by all ranks together.

    about: what a state's description says of the run. keep_best: save after every evaluation too, and keep the state with the
    lowest held-out loss besides the newest ones.
    """

    def __init__(
        self, engine: Engine, folder: Path, about: dict[str, Any], output: OutputConfig, keep_best: bool
    ) -> None:
        self.engine, self.folder, self.about, self.output = engine, folder / "checkpoints", about, output
        self.keep_best = keep_best
        self.rotate = partial(rotate, folder, output.save_total_limit, keep_best)
        self.worker = ThreadPoolExecutor(1, "state")
        self.writing: Future[None] | None = None
        self.description: dict[str, Any] = {}
        self.began = time.monotonic()
        self.neighbours = engine.ranks.on_this_host()

    def is_due(self, done: int, last: int, evaluated: bool) -> bool:
        """Whether to save after `done` of `last` updates: at each interval's end, at the end where states are saved at all, and
        after an evaluation where the best counts."""
        every = self.output.save_interval
        at_end = done == last and bool(every or self.output.save_minutes)
        return at_end or (bool(every) and done % every == 0) or (self.keep_best and evaluated)

    def is_save_due(self) -> bool:
        """Whether --save_minutes have passed on this rank's clock since a state was begun."""
        minutes = self.output.save_minutes
        return minutes is not None and time.monotonic() - self.began >= 60 * minutes

    def begin(self, update: int) -> None:
        """Copy the state after `update` and begin to write it; where host memory has no room for the copy, write it at once.

        UserError on every rank where an earlier state cannot be written, or there is no room on the disk for this one.
        """
        self.settle()
        beside = self.folder / f"update-{update}.partial"
        self.engine.ranks.broadcast_from_rank0(lambda: make_room(beside, self.engine))
        self.began, self.description = time.monotonic(), {**self.about, "update": update, **description(self.engine)}
        share = share_of(self.engine)
        need = sum(tensor.nbytes for tensor in share.tensors.values()) * self.neighbours
        copied = need <= TAKEN * spare_memory()
        self.writing = self.worker.submit(
            write_share, copy_of(share) if copied else share, beside, self.engine.ranks.rank
        )
        if not copied:
            log.info("update %s: training waits for its resume state: host memory has no room for a copy", update)
            wait([self.writing])

    def is_writing(self) -> bool:
        """Whether this rank still writes."""
        return self.writing is not None and not self.writing.done()

    def settle(self) -> None:
        """Wait until all ranks have written, and put the state in its place. Nothing where none was begun.

        UserError on every rank where one cannot write; the states that were there are untouched then.
        """
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        self.engine.ranks.all_succeed(writing.result)
        self.engine.ranks.broadcast_from_rank0(self._put_in_place)

    def _put_in_place(self) -> None:
        final = self.folder / f"update-{self.description['update']}"
        beside = final.with_name(f"{final.name}.partial")
        write_json(beside / "state.json", self.description)
        write_text(beside / COMPLETED, sha256_of(beside / "state.json"))
        remove_folder(final)
        move_folder(beside, final)
        self.rotate()


def description(engine: Engine) -> dict[str, Any]:
    """What resuming needs beside the tensors, as it is now."""
    return {
        "moves": optimizer_steps(engine),
        "schedule": engine.schedule.last_epoch,
        "scaler": engine.scaler_state(),
        "checksums": KIND,
        "shapes": {name: list(shape_of(parameter)) for name, parameter in engine.model.named_parameters()},
    }


def make_room(folder: Path, engine: Engine) -> None:
    """An empty folder for a state. UserError where the disk has no room for it."""
    remove_folder(folder)
    folder.mkdir(parents=True)
    need = sum(numel(p) for p in engine.model.parameters() if p.requires_grad) * STATE_BYTES * 1.01
    free = shutil.disk_usage(folder).free
    if free < need:
        folder.rmdir()
        raise UserError(
            f"{folder.parent} has {free / 1e6:,.1f} MB free, and a resume state takes {need / 1e6:,.1f}. Make room and run "
            "the same command again: it goes on from the last state."
        )


def share_of(engine: Engine) -> Share:
    """This rank's masters and moments where they are. At stage 0 every rank has everything, and the first writes."""
    if engine.stage == 0 and not engine.ranks.first:
        return Share({}, [])
    tensors = {
        f"{kind}-{number}.safetensors": tensor.detach().flatten()
        for number, flat in enumerate(flat_tensors(engine))
        for kind, tensor in {"weight": flat, **moments(engine, flat)}.items()
    }
    return Share(tensors, pieces(engine))


def copy_of(share: Share) -> Share:
    """The same in host memory, which no later update changes."""
    return Share({name: tensor.to("cpu", copy=True) for name, tensor in share.tensors.items()}, share.index)


def write_share(share: Share, state: Path, rank: int) -> None:
    """Write a rank's tensors, each in a file of its own, their index and checksums. UserError where that cannot be done."""
    if not share.tensors:
        return
    folder, checksums = state / f"rank-{rank:05}", dict[str, str]()
    try:
        folder.mkdir()
        for name, tensor in share.tensors.items():
            whole = tensor.cpu()
            checksums[name] = tensor_checksum(whole)
            save_file({"flat": whole}, folder / name)
            give_usual_mode(folder / name)
            sync(folder / name)
        write_json(folder / INDEX, share.index)
        write_json(folder / FILE, {**checksums, INDEX: sha256_of(folder / INDEX)})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be written ({error}). The state before it is untouched: run the same command again to go on."
        ) from None


def rotate(output: Path, keep: int, keep_best: bool) -> None:
    """Remove all but the newest `keep` whole states (and the best), and what a kill left half-written."""
    kept = {*states(output)[-keep:], best_state(output) if keep_best else None}
    for doomed in set((output / "checkpoints").glob("update-*")) - kept:
        if doomed.is_dir():
            remove_folder(doomed)
