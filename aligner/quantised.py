"""Weights packed into few bits: those of a base are unpacked where transformers can, or refused before anything is started; those
that LoRA leaves as they are may be packed for the run."""

from __future__ import annotations

import copy
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from aligner.models import load_config
from aligner.records import UserError

# What other programs call their settings: a file beside the model, or a key of config.json. transformers reads none of them.
FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
    "quant_model_description.json": "msModelSlim",
}
KEYS = {"quantization": "MLX", "compression_config": "compressed-tensors"}
# How tensors are stored that stand for others: a type, or a name with a type of whole numbers.
PACKED_TYPES = ("F4", "F6", "F8")
WHOLE_TYPES = ("U8", "I8", "I16", "U16", "I32", "U32")
PACKED_NAMES = (".weight", "weight_packed", "qweight", "qzeros", "_blocks", "_scales", "_q", ".codes", ".quant_map")


def unpacking(name: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Options of `from_pretrained` by which a model's weights are unpacked to be trained; none where they are not packed.

    UserError where they are, and cannot be; also where nothing but the files themselves tells, which transformers would take for
    plain numbers.
    """
    config = load_config(name, trust_remote_code)
    options = check_unpacking(name, config)
    if not options and (method := _method_of_files(Path(name))):
        raise _cannot(name, method)
    return options


def _method_of_files(folder: Path) -> str:
    """By which method a folder's weights are packed of which its configuration says nothing; empty where they are plain."""
    for settings, method in FILES.items():
        if (folder / settings).is_file():
            return f"{method}, by its {settings}"
    for file in sorted(folder.glob("*.safetensors")):
        for tensor, dtype in _types(file).items():
            whole = dtype in WHOLE_TYPES and tensor.endswith(PACKED_NAMES)
            if whole or dtype.startswith(PACKED_TYPES):
                return f"{tensor} is stored as {dtype}, and its config.json does not say how"
    return ""


def _types(file: Path) -> dict[str, str]:
    """The type of each tensor of a safetensors file, from its header; nothing where it has none (opening it will tell)."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def check_unpacking(name: str, config: Any) -> dict[str, Any]:
    """The same of a configuration that was read."""
    text = config.get_text_config()
    settings = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if not settings:
        for key, program in KEYS.items():
            if getattr(config, key, None) or getattr(text, key, None):
                raise _cannot(name, f"{program}, by '{key}' in its config.json")
        return {}
    values = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method") or "an unnamed method"))
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        method = f"bitsandbytes_{'4' if values.get('load_in_4bit') else '8'}bit"
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer  # takes seconds

    kind: Any = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    if kind is None or "dequantize" not in inspect.signature(kind.__init__).parameters:
        raise _cannot(name, method)
    options: dict[str, Any] = {}
    try:
        options["quantization_config"] = kind(dequantize=True)
        merged = AutoHfQuantizer.merge_quantization_configs(copy.deepcopy(settings), options["quantization_config"])
        AutoHfQuantizer.from_config(merged, pre_quantized=True).validate_environment(device_map=None, weights_only=True)
    except ImportError as error:
        raise UserError(
            f"{name}: its weights are quantised ({method}), and unpacking them needs a package that is not here: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    except (ValueError, RuntimeError, TypeError):
        return options  # what else this machine lacks, the one that trains may have
    return options


def _cannot(name: str, method: str) -> UserError:
    return UserError(
        f"{name}: its weights are quantised ({method}), and transformers cannot unpack them to be trained. Give "
        "--model_name_or_path the model in 16 or 32 bit that it was made from."
    )


def packing(name: str, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> dict[str, Any]:
    """Options of `from_pretrained` by which a model's linear layers, but for the head, are kept in 4 bits on a device: NF4, its
    scales quantised too, computed with in `dtype` (QLoRA, arXiv 2305.14314).

    UserError where they are quantised already, or bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise UserError("--lora_4bit needs the package bitsandbytes: pip install 'bitsandbytes>=0.48'.")
    if unpacking(name, trust_remote_code):
        raise UserError(
            f"{name}: its weights are quantised already. Leave --lora_4bit out, or give the model in 16 bit."
        )
    kept: Any = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": kept, "device_map": {"": device}}


def unpacked(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is computed with: one of 4 bits in the type that it was packed from."""
    state = getattr(tensor, "quant_state", None)
    if state is None:
        return tensor
    import bitsandbytes

    whole: torch.Tensor = bitsandbytes.functional.dequantize_4bit(tensor.data, state)
    return whole


def described(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of a tensor that may be packed, or split over ranks, as if it were neither."""
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        return tuple(state.shape), state.dtype
    return tuple(getattr(tensor, "ds_shape", tensor.shape)), tensor.dtype
