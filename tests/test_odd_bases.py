"""Base models that need something: unpacked where that can be done, refused in one line where not, before ranks start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from families import save_tiny
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.utils import is_compressed_tensors_available

from aligner.models import load_model
from aligner.quantised import check_unpacking, unpacking
from aligner.records import UserError

CANNOT = {
    "gptq": {"bits": 4, "group_size": 128}, "awq": {"bits": 4}, "aqlm": {}, "hqq": {}, "quanto": {}, "eetq": {}, "vptq": {},
    "bitsandbytes": {"load_in_4bit": True}, "torchao": {}, "spqr": {}, "higgs": {}, "quark": {}, "a-new-one": {},
}  # fmt: skip


@pytest.mark.parametrize("method", CANNOT)
def test_what_cannot_be_unpacked_is_refused_with_the_remedy(method, tiny_model, tmp_path, capsys):
    from aligner import cli

    shutil.copytree(tiny_model, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    settings = {"quant_method": method, **CANNOT[method]}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": settings}))
    with pytest.raises(UserError, match=r"base: its weights are quantised \(.+\), and transformers cannot unpack them"):
        unpacking(str(tmp_path / "base"))
    if method in ("gptq", "bitsandbytes"):
        assert cli.main(["plan", "--model_name_or_path", str(tmp_path / "base"), "--gpus", "8"]) == 2
        assert "are quantised" in capsys.readouterr().err


def test_a_package_that_unpacking_needs_is_named_before_anything_starts(tiny_model, tmp_path):
    if is_compressed_tensors_available():
        pytest.skip("it is installed here")
    shutil.copytree(tiny_model, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": settings}))
    with pytest.raises(UserError, match=r"needs a package that is not here: .*compressed-tensors"):
        unpacking(str(tmp_path / "base"))


def test_a_plain_base_needs_no_unpacking(tiny_model):
    assert unpacking(str(tiny_model)) == {}


def mxfp4(tokenizer: Path, folder: Path) -> Path:
    """A random gpt-oss whose experts are packed as its makers pack them."""
    save_tiny("gpt_oss", tokenizer, folder, hidden_size=32, intermediate_size=32, num_local_experts=2)
    tensors = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if "experts" in name and "bias" not in name]:
        experts, inner, outer = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), generator=draw, dtype=torch.uint8)
        tensors[f"{name}_blocks"] = blocks
        tensors[f"{name}_scales"] = torch.full((experts, outer, inner // 32), 121, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


def fp8(tokenizer: Path, folder: Path) -> Path:
    """A random Qwen3 whose matrices are packed in blocks of 8 bits."""
    save_tiny("qwen3", tokenizer, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "proj.weight" in name]:
        matrix = tensors[name]
        tensors[name] = (matrix / 0.001).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.full([-(-size // 128) for size in matrix.shape], 0.001)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


@pytest.mark.parametrize("kind", [mxfp4, fp8])
def test_what_can_be_unpacked_opens_as_plain_weights(kind, bpe_folder, tmp_path):
    base = kind(bpe_folder, tmp_path / "base")
    assert check_unpacking("base", AutoConfig.from_pretrained(base))
    model = load_model(str(base), torch.float32, **unpacking(str(base)))
    assert all(p.is_floating_point() and p.element_size() > 1 and p.requires_grad for p in model.parameters())
    assert not hasattr(model.config, "quantization_config")


def test_a_base_whose_weights_have_other_shapes_is_named_with_them(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 48}))
    with pytest.raises(UserError, match=r"6 weights have another shape .*mlp.+ is \[.+64.*\] and should be \[.*48"):
        load_model(str(tmp_path / "base"), torch.float32)


def test_a_model_that_writes_no_text_is_refused_without_a_list_of_all_that_do(tmp_path):
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a model of its type has no causal language model in transformers") as caught:
        load_model(str(tmp_path), torch.float32)
    assert "LlamaConfig" not in str(caught.value)
