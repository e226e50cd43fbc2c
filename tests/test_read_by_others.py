"""Finished folders are opened by another transformers, in an environment of its own, and give the same logits.

ALIGNER_OTHER_TRANSFORMERS=FOLDER names that environment; where it is not there, it is made.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import venv
from pathlib import Path

import pytest
import torch
from families import save_tiny
from test_folder_writer import on_disk, write
from transformers import AutoTokenizer

from aligner.models import load_model
from aligner.training.checkpoint.older_readers import add_older_names, with_older_names

OTHER = os.environ.get("ALIGNER_OTHER_TRANSFORMERS")
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
