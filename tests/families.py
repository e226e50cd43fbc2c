"""A tiny model of every causal family that the installed transformers has, by its model type."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 40_000_000  # parameters; what stays above has no tiny configuration here
# What a size is called in one family or another; each gets those that it knows.
SIZES: dict[str, Any] = {
    "vocab_size": 640,  # the tokenizer's 600, and what a family's own class of tokenizers adds
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
                     "encoder_attention_heads"), 4),
    "num_key_value_heads": 2, "head_dim": 8,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx"), 512),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop",
                     "attn_pdrop", "attention_probs_dropout_prob", "hidden_dropout", "classifier_dropout",
                     "summary_first_dropout", "attention_dropout_prob", "emb_dropout", "resid_dropout"), 0.0),
}  # fmt: skip
# What else a family asks for.
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "hidden_size": 32},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "hybrid"]},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "dots1": {"n_shared_experts": 1},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "codegen": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "gemma4_text": {"vocab_size_per_layer_input": 640, "hidden_size_per_layer_input": 8},
    "gemma3n_text": {"vocab_size_per_layer_input": 640, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
                     "laurel_rank": 8},
    "git": {"image_size": 32},
    "gptj": {"rotary_dim": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    "axk1": {"num_key_value_heads": 4, "n_group": 2, "topk_group": 1},
    "bailing_hybrid": {"num_key_value_heads": 4, "n_group": 2, "topk_group": 1},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_config": {"hidden_size_global": 32},
            "decoder_config": {"hidden_size_global": 32}},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
             "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2}},
    "dots3_note": {"text_config": {"num_key_value_heads": 4}, "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
                   "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 32, "adapter_out_dim": 32}},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6, "<|visual token 000000|>": 7}},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},  # the third one attends
    "xlm": {"causal": True},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    **{kind: {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
              "indexer_compress_ratio": 2} for kind in ("qwen4_exp_text", "qwen4_exp")},
    **{kind: {"num_key_value_heads": 4} for kind in (  # latent attention
        "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3",
        "youtu", "kimi_linear",
    )},
    **{kind: {"is_decoder": True} for kind in (
        "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
        "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
    )},
}  # fmt: skip


def tiny_config(kind: str, **more: Any) -> Any:
    """A configuration of this model type with small sizes, also of what it has inside. Raises what the family raises."""
    return _shrunk(CONFIG_MAPPING[kind], {**MORE.get(kind, {}), **more})


def _shrunk(kind: Any, more: dict[str, Any]) -> Any:
    default = kind()
    aliases = {alias for alias, name in getattr(kind, "attribute_map", {}).items() if name not in {**SIZES, **more}}
    names = set(default.to_dict()) | aliases
    sizes = {name: value for name, value in SIZES.items() if name in names and name not in more}
    for name, value in sizes.items():
        if isinstance(value, float) and isinstance(getattr(default, name, None), int):
            sizes[name] = int(value)
    inner = {}
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            wanted = {**MORE.get(part.model_type, {}), **more.get(name, {})}
            inner[name] = _shrunk(type(part), wanted).to_dict()
    config = kind(**{**sizes, **inner, **{key: value for key, value in more.items() if key not in inner}})
    types = getattr(config, "layer_types", None)
    if types and set(types) == {"linear_attention"} and "layer_types" not in more and _can_be_set(kind, "layer_types"):
        return _shrunk(
            kind, {**more, "layer_types": [*types[:-1], "full_attention"]}
        )  # so few layers are all of one kind
    return config


def _can_be_set(kind: Any, name: str) -> bool:
    return not isinstance(getattr(kind, getattr(kind, "attribute_map", {}).get(name, name), None), property)


def save_tiny(kind: str, tokenizer: Path, folder: Path, **more: Any) -> PreTrainedModel:
    """A random model of this type, saved in fp32 beside a tokenizer. ValueError where it is not tiny."""
    config = tiny_config(kind, **more)
    opened = _whole(config) or AutoModelForCausalLM
    if (size := _parameters(opened, config)) > LARGEST:
        raise ValueError(f"its smallest configuration here has {size:,} parameters")
    torch.manual_seed(0)
    model = opened.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # some families begin with zeros, and would hide what is lost
            if not parameter.any():
                parameter.normal_(std=0.02)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return model


def _whole(config: Any) -> Any:
    """What a hub's folder of this type holds where that is more than a language model, and where it can be built here."""
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        with contextlib.suppress(Exception):
            if type(config) in auto._model_mapping and _parameters(auto, config) <= LARGEST:
                return auto
    return None


def _parameters(opened: Any, config: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in opened.from_config(copy.deepcopy(config)).parameters())
