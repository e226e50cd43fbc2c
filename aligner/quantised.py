"""Base models whose weights are packed into few bits: unpacked where transformers can, or refused before anything is started."""

from __future__ import annotations

import copy
import inspect
from typing import Any

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
