"""A resume state -> a Hugging Face model folder with the run's card: what the model was after that update, to use or to measure."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from aligner.card import card_from, write_card
from aligner.demo import locate
from aligner.file_systems import give_usual_mode, move_folder
from aligner.files import COMPLETED, remove_folder
from aligner.models import fit_embedding, greedy_settings, load_model, load_tokenizer
from aligner.records import UserError
from aligner.training.checkpoint.resume import read_state
from aligner.training.checkpoint.tensor_index import Piece, saved_pieces

Progress = Callable[..., Any]


def export_state(state: Path, output: Path, trusted: bool, progress: Progress) -> int:
    """Write the folder and return the state's update. The base model must still be where it was during the run.

    Weights are the run's own: 16 bit where it saves 16 bit, else its fp32 masters. UserError where the state is damaged or
    the output is there.
    """
    if not ((state / COMPLETED).is_file() and (state / "state.json").is_file()):
        raise UserError(f"{state}: is no resume state. There are some in a run's folder, checkpoints/update-N.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already. Name another --output.")
    read = read_state(state)
    card = card_from(read["card"], str(state))
    half = next((kind for kind in ("bf16", "fp16") if card.config.get(kind) and card.config.get("save_16bit")), None)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}[half]
    base = locate(card.base_model)
    tokenizer = load_tokenizer(base, trusted)
    model = load_model(base, dtype, trusted)
    fit_embedding(model, tokenizer)
    fill(model, state, read["shapes"], progress)
    model.generation_config = greedy_settings(tokenizer)
    partial = output.with_name(f"{output.name}.partial")
    remove_folder(partial)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)  # save_pretrained wakes it
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        give_usual_mode(*partial.iterdir())
        stage = f"{card.stage}, after update {read['update']}"
        write_card(partial, replace(card, stage=stage, settings={**card.settings, "stage": stage}))
        if output.exists():
            output.rmdir()
        move_folder(partial, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{partial} cannot be written ({error}). Make room and run the same command again.") from None
    finally:
        remove_folder(partial)
    return int(read["update"])


def fill(model: torch.nn.Module, state: Path, shapes: dict[str, list[int]], progress: Progress) -> None:
    """Put a state's numbers into the model's parameters. UserError where they are of another model or not whole."""
    named = dict(model.named_parameters())
    if {name: list(parameter.shape) for name, parameter in named.items()} != shapes:
        raise UserError(f"{state}: is of another model than the base that its card names.")
    try:
        with ExitStack() as stack:
            opened = lru_cache(None)(lambda file: stack.enter_context(safe_open(file, framework="pt")))
            saved = saved_pieces(state)
            for name, parameter in progress(named.items()):
                parameter.data.copy_(_whole(name, parameter.shape, saved.get(name, []), opened))
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{state} is damaged ({error}). Take another.") from None


def _whole(
    name: str, shape: torch.Size, saved: list[tuple[Path, Piece]], opened: Callable[[Path], Any]
) -> torch.Tensor:
    """A parameter put together from its pieces, in fp32. ValueError where some of it is missing."""
    whole, copied = torch.empty(math.prod(shape)), 0
    for folder, piece in saved:
        flat = opened(folder / f"weight-{piece.flat}.safetensors").get_slice("flat")
        whole[piece.start : piece.start + piece.size] = flat[piece.offset : piece.offset + piece.size]
        copied += piece.size
    if copied != len(whole):
        raise ValueError(f"{name} is not whole")
    return whole.view(shape)
