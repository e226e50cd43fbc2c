"""The shapes of models: of the published base models by themselves, so that planning needs no access; of others from disk.

The numbers are those of each model's config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import GemmaConfig, LlamaConfig

from aligner.demo import locate
from aligner.models import load_config


@dataclass(frozen=True, eq=False)
class Shape:
    """A model's configuration, and the size in its name in billions of parameters (None where it has none).

    Equal only to itself, so that what is worked out for one can be kept.
    """

    config: Any
    nominal: float | None = None


def _llama(layers: int, hidden: int, inner: int, heads: int, kv_heads: int) -> Any:
    return LlamaConfig(
        vocab_size=32000,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
    )


def _gemma_2b() -> Any:
    return GemmaConfig(
        vocab_size=256000,
        num_hidden_layers=18,
        hidden_size=2048,
        intermediate_size=16384,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=8192,
    )


PUBLISHED = {
    "google/gemma-2b": lambda: Shape(_gemma_2b(), 2),
    "meta-llama/Llama-2-7b-hf": lambda: Shape(_llama(32, 4096, 11008, 32, 32), 7),
    "meta-llama/Llama-2-13b-hf": lambda: Shape(_llama(40, 5120, 13824, 40, 40), 13),
    "meta-llama/Llama-2-70b-hf": lambda: Shape(_llama(80, 8192, 28672, 64, 8), 70),
}


@lru_cache(maxsize=16)
def shape_of_model(name: str, trust_remote_code: bool = False) -> Shape:
    """The shape of a model by its name, folder or hub id. UserError where it cannot be found."""
    return PUBLISHED[name]() if name in PUBLISHED else Shape(load_config(locate(name), trust_remote_code))
