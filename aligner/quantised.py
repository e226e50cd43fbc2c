"""Weights packed into few bits: those of a base are unpacked where transformers can, or refused before anything is started; those
that LoRA leaves as they are may be packed for the run."""

from __future__ import annotations

import copy
import inspect
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

from aligner.models import load_config
from aligner.records import UserError


def unpacking(name: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Options of `from_pretrained` by which a model's weights are unpacked to be trained; none where they are not packed.

    UserError where they are, and cannot be.
    """
    return check_unpacking(name, load_config(name, trust_remote_code))


def check_unpacking(name: str, config: Any) -> dict[str, Any]:
    """The same of a configuration that was read."""
    settings = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not settings:
        return {}
    values = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method") or "an unnamed method"))
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        method = f"bitsandbytes_{'4' if values.get('load_in_4bit') else '8'}bit"
    kind: Any = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    if kind is None or "dequantize" not in inspect.signature(kind.__init__).parameters:
        raise UserError(
            f"{name}: its weights are quantised ({method}), and transformers cannot unpack them to be trained. Give "
            "--model_name_or_path the model in 16 or 32 bit that it was made from."
        )
    options: dict[str, Any] = {}
    try:
        options["quantization_config"] = kind(dequantize=True)
        merged = AutoHfQuantizer.merge_quantization_configs(copy.deepcopy(settings), options["quantization_config"])
        AutoHfQuantizer.from_config(merged, pre_quantized=True).validate_environment(device_map=None, weights_only=True)
    except ImportError as error:
        raise UserError(f"{name}: its weights are quantised ({method}), and unpacking them needs a package that is not here: "
                        f"{' '.join(str(error).split())[:200]}") from None  # fmt: skip
    except (ValueError, RuntimeError, TypeError):
        return options  # what else this machine lacks, the one that trains may have
    return options


def packing(name: str, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> dict[str, Any]:
    """Options of `from_pretrained` by which a model's linear layers, but for the head, are kept in 4 bits on a device: NF4, its
    scales quantised too, computed with in `dtype` (QLoRA, arXiv 2305.14314).

    UserError where they are quantised already, or bitsandbytes is not installed.
    """
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
