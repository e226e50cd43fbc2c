"""A resume state -> a Hugging Face model folder with the run's card: what the model was after that update, to use or to measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from aligner.card import card_from, write_card
from aligner.demo import locate
from aligner.file_systems import move_folder
from aligner.files import COMPLETED, remove_folder
from aligner.models import fit_embedding, freeze_as_built, load_model, load_tokenizer
from aligner.quantised import described, packing, unpacked, unpacking
from aligner.records import UserError
from aligner.training.checkpoint.chat_template import set_chat_template
from aligner.training.checkpoint.checksums import state_reader
from aligner.training.checkpoint.folder_writer import plan_folder, write_rest, write_weights
from aligner.training.checkpoint.resume import read_state
from aligner.training.checkpoint.tensor_index import Piece, saved_pieces
from aligner.training.config import LoraConfig
from aligner.training.engine.adapters import add_adapters, merging, write_adapters

Progress = Callable[..., Any]


def export_state(state: Path, output: Path, trusted: bool, progress: Progress) -> int:
    """Write the folder and return the state's update. The base model must still be where it was during the run.

    Weights are the run's own: 16 bit where it saves 16 bit, else its fp32 masters. What it did not train (frozen parameters,
    buffers) is the base's, as the run computed with it. UserError where the state is damaged or the output is there.
    """
    if not ((state / COMPLETED).is_file() and (state / "state.json").is_file()):
        raise UserError(f"{state}: is no resume state. There are some in a run's folder, checkpoints/update-N.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already. Name another --output.")
    read = read_state(state)
    card = card_from(read["card"], str(state))
    computed = next((kind for kind in ("bf16", "fp16") if card.config.get(kind)), None)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}[computed]
    master = computed is not None and not card.config.get("save_16bit")
    base = locate(card.base_model)
    tokenizer = load_tokenizer(base, trusted)
    model = load_base(base, dtype, trusted, lora_of(card.config))
    fit_embedding(model, tokenizer)
    if card.config.get("lora_rank"):
        add_adapters(model, lora_of(card.config), seed=0)  # their numbers come from the state
    check_shapes(model, state, read["shapes"])
    set_chat_template(tokenizer, card.prompt)
    plan = plan_folder(model, master)
    partial = output.with_name(f"{output.name}.partial")
    remove_folder(partial)
    partial.mkdir(parents=True)
    try:
        with trained_weights(model, state, master) as fetch:
            write_weights(plan, merging(model, fetch), partial, progress)
            write_adapters(model, fetch, partial)
        write_rest(model, tokenizer, partial, plan, torch.float32 if master else dtype, trusted)
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


def load_base(base: str, dtype: torch.dtype, trusted: bool, lora: LoraConfig) -> PreTrainedModel:
    """The base as the run computed with it. UserError where it was in 4 bits, which a GPU unpacks, and there is none."""
    if lora.lora_4bit and not torch.cuda.is_available():
        raise UserError(
            f"{base} was in 4 bits in this run, and is unpacked on a GPU: export the state on a machine that has one."
        )
    packed = packing(base, dtype, torch.device("cuda", 0), trusted) if lora.lora_4bit else unpacking(base, trusted)
    model = load_model(base, dtype, trusted, **packed)
    if not lora.lora_4bit:
        model.to(dtype=dtype)  # type: ignore[call-arg]  # as DeepSpeed does, also to what transformers keeps in 32 bit
    freeze_as_built(model)
    return model


def lora_of(flags: dict[str, Any]) -> LoraConfig:
    """The LoRA flags of a run among all its flags."""
    return LoraConfig(**{field.name: flags[field.name] for field in fields(LoraConfig) if field.name in flags})


def check_shapes(model: torch.nn.Module, state: Path, shapes: dict[str, list[int]]) -> None:
    """UserError where a state is of another model."""
    if {name: list(parameter.shape) for name, parameter in model.named_parameters()} != shapes:
        raise UserError(f"{state}: is of another model than the base that its card names.")


@contextmanager
def trained_weights(model: PreTrainedModel, state: Path, master: bool) -> Iterator[Callable[[str], torch.Tensor]]:
    """A function that gives a tensor of the model by name, as it was after the state's update: the state's own numbers, or
    the base's where it was not trained. `master`: in fp32. UserError where one is not whole in the state."""
    trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with ExitStack() as stack:

        def fetch(name: str) -> torch.Tensor:
            tensor = model.get_parameter_or_buffer(name)
            kind = described(tensor)[1]
            dtype = torch.float32 if master and kind.is_floating_point else kind
            if id(tensor) not in trained:
                return unpacked(tensor).detach().to("cpu", dtype)
            own = trained[id(tensor)]  # a tied parameter's first name
            try:
                return _whole(own, tensor.shape, saved.get(own, []), opened).to(dtype)
            except (OSError, SafetensorError, ValueError, TypeError) as error:
                raise UserError(f"{state} is damaged ({error}). Take another.") from None

        try:
            opened = stack.enter_context(state_reader(state))
            saved = saved_pieces(state)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{state} is damaged ({error}). Take another.") from None
        yield fetch


def _whole(
    name: str, shape: torch.Size, saved: list[tuple[Path, Piece]], opened: Callable[[Path], Any]
) -> torch.Tensor:
    """A parameter put together from its pieces, in fp32. ValueError where some of it is missing."""
    whole, copied = torch.empty(math.prod(shape)), 0
    for folder, piece in saved:
        flat = opened(folder / f"weight-{piece.flat}.safetensors")
        whole[piece.start : piece.start + piece.size] = flat[piece.offset : piece.offset + piece.size]
        copied += piece.size
    if copied != len(whole):
        raise ValueError(f"{name} is not whole")
    return whole.view(shape)
