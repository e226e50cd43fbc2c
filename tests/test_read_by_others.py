"""Finished folders are opened by another transformers, in an environment of its own, and give the same logits.

ALIGNER_OTHER_TRANSFORMERS=FOLDER names that environment, ALIGNER_LLAMA_CPP=FOLDER llama.cpp's sources; where they are not there,
they are made and fetched.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import torch
from conftest import launch_program
from families import save_tiny
from test_exact_updates import base_flags
from test_folder_writer import on_disk, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligner.demo import embedded_model
from aligner.models import load_model
from aligner.training.checkpoint.older_readers import add_older_names, with_older_names

OTHER, LLAMA_CPP = os.environ.get("ALIGNER_OTHER_TRANSFORMERS"), os.environ.get("ALIGNER_LLAMA_CPP")
CARRIER = "llama-cpp-python==0.3.36"  # the package whose sources hold llama.cpp's
VERSION = "4.57.6"
SETTINGS = {  # what version 4 would miss in silence: frequencies that are not its defaults
    "mixtral": {"rope_theta": 5e5}, "gpt_neox": {"rotary_pct": 0.5, "rotary_emb_base": 3e4, "tie_word_embeddings": False},
    "phi3": {"rope_theta": 2e5}, "gemma3": {}, "qwen3_moe": {"rope_theta": 2e6},
    "qwen3_next": {"rope_theta": 3e6, "layer_types": ["linear_attention", "full_attention"]},
    "llama": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 64}, "rope_theta": 5e5},
}  # fmt: skip
MAKER = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
for folder in sys.argv[1:]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
"""
READER = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], (folder, info)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Who wrote it, and when?")["input_ids"]])
    with torch.no_grad():
        torch.save((ids, model.eval()(input_ids=ids).logits), folder + "/logits.pt")
"""


@pytest.fixture(scope="session")
def other() -> Path:
    """The Python of an environment with another transformers."""
    if not OTHER:
        pytest.skip("ALIGNER_OTHER_TRANSFORMERS names no folder for an environment with transformers 4")
    python = Path(OTHER).absolute() / "bin" / "python"
    if not python.exists():
        venv.create(OTHER, with_pip=True)
        packages = [f"torch=={torch.__version__}", f"transformers=={VERSION}", "safetensors", "jinja2"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=1800)
    return python


def run(other: Path, program: str, folders: list[str]) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([other, "-c", program, *folders], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_folders_of_families_open_in_transformers_4_with_the_same_logits(other, bpe_folder, tmp_path):
    """The bases are version 4's too: what stands on hubs has its names."""
    bases, folders = (
        [str(tmp_path / kind / "base") for kind in SETTINGS],
        [str(tmp_path / kind / "out") for kind in SETTINGS],
    )
    for (kind, more), base in zip(SETTINGS.items(), bases, strict=True):
        save_tiny(kind, bpe_folder, Path(base), initializer_range=0.2, **more)
        add_older_names(Path(base))
    run(other, MAKER, bases)
    for base, folder in zip(bases, folders, strict=True):
        write(load_model(base, torch.float32), AutoTokenizer.from_pretrained(base), Path(folder))
    run(other, READER, folders)
    for folder in folders:
        ids, theirs = torch.load(f"{folder}/logits.pt")
        with torch.no_grad():
            ours = load_model(folder, torch.float32).eval()(input_ids=ids).logits
        assert float((ours - theirs).abs().max()) < 1e-4 * float(ours.abs().max()), folder


def test_rotations_stand_under_both_names_and_read_alike():
    llama = {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0}}
    assert with_older_names(llama)["rope_theta"] == 5e5
    assert with_older_names(llama)["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    wrapper = {"model_type": "w", "text_config": llama}
    assert with_older_names(wrapper)["text_config"]["rope_theta"] == 5e5
    gemma = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
             "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}  # fmt: skip
    older = with_older_names({"model_type": "gemma3_text", "rope_parameters": gemma})
    assert (older["rope_theta"], older["rope_local_base_freq"], older["rope_scaling"]["factor"]) == (1e6, 1e4, 8.0)
    assert with_older_names(json.loads('{"model_type": "gpt2"}')) == {"model_type": "gpt2"}


GGUF = {  # as its converter calls their architectures
    "llama": "LLAMA", "mixtral": "LLAMA", "gpt_neox": "GPTNEOX", "phi3": "PHI3", "gemma3_text": "GEMMA3",
    "qwen3_moe": "QWEN3MOE",
        "gemma2": "GEMMA2", "qwen2": "QWEN2", "deepseek_v3": "DEEPSEEK2", "olmoe": "OLMOE"}  # fmt: skip


@pytest.mark.parametrize("kind", GGUF)
def test_llama_cpps_own_table_knows_every_name(kind, bpe_folder, tmp_path):
    """Its converter stacks a mixture's experts first, so their numbers are left out here."""
    gguf = pytest.importorskip("gguf")
    save_tiny(kind, bpe_folder, tmp_path / "base")
    write(
        load_model(str(tmp_path / "base"), torch.float32), AutoTokenizer.from_pretrained(bpe_folder), tmp_path / "out"
    )
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[GGUF[kind]], 2)
    names = [re.sub(r"experts\.\d+\.", "experts.", name) for name in on_disk(tmp_path / "out")]
    unknown = {name for name in names if table.get_name(name, (".weight", ".bias")) is None}
    assert not {name for name in unknown if "rotary" not in name}


@pytest.fixture(scope="module")
def converter():
    """llama.cpp's converter, out of the sources of a package."""
    if not LLAMA_CPP:
        pytest.skip("ALIGNER_LLAMA_CPP names no folder for llama.cpp's sources")
    folder = Path(LLAMA_CPP).absolute()
    if not list(folder.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")):
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            folder,
        ]
        subprocess.run([*download, CARRIER], check=True, timeout=1800)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as sources:
            sources.extractall(folder, filter="data")
    [program] = folder.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")
    return program


@pytest.fixture(scope="module")
def trained_folders(sentencepiece_folder, rows, tmp_path_factory):
    """Finished folders of real runs: dense and a mixture, with tokenizers of the two kinds that llama.cpp knows."""
    folder, cells = tmp_path_factory.mktemp("trained"), {}
    for kind, tokenizer in [
        ("llama", sentencepiece_folder),
        ("mixtral", sentencepiece_folder),
        ("llama", embedded_model()),
    ]:
        name = f"{kind}-{Path(tokenizer).name[:4]}"
        save_tiny(kind, tokenizer, folder / f"{name}-base", vocab_size=len(AutoTokenizer.from_pretrained(tokenizer)))
        cells[folder / name] = base_flags(
            rows, folder / f"{name}-base", folder / name, records_per_update=8, epochs=1, max_length=512
        )
    (folder / "cells.json").write_text(json.dumps(list(cells.values())))
    launch_program("programs.cells", 1, folder / "cells.json", timeout=900)
    return list(cells)


@pytest.mark.slow
def test_llama_cpps_converter_takes_a_finished_folder_whole(converter, trained_folders, tmp_path):
    """Every tensor arrives under llama.cpp's name with its numbers, and what transformers reads back computes the same."""
    gguf = pytest.importorskip("gguf")
    for folder in trained_folders:
        file = tmp_path / f"{folder.name}.gguf"
        done = subprocess.run(
            [sys.executable, converter, "--outtype", "f32", "--outfile", file, folder],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        written = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(file).tensors}
        ours, table = on_disk(folder), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        named: dict[str, list[str]] = {}  # a mixture's experts are stacked in one tensor
        for name in sorted(ours):
            stacked = re.sub(r"experts\.\d+\.", "experts.", name)
            named.setdefault(str(table.get_name(stacked, (".weight",))), []).append(name)
        assert set(named) == set(written) - {"rope_freqs.weight"}
        for name, sources in named.items():
            if "attn_q" in name or "attn_k" in name:  # whose rows llama.cpp orders otherwise
                assert torch.equal(written[name].sort(0).values, ours[sources[0]].sort(0).values)
            else:
                stack = torch.stack([ours[source] for source in sources]) if len(sources) > 1 else ours[sources[0]]
                assert torch.equal(written[name], stack), name
        if folder.name.startswith("llama"):
            back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
            ids = torch.arange(5, 37)[None]
            with torch.no_grad():
                one, other = (
                    model(input_ids=ids).logits for model in (back, load_model(str(folder), torch.float32).eval())
                )
            assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max())
