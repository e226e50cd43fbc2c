"""What the steps share: their flag, the models of published shapes, rows, time, and how figures are handed on."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedModel

from aligner.records import Origin
from aligner.training.datasets.supervised import Tokens

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
TINY = "--tiny" in sys.argv
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "A800": 312e12}  # dense bf16, from the data sheets
# Question, answer and correction of published Aligner-2B rows (AlpacaEval): mean tokens, deviation of their logarithms.
PUBLISHED = ((37, 0.8), (360, 0.7), (350, 0.7))


def report(**figures: Any) -> None:
    """Hand figures on to the run: one line of JSON."""
    print(json.dumps(figures), flush=True)


def gemma_2b() -> GemmaConfig:
    """Gemma-2B's shape; tiny: two small layers."""
    if TINY:
        return GemmaConfig(vocab_size=800, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=1, head_dim=16)  # fmt: skip
    return GemmaConfig(vocab_size=256_000, hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18,
                       num_attention_heads=8, num_key_value_heads=1, head_dim=256)  # fmt: skip


def llama_7b() -> LlamaConfig:
    """Llama-2-7B's shape; tiny: two small layers."""
    if TINY:
        return LlamaConfig(
            vocab_size=800, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
        )
    return LlamaConfig(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32,
                       num_attention_heads=32, max_position_embeddings=4096)  # fmt: skip


def random_model(config: Any) -> PreTrainedModel:
    """A model with random weights, made on the device; bf16 on a GPU."""
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if CUDA else None)
    torch.manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device=DEVICE).normal_(0, 0.02)
            setattr(module, name, torch.nn.Parameter(drawn + 1 if drawn.dim() == 1 else drawn))
    model.tie_weights()
    return model.to(DEVICE)


def published_rows(count: int, vocabulary: int, longest: int = 2048, seed: int = 0) -> list[Tokens]:
    """Rows of random ids whose lengths are drawn like the published ones'."""
    draw = np.random.default_rng(seed)
    normal = draw.standard_normal((3, count))
    normal[2] = 0.8 * normal[1] + 0.6 * normal[2]
    q, a, c = (mean * np.exp(sd * z - sd**2 / 2) for (mean, sd), z in zip(PUBLISHED, normal, strict=True))
    prompts = np.minimum(q + a + 21, longest - 64).astype(int)
    targets = np.clip(c, 2, longest - prompts).astype(int)
    return [
        Tokens(draw.integers(1, vocabulary, p + t).astype(np.int32), int(p), Origin("drawn", n), False, False)
        for n, (p, t) in enumerate(zip(prompts, targets, strict=True), 1)
    ]


def synchronise() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def seconds_of(act: Callable[[], object], repeats: int = 10, before: int = 3) -> float:
    """Median seconds of an action on the device, after some that are not counted."""
    taken = []
    for count in range(before + repeats):
        synchronise()
        began = time.perf_counter()
        act()
        synchronise()
        if count >= before:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the expected one's."""
    return float((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-30))


def tokens_in(rows: Sequence[Tokens]) -> int:
    """Real tokens of rows."""
    return sum(len(row.ids) for row in rows)
