"""Rows to time with: ids of given lengths, drawn or real, and a small model of a given vocabulary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from aligner.demo import FOLDER, locate
from aligner.encoder import Encoder
from aligner.files import cache_folder, is_completed
from aligner.prompts import DEFAULT
from aligner.records import Correction, Origin
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.supervised import Tokens, tokenise

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "qac_aligner2b_alpacaeval.json"
MAX_LENGTH = 2048
# Question, answer, correction: mean tokens and the deviation of their logarithms; answer and correction go together.
LOGNORMAL = ((30, 0.6), (200, 0.7), (200, 0.7))
SHORT = ((20, 0.6), (40, 0.6), (35, 0.6))
TOGETHER = 0.8
FRAME = 21  # tokens of the prompt's own words


@dataclass(frozen=True)
class Workload:
    """A vocabulary and what rows: lognormal, short, constant (nothing to pad), or real ones."""

    vocabulary: int
    lengths: str

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.vocabulary // 1000}k, {self.lengths}"


WORKLOADS = [
    Workload(12_288, "lognormal"),
    Workload(32_000, "lognormal"),
    Workload(49_152, "lognormal"),
    Workload(12_288, "short"),
    Workload(12_288, "constant"),
    Workload(49_152, "real"),
]


def available(workload: Workload) -> bool:
    """Whether its rows can be had here, without a network: real ones need their file and the embedded tokenizer."""
    return workload.lengths != "real" or (REAL.is_file() and is_completed(cache_folder() / FOLDER))


def lengths_of(kind: str, count: int, seed: int) -> list[tuple[int, int]]:
    """Tokens of prompt and of correction for each row."""
    if kind == "constant":
        return [(250, 200)] * count
    draw = np.random.default_rng(seed)
    parts = {"lognormal": LOGNORMAL, "short": SHORT}[kind]
    normal = draw.standard_normal((3, count))
    normal[2] = TOGETHER * normal[1] + np.sqrt(1 - TOGETHER**2) * normal[2]
    q, a, c = (mean * np.exp(sd * z - sd**2 / 2) for (mean, sd), z in zip(parts, normal, strict=True))
    prompts = np.minimum(q + a + FRAME, MAX_LENGTH - 64).astype(int)
    targets = np.clip(c, 2, MAX_LENGTH - prompts).astype(int)
    return list(zip(prompts.tolist(), targets.tolist(), strict=True))


def rows_of(workload: Workload, count: int, seed: int = 0) -> list[Tokens]:
    """`count` rows: real ones as the embedded model's tokenizer reads them, else random ids."""
    if workload.lengths == "real":
        return real_rows(REAL, count, seed)
    draw = np.random.default_rng(seed + 1)
    return [
        Tokens(draw.integers(1, workload.vocabulary, p + c).astype(np.int32), p, Origin("drawn", n), False, False)
        for n, (p, c) in enumerate(lengths_of(workload.lengths, count, seed), 1)
    ]


def real_rows(file: Path, count: int, seed: int = 0) -> list[Tokens]:
    """A seeded choice of a file's rows."""
    data = json.loads(file.read_text(encoding="utf-8"))
    chosen = np.random.default_rng(seed).permutation(len(data))[:count]
    records = [
        Correction(data[n]["question"], data[n]["answer"], data[n]["correction"], Origin(file.name, int(n) + 1))
        for n in chosen
    ]
    encoder = Encoder(AutoTokenizer.from_pretrained(locate("embedded")))
    return tokenise(records, RunPrompts(DEFAULT), encoder, MAX_LENGTH)[0]


def model_of(vocabulary: int) -> LlamaForCausalLM:
    """Hidden 384, 10 layers: at 12,288 tokens the head's share of the operations is that of Gemma-2B (21 %)."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, hidden_size=384, intermediate_size=1024, num_hidden_layers=10,
                    num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=True)
    ).train()  # fmt: skip
