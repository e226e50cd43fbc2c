"""A folder with a random model of about the embedded model's shape and a small tokenizer, and rows: nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.acceptance.common import TINY

TEMPLATE = Path(__file__).resolve().parents[2] / "template-dataset.json"
VOCABULARY = 600


def save_model(folder: Path) -> Path:
    """SmolLM2-135M's shape, but with 4 layers; tiny: two small ones. The tokenizer is trained on the project's own records."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2} if TINY else \
           {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 4}  # fmt: skip
    heads = (
        {"num_attention_heads": 4, "num_key_value_heads": 2}
        if TINY
        else {"num_attention_heads": 9, "num_key_value_heads": 3}
    )
    vocabulary = VOCABULARY if TINY else 49_152
    config = LlamaConfig(
        vocab_size=vocabulary, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, **size, **heads
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((" ".join(row.values()) for row in rows()), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    return folder


def rows(count: int | None = None) -> list[dict[str, str]]:
    """The project's own records."""
    found: list[dict[str, str]] = json.loads(TEMPLATE.read_text(encoding="utf-8"))[:count]
    return found


def save_rows(file: Path, count: int | None = None) -> Path:
    """Some of them as a file to train on."""
    file.write_text(json.dumps(rows(count)), encoding="utf-8")
    return file
