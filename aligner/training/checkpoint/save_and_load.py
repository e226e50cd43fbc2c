"""Save, resume, export. Whatever a later step reads is written beside its place and renamed when it is whole."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from aligner.file_systems import give_usual_mode, move_folder
from aligner.files import COMPLETED, remove_folder, sync, write_json, write_text
from aligner.models import greedy_settings, load_model
from aligner.records import UserError
from aligner.training.checkpoint.partitions import (
    flat_tensors,
    moments,
    optimizer_steps,
    pieces,
    refresh_weights,
    set_optimizer_steps,
)
from aligner.training.checkpoint.resume import read_state, states
from aligner.training.checkpoint.tensor_index import Piece, saved_pieces
from aligner.training.engine.engine import Engine, full_precision, gathered, numel, shape_of

SHARD_BYTES = 4 << 30


def save(engine: Engine, output: Path, state: dict[str, Any], keep: int) -> None:
    """Save a resume state after update `state['update']` and remove all but the newest `keep`. Called by all ranks.

    UserError on every rank where one cannot write; the states that were there are untouched then.
    """
    name = f"update-{state['update']}"
    partial = output / "checkpoints" / f"{name}.partial"
    engine.ranks.broadcast_from_rank0(lambda: make_room(partial, engine))
    engine.ranks.all_succeed(lambda: write_rank(engine, partial))

    def put_in_place() -> None:
        own = {
            "moves": optimizer_steps(engine),
            "schedule": engine.schedule.last_epoch,
            "scaler": engine.scaler_state(),
        }
        write_json(partial / "state.json", {**state, **own, "shapes": _shapes(engine)})
        write_text(partial / COMPLETED, "")
        remove_folder(output / "checkpoints" / name)
        move_folder(partial, output / "checkpoints" / name)
        rotate(output, keep)

    engine.ranks.broadcast_from_rank0(put_in_place)


def make_room(partial: Path, engine: Engine) -> None:
    """An empty folder for a state. UserError where the disk has no room for it."""
    remove_folder(partial)
    partial.mkdir(parents=True)
    need = sum(map(numel, engine.model.parameters())) * 3 * 4 * 1.01
    free = shutil.disk_usage(partial).free
    if free < need:
        partial.rmdir()
        raise UserError(
            f"{partial.parent} has {free / 1e6:,.1f} MB free, and a resume state takes {need / 1e6:,.1f}. Make room and run "
            "the same command again: it goes on from the last state."
        )


def write_rank(engine: Engine, folder: Path) -> None:
    """This rank's masters and moments, a file for each flat tensor, and the index of what they hold.

    At stage 0 every rank has everything, and the first writes.
    """
    if engine.stage == 0 and not engine.ranks.first:
        return
    mine = folder / f"rank-{engine.ranks.rank:05}"
    mine.mkdir()
    try:
        for number, flat in enumerate(flat_tensors(engine)):
            for kind, tensor in {"weight": flat, **moments(engine, flat)}.items():
                file = mine / f"{kind}-{number}.safetensors"
                save_file({"flat": tensor.detach().flatten().cpu()}, file)
                give_usual_mode(file)
                sync(file)
        write_json(mine / "pieces.json", pieces(engine))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{mine} cannot be written ({error}). The state before it is untouched: run the same command again to go on."
        ) from None


def rotate(output: Path, keep: int) -> None:
    """Remove all but the newest `keep` whole states, and what a kill left half-written."""
    for doomed in set((output / "checkpoints").glob("update-*")) - set(states(output)[-keep:]):
        if doomed.is_dir():
            remove_folder(doomed)


def load(engine: Engine, checkpoint: Path) -> None:
    """Put weights, moments and schedule back to a resume state, by however many ranks and at whichever stage it was saved."""
    state = read_state(checkpoint)
    for name, shape in _shapes(engine).items():
        if state["shapes"].get(name) != shape:
            raise UserError(
                f"{checkpoint} was saved from another model: {name} was {state['shapes'].get(name)} and is {shape}."
            )
    engine.ranks.all_succeed(lambda: _read_pieces(engine, checkpoint))
    set_optimizer_steps(engine, state["moves"])
    refresh_weights(engine)
    engine.restore_schedule(state["schedule"], state["scaler"])


def _shapes(engine: Engine) -> dict[str, list[int]]:
    return {name: list(shape_of(parameter)) for name, parameter in engine.model.named_parameters()}


def _read_pieces(engine: Engine, checkpoint: Path) -> None:
    """Fill this rank's flat tensors from the files that hold their numbers."""
    try:
        saved = saved_pieces(checkpoint)
        with ExitStack() as stack:
            opened = lru_cache(None)(lambda file: stack.enter_context(safe_open(file, framework="pt")))
            flats = flat_tensors(engine)
            for wanted in pieces(engine):
                kinds = {"weight": flats[wanted.flat], **moments(engine, flats[wanted.flat])}
                copied = sum(_copy(kinds, wanted, *source, opened) for source in saved.get(wanted.name, []))
                if copied != wanted.size:
                    raise UserError(f"{checkpoint}: {wanted.name} is not whole in it.")
    except (OSError, SafetensorError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{checkpoint} is damaged ({error}). Remove it to go on from an earlier one.") from None


def _copy(kinds: dict[str, torch.Tensor], wanted: Piece, folder: Path, piece: Piece, opened: Any) -> int:
    """Copy what a saved piece has of a wanted one into the flat tensors. Returns how many numbers."""
    first = max(wanted.start, piece.start)
    count = min(wanted.start + wanted.size, piece.start + piece.size) - first
    if count <= 0:
        return 0
    here, there = wanted.offset + first - wanted.start, piece.offset + first - piece.start
    for kind, flat in kinds.items():
        source = opened(folder / f"{kind}-{piece.flat}.safetensors").get_slice("flat")[there : there + count]
        flat.detach().view(-1)[here : here + count].copy_(source)
    return count


def export(engine: Engine, tokenizer: PreTrainedTokenizerBase, output: Path, master: bool, trusted: bool) -> None:
    """Write a Hugging Face model folder from a model that may be split over ranks. Called by all ranks.

    Weights are gathered, written and released shard by shard; tied ones are written once; every shard is read back and
    compared. `master` writes the fp32 master weights of a 16-bit run; `trusted` allows the
    model's own code when the folder is reopened. The files move into place when all are whole.
    """
    partial = output / "export.partial"
    if engine.ranks.first:
        remove_folder(partial)
        partial.mkdir(parents=True)
    shards = _shards(engine.model, master)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(engine, names, partial / file, master)
        index.update(dict.fromkeys(names, file))
    if engine.ranks.first:
        _write_rest(engine, tokenizer, partial, index if len(shards) > 1 else None, master)
        _reopen(partial, engine.model, trusted)
        _move_into_place(partial, output)
    engine.ranks.wait()


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters (a tied one under its first name) and persistent buffers, by name."""
    kept = set(model.state_dict().keys())
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if name in kept}


def _shards(model: torch.nn.Module, master: bool) -> list[list[str]]:
    """Names in groups of at most SHARD_BYTES."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in _tensors(model).items():
        shape = shape_of(tensor) if isinstance(tensor, torch.nn.Parameter) else tuple(tensor.shape)
        size = int(torch.Size(shape).numel()) * (4 if master else tensor.element_size())
        if filled and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _whole(engine: Engine, names: list[str], master: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor whole on the CPU of the first rank, one after another; the others get an empty one."""
    tensors = _tensors(engine.model)
    for name in names:
        tensor = tensors[name]
        if isinstance(tensor, torch.nn.Parameter) and master:
            yield name, _on_cpu(full_precision(tensor), engine)
        elif isinstance(tensor, torch.nn.Parameter):
            with gathered([tensor]):
                whole = _on_cpu(tensor, engine)
            yield name, whole
        else:
            yield name, _on_cpu(tensor, engine)


def _on_cpu(tensor: torch.Tensor, engine: Engine) -> torch.Tensor:
    """A copy on the first rank."""
    return tensor.detach().to("cpu", copy=True).contiguous() if engine.ranks.first else torch.empty(0)


def _write_shard(engine: Engine, names: list[str], file: Path, master: bool) -> None:
    shard = dict(_whole(engine, names, master))
    if engine.ranks.first:
        try:
            save_file(shard, file, metadata={"format": "pt"})
            sync(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be written ({error}). Make room and run the same command again.") from None
        with safe_open(file, framework="pt") as written:
            same = set(written.keys()) == set(shard) and all(
                _checksum(written.get_tensor(name)) == _checksum(tensor) for name, tensor in shard.items()
            )
        if not same:
            raise UserError(f"{file}: what was read back differs from what was written. Check the disk.")
    engine.ranks.wait()


def _checksum(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype, int]:
    flat = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return tuple(tensor.shape), tensor.dtype, zlib.crc32(flat.data)


def _write_rest(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, folder: Path, index: dict[str, str] | None, master: bool
) -> None:
    """Configuration, generation settings, tokenizer, and the index of several shards."""
    config = engine.model.config
    config.dtype = torch.float32 if master else next(engine.model.parameters()).dtype
    config.use_cache = True
    config.save_pretrained(folder)
    greedy_settings(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if index is not None:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def _reopen(folder: Path, model: torch.nn.Module, trusted: bool) -> None:
    """Open the folder as a user will, without memory for its weights. UserError where names or shapes do not fit."""
    reopened = load_model(str(folder), torch.float32, trusted, device_map="meta")
    ours = {name: shape_of(parameter) for name, parameter in model.named_parameters()}
    theirs = {name: tuple(parameter.shape) for name, parameter in reopened.named_parameters()}
    if ours != theirs:
        raise UserError(f"{folder}: opens as another model than the one trained. Nothing was put in place.")


def _move_into_place(partial: Path, output: Path) -> None:
    """Replace an earlier export by a whole new one: weights of another number of shards must not stay beside."""
    for old in output.glob("model*.safetensors*"):
        old.unlink()
    for file in sorted(partial.iterdir()):
        give_usual_mode(file)
        file.replace(output / file.name)
    partial.rmdir()
