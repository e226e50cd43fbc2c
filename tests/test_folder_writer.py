"""The finished folder is what `save_pretrained` of that model writes: names, values, configuration and shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import save_tiny
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aligner.models import load_model
from aligner.records import UserError
from aligner.training.checkpoint import folder_writer
from aligner.training.checkpoint.folder_writer import check_reopens, plan_folder, write_rest, write_weights

# Fused experts, renamed heads, a wrapper whose text model has a prefix on disk, tied and untied ends, buffers, plain ones.
BASES = {
    "mixtral": {}, "gpt_neox": {}, "qwen2_moe": {}, "qwen3_moe": {}, "deepseek_v3": {}, "olmoe": {}, "phimoe": {},
    "granitemoe": {}, "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1}, "minimax": {}, "ernie4_5_moe": {},
    "qwen3_5_text": {}, "qwen3_5": {}, "gemma3": {}, "phi3": {}, "llama": {}, "bamba": {}, "falcon_h1": {},
    "gemma3_text": {"tie_word_embeddings": True},
}  # fmt: skip


def on_disk(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def write(model, tokenizer, folder: Path, master: bool = False) -> None:
    folder.mkdir()
    plan = plan_folder(model, master)
    write_weights(plan, lambda name: model.get_parameter_or_buffer(name).detach(), folder)
    write_rest(model, tokenizer, folder, plan, model.dtype)
    check_reopens(folder, model, False)


@pytest.mark.parametrize("kind", BASES)
def test_the_folder_is_what_save_pretrained_writes(kind, bpe_folder, tmp_path):
    try:
        save_tiny(kind, bpe_folder, tmp_path / "base", **BASES[kind])
    except (KeyError, ImportError) as error:
        pytest.skip(f"not in this transformers: {error}")
    model, tokenizer = load_model(str(tmp_path / "base"), torch.float32), AutoTokenizer.from_pretrained(bpe_folder)
    with torch.no_grad():  # as if trained
        for parameter in model.parameters():
            parameter.mul_(1.5)
    write(model, tokenizer, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs, base = on_disk(tmp_path / "ours"), on_disk(tmp_path / "theirs"), on_disk(tmp_path / "base")
    assert set(ours) == set(theirs) and set(ours) <= set(base)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")]
    assert configs[1].items() <= {**configs[0], **{k: v for k, v in configs[1].items() if isinstance(v, dict)}}.items()
    assert configs[0]["architectures"] == [type(model).__name__]
    read = [
        {**AutoConfig.from_pretrained(tmp_path / name).to_dict(), "_name_or_path": ""} for name in ("ours", "theirs")
    ]
    assert read[0] == read[1]  # what is beside it, older versions read


def test_a_text_model_that_would_open_nowhere_is_refused_before_training(bpe_folder, tmp_path):
    """A vision model whose language model transformers opens inside it alone."""
    save_tiny("mllama", bpe_folder, tmp_path / "base")
    model = load_model(str(tmp_path / "base"), torch.float32)
    with pytest.raises(UserError, match=r"base: .* a folder of type 'mllama_text_model' would open nowhere"):
        plan_folder(model)


@pytest.mark.parametrize("kind", ["mixtral", "llama"])
def test_several_shards_are_save_pretrained_s_and_no_conversion_is_torn(kind, bpe_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_writer, "SHARD_BYTES", 60_000)
    save_tiny(kind, bpe_folder, tmp_path / "base")
    model, tokenizer = load_model(str(tmp_path / "base"), torch.float32), AutoTokenizer.from_pretrained(bpe_folder)
    write(model, tokenizer, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size=60_000)
    index, other = (json.loads((tmp_path / n / "model.safetensors.index.json").read_text()) for n in ("ours", "theirs"))
    assert index["metadata"] == other["metadata"] and set(index["weight_map"]) == set(other["weight_map"])
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "ours" / file, framework="pt") as opened:
            assert name in opened.keys()  # noqa: SIM118


def test_a_base_with_the_names_of_memory_becomes_one_that_every_tool_reads(bpe_folder, tmp_path):
    """As this program wrote the folders of mixtures once: a warm-up of then goes on into a folder of now."""
    made = save_tiny("mixtral", bpe_folder, tmp_path / "base")
    made.save_pretrained(tmp_path / "memory", save_original_format=False)
    model = load_model(str(tmp_path / "memory"), torch.float32)
    write(model, AutoTokenizer.from_pretrained(bpe_folder), tmp_path / "ours")
    ours, base = on_disk(tmp_path / "ours"), on_disk(tmp_path / "base")
    assert set(ours) == set(base) and all(torch.equal(ours[name], base[name]) for name in base)


def test_what_cannot_be_written_as_it_was_is_refused_with_the_name(bpe_folder, tmp_path):
    save_tiny("llama", bpe_folder, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", key_mapping={r"model\.layers\.(\d+)\.mlp": r"model.layers.\1.mlp"}
    )
    from transformers.core_model_loading import ConversionOps, WeightConverter

    class OneWay(ConversionOps):
        """A conversion without a way back."""

        def convert(self, input_dict, **others):
            return input_dict

    model._weight_conversions = [WeightConverter(["up_proj.weight"], ["up_proj.weight"], [OneWay()])]
    model._weight_conversions[0]._was_used = True
    with pytest.raises(UserError, match="base: its weights cannot be written as they stand"):
        plan_folder(model)
