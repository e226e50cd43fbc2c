"""Base models that need something: unpacked where that can be done, refused in one line where not, before ranks start."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import launch_program
from families import save_tiny
from safetensors.torch import load_file, save_file
from test_exact_updates import base_flags, trajectory
from test_folder_writer import on_disk, write
from transformers import AutoConfig, AutoTokenizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import is_compressed_tensors_available

from aligner.models import load_model
from aligner.quantised import FILES, check_unpacking, unpacking
from aligner.records import UserError

METHODS = [  # of the installed transformers, one that it learns shows up by itself
    method for method, kind in AUTO_QUANTIZATION_CONFIG_MAPPING.items()
    if "dequantize" not in inspect.signature(kind.__init__).parameters
]  # fmt: skip
CANNOT = {
    **{method: {} for method in METHODS}, "gptq": {"bits": 4, "group_size": 128}, "bitsandbytes": {"load_in_4bit": True},
    "modelopt": {"quant_algo": "NVFP4"}, "exl3": {}, "a-new-one": {}, "": {"bits": 4},
}  # fmt: skip


def with_config(base: Path, folder: Path, **settings: object) -> Path:
    """A copy of a base whose config.json says more."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


@pytest.mark.parametrize("method", CANNOT)
def test_what_cannot_be_unpacked_is_refused_with_the_remedy(method, tiny_model, tmp_path, capsys):
    from aligner import cli

    settings = {"quant_method": method, **CANNOT[method]}
    base = str(with_config(tiny_model, tmp_path / "base", quantization_config=settings))
    with pytest.raises(UserError, match=r"base: its weights are quantised \(.+\), and transformers cannot unpack them"):
        unpacking(base)
    if method in ("gptq", "bitsandbytes"):
        assert cli.main(["plan", "--model_name_or_path", base, "--gpus", "8"]) == 2
        assert "are quantised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "settings"),
    [("quantization", {"group_size": 64, "bits": 4}), ("compression_config", {"format": "float-quantized"})],
)
def test_settings_that_transformers_does_not_read_are_seen_in_config_json(key, settings, tiny_model, tmp_path):
    base = with_config(tiny_model, tmp_path / "base", **{key: settings})
    with pytest.raises(UserError, match=rf"quantised \(.*'{key}' in its config.json\)"):
        unpacking(str(base))


@pytest.mark.parametrize("file", FILES)
def test_settings_beside_the_model_are_seen(file, tiny_model, tmp_path):
    (with_config(tiny_model, tmp_path / "base") / file).write_text('{"bits": 4}')
    with pytest.raises(UserError, match=f"quantised .*{file}"):
        unpacking(str(tmp_path / "base"))


STORED = {  # name of a tensor in place of a matrix, its type: each would be left out or taken for plain numbers
    "float8_e4m3fn": ".weight", "float8_e5m2": ".weight", "float8_e8m0fnu": ".weight_scale_inv", "int8": ".weight",
    "uint8": ".weight", "int32": ".qweight", "int16": ".codes",
}  # fmt: skip


@pytest.mark.parametrize("dtype", STORED)
def test_weights_that_are_packed_without_a_word_are_seen_by_their_type(dtype, tiny_model, tmp_path):
    base = with_config(tiny_model, tmp_path / "base")
    tensors, matrix = load_file(base / "model.safetensors"), "model.layers.0.mlp.up_proj"
    tensors[f"{matrix}{STORED[dtype]}"] = tensors.pop(f"{matrix}.weight").to(getattr(torch, dtype))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"quantised \({matrix}{STORED[dtype]} is stored as"):
        unpacking(str(base))


def test_a_package_that_unpacking_needs_is_named_before_anything_starts(tiny_model, tmp_path):
    if is_compressed_tensors_available():
        pytest.skip("it is installed here")
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    with_config(tiny_model, tmp_path / "base", quantization_config=settings)
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [mxfp4, fp8])
def test_a_packed_base_trains_as_its_unpacked_copy_does(kind, real_rows, bpe_folder, tmp_path):
    """Two ranks, ZeRO-2 and ZeRO-3: losses, norms and every number of the finished folder."""
    rows = [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 400][:12]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    packed, plain = kind(bpe_folder, tmp_path / "packed"), tmp_path / "plain"
    model = load_model(str(packed), torch.float32, **unpacking(str(packed)))
    write(model, AutoTokenizer.from_pretrained(bpe_folder), plain)
    cells = {
        (base.name, stage): base_flags(
            tmp_path / "rows.json", base, tmp_path / f"{base.name}-{stage}", records_per_update=4, max_length=512,
            per_device_train_batch_size=2, zero_stage=stage, gradient_checkpointing=False,
        )
        for base in (packed, plain) for stage in (2, 3)
    }  # fmt: skip
    (tmp_path / "cells.json").write_text(json.dumps(list(cells.values())))
    launch_program("programs.cells", 2, tmp_path / "cells.json", timeout=900)
    for stage in (2, 3):
        one, other = (tmp_path / f"{base}-{stage}" for base in ("packed", "plain"))
        assert len(trajectory(one)) == 6 and trajectory(one) == trajectory(other)
        ours, theirs, base = on_disk(one), on_disk(other), on_disk(plain)
        assert ours.keys() == theirs.keys() == base.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert any(not torch.equal(ours[name], base[name]) for name in ours if "proj" in name)
        assert "quantization_config" not in (one / "config.json").read_text()
        assert load_model(str(one), torch.float32).dtype == torch.float32


@pytest.mark.parametrize("kind", [mxfp4, fp8])
def test_what_can_be_unpacked_opens_as_plain_weights(kind, bpe_folder, tmp_path):
    base = kind(bpe_folder, tmp_path / "base")
    assert check_unpacking("base", AutoConfig.from_pretrained(base))
    model = load_model(str(base), torch.float32, **unpacking(str(base)))
    assert all(p.is_floating_point() and p.element_size() > 1 and p.requires_grad for p in model.parameters())
    assert not hasattr(model.config, "quantization_config")


def test_a_base_whose_weights_have_other_shapes_is_named_with_them(tiny_model, tmp_path):
    with_config(tiny_model, tmp_path / "base", intermediate_size=48)
    with pytest.raises(UserError, match=r"6 weights have another shape .*mlp.+ is \[.+64.*\] and should be \[.*48"):
        load_model(str(tmp_path / "base"), torch.float32)


def test_a_model_that_writes_no_text_is_refused_without_a_list_of_all_that_do(tmp_path):
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a model of its type has no causal language model in transformers") as caught:
        load_model(str(tmp_path), torch.float32)
    assert "LlamaConfig" not in str(caught.value)


def test_a_model_of_several_text_models_is_refused_in_one_line(tmp_path):
    from transformers import MusicgenConfig

    MusicgenConfig().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"no configuration can be loaded from this folder \(Multiple valid text configs"
    ):
        unpacking(str(tmp_path))
