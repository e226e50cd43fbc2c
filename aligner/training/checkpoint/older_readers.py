"""What transformers 4 and the servers built on it read by another name, written beside it: rotations, sizes that have
two names, and the tokenizer's class.

transformers 5 writes `rope_parameters` alone, which version 4 passes over in silence: it would turn positions by its defaults.
Both versions read the folder afterwards, the installed one to the same configuration as before (compared).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from aligner.files import read_json, write_json

NEWER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # of tokenizers, and what version 4 calls them


def add_older_names(folder: Path, trust_remote_code: bool = False) -> None:
    """Add them to config.json and tokenizer_config.json of a folder that was just saved."""
    file = folder / "config.json"
    saved = read_json(file)
    before = _read(folder, trust_remote_code)
    write_json(file, with_older_names(saved))
    if _read(folder, trust_remote_code) != before:  # this family means something else by one of the names
        write_json(file, saved)
    _name_tokenizer(folder / "tokenizer_config.json")


def _read(folder: Path, trust_remote_code: bool) -> dict[str, Any] | None:
    try:
        read: dict[str, Any] = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).to_dict()
    except Exception:  # whatever a family's own checks raise
        return None
    return read


def with_older_names(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, and what it has inside, with the older names of its rotations beside the newer one."""
    inner = {
        name: with_older_names(part) for name, part in config.items() if isinstance(part, dict) and "model_type" in part
    }
    kind = str(config.get("model_type"))
    older = {**_aliases(kind, config), **_older(kind, config.get("rope_parameters") or {})}
    return {**config, **{name: value for name, value in older.items() if name not in config}, **inner}


def _aliases(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """What this family's settings are called too: version 4 knows some by the other name alone (num_experts)."""
    if kind not in CONFIG_MAPPING:
        return {}
    names: dict[str, str] = getattr(CONFIG_MAPPING[kind], "attribute_map", {})
    return {alias: config[name] for alias, name in names.items() if name in config}


def _older(kind: str, rope: dict[str, Any]) -> dict[str, Any]:
    if kind.startswith("gemma3") and isinstance(rope.get("full_attention"), dict):
        local = rope.get("sliding_attention") or {}
        return {**_older("", rope["full_attention"]), "rope_local_base_freq": local.get("rope_theta", 10000.0)}
    if "rope_theta" not in rope:
        return {}  # none, or one for each kind of layer
    theta, share = rope["rope_theta"], rope.get("partial_rotary_factor")
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    older: dict[str, Any] = {"rope_theta": theta}
    if share is not None:
        older["partial_rotary_factor"] = share
    if kind.startswith("gpt_neox"):
        older = {"rotary_emb_base": theta, "rotary_pct": 1.0 if share is None else share}
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = scaling
    return older


def _name_tokenizer(file: Path) -> None:
    if not file.is_file():
        return
    settings = read_json(file)
    older = NEWER_CLASSES.get(settings.get("tokenizer_class"))
    if older:
        write_json(file, {**settings, "tokenizer_class": older})
