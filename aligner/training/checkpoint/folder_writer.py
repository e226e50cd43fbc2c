"""A trained model -> the folder that `save_pretrained` of it would write: names of tensors, shards, configuration, code.

In memory transformers may hold a model under other names than on disk (a mixture's experts in one tensor, a renamed head).
What stands on disk is what every other tool and every other version reads, so the weights are converted back, a group of
tensors at a time: those that one conversion needs together. Nobody holds the whole model for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from aligner.file_systems import give_usual_mode
from aligner.files import sync, write_json
from aligner.models import greedy_settings, load_model, without_memory
from aligner.quantised import described
from aligner.records import UserError
from aligner.training.checkpoint.older_readers import add_older_names
from aligner.training.engine.adapters import has_adapters, plain_names

SHARD_BYTES = 4 << 30

Fetch = Callable[[str], torch.Tensor]
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Group:
    """Tensors of the model that are converted together, and what they become on disk: by name, a tensor without memory."""

    sources: tuple[str, ...]
    targets: dict[str, torch.Tensor]


@dataclass(frozen=True)
class FolderPlan:
    """What the folder will hold: for each file its groups. `shapes` knows every shape, and how to convert back."""

    shapes: PreTrainedModel
    shards: dict[str, list[Group]]

    @property
    def files(self) -> dict[str, str]:
        """The file of each tensor on disk."""
        return {name: file for file, groups in self.shards.items() for group in groups for name in group.targets}

    @property
    def index(self) -> dict[str, Any] | None:
        """What stands in the index of several shards; None for a single file."""
        tensors = [t for groups in self.shards.values() for group in groups for t in group.targets.values()]
        sizes = {"total_parameters": sum(t.numel() for t in tensors), "total_size": sum(map(_bytes, tensors))}
        return {"metadata": sizes, "weight_map": self.files} if len(self.shards) > 1 else None


def plan_folder(model: PreTrainedModel, master: bool = False) -> FolderPlan:
    """What the folder of this model, which may be split over ranks, will hold. `master`: floating tensors in fp32.

    UserError where the model cannot be converted back to what its base is on disk, or not opened again from there.
    """
    _check_is_known(model)
    tensors = saved_tensors(model, master)
    conversions = conversions_of(model)
    shapes = without_memory(model) if has_adapters(model) or (conversions and _is_split(model)) else model
    vars(shapes)["_weight_conversions"] = conversions  # what `revert_weight_conversion` reverses
    try:
        grouped = _grouped(tensors, conversions)
        groups = [
            Group(names, revert_weight_conversion(shapes, {name: tensors[name] for name in names})) for names in grouped
        ]
    except Exception as error:  # whatever a conversion may raise, it is this model's
        raise _no_way_back(model, f"{type(error).__name__}: {error}") from error
    _check_way_back(model, tensors, groups)
    return FolderPlan(shapes, _shards(groups))


def _check_is_known(model: PreTrainedModel) -> None:
    """UserError where transformers opens no causal model by the configuration that will be written.

    A wrapper's text model has a configuration of its own, which not every family lets open alone (Llama 3.2 Vision's does not).
    """
    known = AutoModelForCausalLM._model_mapping
    if not model.is_remote_code() and type(model.config) not in known:
        raise UserError(
            f"{model.config._name_or_path or type(model).__name__}: transformers opens its text model, {type(model).__name__}, as "
            f"a part of the whole alone: a folder of type '{model.config.model_type}' would open nowhere. Train from a text model."
        )


def saved_tensors(model: PreTrainedModel, master: bool = False) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers that are saved, a tied one under the name it is saved by, without memory; where the
    model has adapters, those that it has when they are merged into it."""
    left_out = set(model._keys_to_ignore_on_save or ())
    state: dict[str, torch.Tensor] = {}
    for name, own in plain_names(model).items():
        if name not in left_out:
            tensor = model.get_parameter_or_buffer(own)
            shape, dtype = described(tensor)
            dtype = torch.float32 if master and dtype.is_floating_point else dtype
            state[name] = torch.empty(shape, dtype=dtype, device="meta")
    try:
        return dict(remove_tied_weights_from_state_dict(state, model))
    except RuntimeError as error:
        raise _no_way_back(model, str(error)) from error


def conversions_of(model: PreTrainedModel) -> list[Any]:
    """The conversions that this model went through when it was loaded; to be reversed when it is written.

    Where it went through none (its base has the names of memory, as some programs write them) they are those that
    `save_pretrained` reverses for a new model. Under ZeRO-3 transformers lists all there are, used or not. Unpacking a quantised
    base is not reversed: what was trained is written in full, under the names of full weights.
    """
    listed = getattr(model, "_weight_conversions", None) or ()
    used = [conversion for conversion in listed if conversion.was_used() and not _only_unpacks(conversion)]
    return used or [c for c in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(c, PrefixChange)]


def _only_unpacks(conversion: Any) -> bool:
    """Whether a conversion does nothing but a quantiser's work."""
    operations = getattr(conversion, "operations", ())
    return bool(operations) and all(hasattr(operation, "hf_quantizer") for operation in operations)


def _is_split(model: PreTrainedModel) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _grouped(names: Iterable[str], conversions: Sequence[Any]) -> list[tuple[str, ...]]:
    """Names in groups that are converted together, in the order of `save_pretrained`."""
    reverse = [conversion.reverse_transform() for conversion in reversed(conversions)]
    converters = [conversion for conversion in reverse if isinstance(conversion, WeightConverter)]
    grouped: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = apply_converters(name, converters)
        grouped.setdefault(("", name) if pattern is None else ("converted", target), []).append(name)
    return [tuple(group) for group in grouped.values()]


def _check_way_back(model: PreTrainedModel, tensors: dict[str, torch.Tensor], groups: Sequence[Group]) -> None:
    """UserError where a reader of a group's names on disk would not come to the tensors that they were made of."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    for group in groups:
        for name in group.targets:
            read, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, tensors)
            read = name if read not in tensors and name in tensors else read  # as a reader does, too
            if read not in group.sources:
                raise _no_way_back(model, f"{name} would be read as {read}, and was {group.sources[0]}")


def _no_way_back(model: PreTrainedModel, reason: str) -> UserError:
    name = model.config._name_or_path or type(model).__name__
    return UserError(
        f"{name}: its weights cannot be written as they stand in the base ({' '.join(reason.split())[:200]}): other tools could "
        "not open the result. Train another base model, or use another version of transformers."
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _shards(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups in files of at most SHARD_BYTES; a larger group has a file of its own."""
    shards: list[list[Group]] = [[]]
    filled = 0
    for group in groups:
        size = sum(map(_bytes, group.targets.values()))
        if filled and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(group)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, 1)}


def write_weights(plan: FolderPlan, fetch: Fetch, folder: Path | None, progress: Progress = iter) -> None:
    """Write the shards, one after another; each is read back and compared. UserError where one cannot be written.

    `fetch(NAME)` gives a tensor of the model whole, on the CPU. Ranks among which it is split all call this, in step; those
    without a folder write nothing.
    """
    following = iter(progress([group for groups in plan.shards.values() for group in groups]))
    for file, groups in plan.shards.items():
        shard: dict[str, torch.Tensor] = {}
        for group in islice(following, len(groups)):
            whole = {name: fetch(name) for name in group.sources}
            if folder is not None:
                shard |= revert_weight_conversion(plan.shapes, whole)
            del whole
        if folder is not None:
            _write_shard({name: tensor.contiguous() for name, tensor in shard.items()}, folder / file)


def _write_shard(shard: dict[str, torch.Tensor], file: Path) -> None:
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


def _checksum(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype, int]:
    flat = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return tuple(tensor.shape), tensor.dtype, zlib.crc32(flat.data)


def write_rest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    plan: FolderPlan,
    dtype: torch.dtype,
    trusted: bool = False,
) -> None:
    """Configuration, generation settings, tokenizer, the model's own code, and the index of several shards."""
    config = model.config
    config.dtype = dtype
    config.architectures = [type(model).__name__]  # servers choose their own implementation by it
    config.use_cache = True
    vars(config).pop("quantization_config", None)  # of weights that were in 4 bits for the run
    if model.is_remote_code():
        custom_object_save(model, folder, config)  # type: ignore[arg-type]
    config.save_pretrained(folder)
    greedy_settings(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_older_names(folder, trusted)
    if plan.index is not None:
        write_json(folder / "model.safetensors.index.json", plan.index)
    give_usual_mode(*folder.glob("*.safetensors"))  # safetensors writes for its owner alone


def check_reopens(folder: Path, model: PreTrainedModel, trusted: bool) -> None:
    """Open the folder as a user will, without memory for its weights. UserError where names or shapes do not fit."""
    reopened = load_model(str(folder), torch.float32, trusted, device_map="meta")
    own = {name: described(tensor)[0] for name, tensor in model.named_parameters()}
    ours = {plain: own[name] for plain, name in plain_names(model).items() if name in own}
    theirs = {name: tuple(tensor.shape) for name, tensor in reopened.named_parameters()}
    if ours != theirs:
        raise UserError(f"{folder}: opens as another model than the one trained. Nothing was put in place.")
