"""A resume state -> an engine, and an engine -> a model folder, written beside its place and renamed when it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from aligner.files import remove_folder
from aligner.quantised import unpacked
from aligner.records import UserError
from aligner.training.checkpoint.checksums import state_reader
from aligner.training.checkpoint.folder_writer import check_reopens, plan_folder, write_rest, write_weights
from aligner.training.checkpoint.partitions import (
    flat_tensors,
    moments,
    pieces,
    refresh_weights,
    set_optimizer_steps,
)
from aligner.training.checkpoint.resume import read_state
from aligner.training.checkpoint.tensor_index import Piece, saved_pieces
from aligner.training.engine.adapters import merging, write_adapters
from aligner.training.engine.engine import Engine, full_precision, gathered, shape_of
from aligner.training.stages import ADAPTER


def load(engine: Engine, checkpoint: Path) -> None:
    """Put weights, moments and schedule back to a resume state, by however many ranks and at whichever stage it was saved."""
    state = read_state(checkpoint)
    for name, parameter in engine.model.named_parameters():
        if state["shapes"].get(name) != (shape := list(shape_of(parameter))):
            raise UserError(
                f"{checkpoint} was saved from another model: {name} was {state['shapes'].get(name)} and is {shape}."
            )
    engine.ranks.all_succeed(lambda: _read_pieces(engine, checkpoint))
    set_optimizer_steps(engine, state["moves"])
    refresh_weights(engine)
    engine.restore_schedule(state["schedule"], state["scaler"])


def _read_pieces(engine: Engine, checkpoint: Path) -> None:
    """Fill this rank's flat tensors from the files that hold their numbers."""
    try:
        with state_reader(checkpoint) as opened:
            saved, flats = saved_pieces(checkpoint), flat_tensors(engine)
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
        source = opened(folder / f"{kind}-{piece.flat}.safetensors")[there : there + count]
        flat.detach().view(-1)[here : here + count].copy_(source)
    return count


def export(engine: Engine, tokenizer: PreTrainedTokenizerBase, output: Path, master: bool, trusted: bool) -> None:
    """Write a Hugging Face model folder from a model that may be split over ranks. Called by all ranks.

    Weights are gathered, converted back, written and released shard by shard (folder_writer.py). Adapters are merged into
    them, and written by themselves beside. `master` writes the fp32 master weights of a 16-bit run; `trusted` allows the
    model's own code when the folder is reopened. The files move into place when all are whole.
    """
    partial = output / "export.partial"
    if engine.ranks.first:
        remove_folder(partial)
        partial.mkdir(parents=True)
    plan = plan_folder(engine.model, master)
    folder = partial if engine.ranks.first else None

    def own(name: str) -> torch.Tensor:
        return _whole(engine, name, master)

    write_weights(plan, merging(engine.model, own), folder)
    write_adapters(engine.model, own, folder)
    if engine.ranks.first:
        dtype = torch.float32 if master else next(engine.model.parameters()).dtype
        write_rest(engine.model, tokenizer, partial, plan, dtype, trusted)
        check_reopens(partial, engine.model, trusted)
        _move_into_place(partial, output)
    engine.ranks.wait()


def _whole(engine: Engine, name: str, master: bool) -> torch.Tensor:
    """A tensor whole on the CPU of the first rank; the others get an empty one. `master`: in fp32."""
    tensor = engine.model.get_parameter_or_buffer(name)
    if master and tensor.requires_grad:
        return _on_cpu(full_precision(tensor), engine, master)
    with gathered([tensor] if isinstance(tensor, torch.nn.Parameter) else []):
        return _on_cpu(tensor, engine, master)


def _on_cpu(tensor: torch.Tensor, engine: Engine, master: bool) -> torch.Tensor:
    """A copy on the first rank."""
    if not engine.ranks.first:
        return torch.empty(0)
    tensor = unpacked(tensor)
    dtype = torch.float32 if master and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _move_into_place(partial: Path, output: Path) -> None:
    """Replace an earlier export by a whole new one: weights of another number of shards must not stay beside."""
    for old in output.glob("model*.safetensors*"):
        old.unlink()
    if (output / ADAPTER).is_dir():
        remove_folder(output / ADAPTER)
    for file in sorted(partial.iterdir()):
        file.replace(output / file.name)
    partial.rmdir()
