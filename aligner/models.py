"""Load a model and its tokenizer; make the special tokens fit, adding as little as possible."""

from __future__ import annotations

import copy
import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from aligner import network
from aligner.readers.paths import home_expanded, nearest_folder
from aligner.records import UserError

if (
    TYPE_CHECKING
):  # with the code that loads weights, which takes seconds and which looking at a finished run does not need
    from transformers import PreTrainedModel
from aligner.terminal import print_errors

END_OF_TEXT = "</s>"  # added only to a tokenizer that has no end-of-text token at all, as the original did
FILLED = 0.75  # of a GPU's free memory that weights may take
# What families call the number of positions that they have.
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "max_target_positions",
    "seq_length",
    "n_ctx",
    "block_size",
    "model_max_length",
    "max_context_length",
    "context_length",
    "sequence_length",
    "seq_len",
)
SAMPLE = 1 << 20  # bytes read at either end of a weight file to tell two models apart


def quiet_libraries() -> None:
    """Keep transformers' and DeepSpeed's own notices and bars off the screen; errors still come through."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # the user cannot change what these libraries will rename
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _cannot_open(name: str, what: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    if "Unrecognized configuration class" in str(error):  # followed by the names of all families
        return UserError(
            f"{name}: a model of its type has no causal language model in transformers {transformers.__version__}. Give one "
            "that writes text, or the text model inside it."
        )
    if "trust_remote_code" in str(error):
        return UserError(
            f"{name}: its {what} needs Python code that comes with it. --trust_remote_code runs it, if you do."
        )
    if Path(name).is_dir():
        return UserError(f"{name}: no {what} can be loaded from this folder ({reason}).")
    return UserError(
        f"'{name}' is no folder here, and its {what} cannot be fetched from the hub ({reason}).{nearest_folder(name)}"
    )


def check_place(name: str) -> None:
    """UserError for a path that does not exist; else the hub would be queried for it, again and again."""
    meant_as_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
    if meant_as_path and not home_expanded(name).exists():
        raise UserError(f"{name}: there is no such folder.{nearest_folder(name)}")
    if (
        not home_expanded(name).exists()
        and not network.hub_is_offline()
        and not network.is_reachable(network.hub_address())
    ):
        print_errors(f"{network.hub_address()} cannot be reached: {name} is taken from the cache, if it is there")
        network.use_cached_hub()  # its own libraries would try for minutes


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, with an end-of-text and a padding token (see `complete_special_tokens`)."""
    check_place(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _cannot_open(name, "tokenizer", error) from error
    complete_special_tokens(tokenizer)
    return tokenizer


def complete_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer an end-of-text token if it has none, and a padding token out of those it has.

    Padding is masked by lengths, so any token serves; unk comes first because tools that mask by `ids != pad` then
    still see end-of-text. The original adds `<pad>` and grows the embedding to 32,001 rows instead.
    """
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": END_OF_TEXT})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def load_config(name: str, trust_remote_code: bool = False) -> Any:
    """The model's configuration. UserError where there is none."""
    check_place(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        config.get_text_config()  # which raises where several are inside
    except Exception as error:
        raise _cannot_open(name, "configuration", error) from error
    return config


def load_model(name: str, dtype: torch.dtype, trust_remote_code: bool = False, **options: Any) -> PreTrainedModel:
    """A causal language model in `dtype`. UserError where it cannot be opened or weights of it are missing.

    A pickle, which can run code, is opened only where the model's code is trusted too.
    """
    safe = None if trust_remote_code else True
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=safe,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below; transformers refers to a report that nobody sees
            **options,
        )
    except Exception as error:
        if safe and "safetensors" in str(error):
            raise UserError(
                f"{name}: has no weights in safetensors, and a pickle can run code. --trust_remote_code opens one, if you trust "
                "its source."
            ) from None
        raise _cannot_open(name, "model", error) from error
    model, info = loaded
    if wrong := sorted(info["mismatched_keys"]):
        key, there, wanted = wrong[0]
        raise UserError(
            f"{name}: {len(wrong)} weights have another shape than its config.json says: {key} is "
            f"{list(there)} and should be {list(wanted)}."
        )
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if missing := sorted(set(info["missing_keys"]) - tied):
        raise UserError(
            f"{name}: {len(missing)} weights are missing, {missing[0]} among them: the model is incomplete."
        )
    checked: PreTrainedModel = model
    return checked


def without_memory(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with shapes and no numbers, as its own code builds it."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))


def freeze_as_built(model: PreTrainedModel) -> None:
    """Leave out of training what the model's own code does not train, such as the bias of a router's choice.

    transformers makes every floating tensor that it loads trainable, but not under ZeRO-3: the stages would differ.
    """
    trainable = {name: parameter.requires_grad for name, parameter in without_memory(model).named_parameters()}
    for name, parameter in model.named_parameters():
        if not trainable.get(name, True):
            parameter.requires_grad_(False)


def device_map_options(name: str, dtype: torch.dtype, trust_remote_code: bool = False) -> dict[str, Any]:
    """How a model to use, not to train, is put on the GPUs there are, as an option of `from_pretrained`.

    The first GPU where it fits with room for keys, values and activations: spread over several, each layer would wait for the
    one before it and for a copy between devices.
    """
    if not torch.cuda.is_available():
        return {}
    room = torch.cuda.mem_get_info(0)[0]
    try:
        need: float = weight_bytes(load_config(name, trust_remote_code), dtype, trust_remote_code)
    except ValueError:  # no causal model's configuration
        need = float("inf")
    return {"device_map": {"": 0} if need < FILLED * room else "auto"}


def weight_bytes(config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> int:
    """Bytes of a model's weights in a type, counted without loading them."""
    from transformers import AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def greedy_settings(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy by default: a base's own settings (sampling, a repetition penalty) would get in the way of copying."""
    special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return GenerationConfig(bos_token_id=special[0], eos_token_id=special[1], pad_token_id=special[2])


def positions_of(config: Any) -> int | None:
    """How many tokens a model can have in all; None where nothing limits them."""
    text = config.get_text_config()
    known = [getattr(text, name, None) for name in POSITIONS]
    return next((value for value in known if isinstance(value, int) and value > 0), None)


def fit_embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embedding where the tokenizer has more tokens than it has rows; never shrink it."""
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)


def fingerprint(name: str, trust_remote_code: bool = False) -> str:
    """A short hash that tells two models apart: configuration, and size and both ends of every weight file.

    A hub id is its own fingerprint, with the commit where it is known.
    """
    folder = Path(name)
    if not folder.is_dir():
        commit = getattr(load_config(name, trust_remote_code), "_commit_hash", None)
        return f"{name}@{commit}" if commit else name
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name == "config.json" or file.suffix in (".safetensors", ".bin"):
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(SAMPLE))
                stream.seek(max(0, size - SAMPLE))
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()
