"""At the start of a run the objective is compared with the model's own logits, whatever its configuration says of its head."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import launch_program
from families import save_tiny

from aligner.training.engine.objective_check import _is_rounding

CAP = {"final_logit_softcapping": 0.05}
BASES = {  # name: (model type, settings beyond sizes, ZeRO stage, padded rows at once)
    "plain": ("llama", {}, 2, 3),
    "plain at stage 3": ("llama", {}, 3, 3),
    "capped": ("gemma2", CAP, 2, 3),
    "capped by its configuration alone": ("gemma3", {"text_config": CAP}, 2, 3),
    "the same at stage 3": ("gemma3", {"text_config": CAP}, 3, 3),
    "scaled": ("granite", {"logits_scaling": 4.0}, 2, 3),
    "scaled otherwise": ("cohere", {"logit_scale": 0.25}, 2, 3),
    "looks ahead": ("bert", {"is_decoder": False, "initializer_range": 0.2}, 2, 3),
    "looks ahead too": ("roberta", {"is_decoder": False, "initializer_range": 0.2}, 2, 1),
    "routed": ("mixtral", {"output_router_logits": True, "router_aux_loss_coef": 0.5}, 2, 3),
    "routed otherwise": ("qwen3_moe", {"output_router_logits": True, "router_aux_loss_coef": 0.5}, 3, 3),
    "weighed by z": ("bamba", {"z_loss_coefficient": 0.5}, 2, 3),
    "takes no such row": ("reformer", {"local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16}, 2, 3),
    "has no such positions": ("gpt2", {"n_positions": 32}, 2, 3),
}
ROUTED = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
# More members of each kind, of other families.
CAPPED_IN_VAIN = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt_neox", "opt"), CAP) | {
    "got_ocr2": {"text_config": CAP}
}
OWN_HEADS = {
    "granitemoe": {"logits_scaling": 4.0}, "granitemoehybrid": {"logits_scaling": 4.0}, "cohere2": {"logit_scale": 0.25},
    "minicpm3": {"dim_model_base": 8}, "falcon_h1": {"lm_head_multiplier": 0.2}, "recurrent_gemma": {"logits_soft_cap": 0.05},
    "vaultgemma": CAP, "gemma3n_text": CAP, "nanochat": CAP, "gemma4_text": CAP, "mpt": {"logit_scale": 0.25},
}  # fmt: skip
AHEAD = (
    "bert",
    "roberta",
    "electra",
    "camembert",
    "ernie",
    "megatron-bert",
    "roc_bert",
    "rembert",
    "xlm-roberta",
    "roformer",
)
ROUTERS = (
    "olmoe",
    "granitemoe",
    "phimoe",
    "jamba",
    "qwen2_moe",
    "ernie4_5_moe",
    "gpt_oss",
    "minimax",
    "jetmoe",
    "flex_olmo",
)


def look_at(bases, bpe_folder, folder):
    cells = {}
    for number, (name, (kind, more, stage, rows)) in enumerate(bases.items()):
        save_tiny(kind, bpe_folder, folder / str(number), **more)
        cells[name] = (str(folder / str(number)), stage, rows)
    (folder / "cells.json").write_text(json.dumps(cells))
    launch_program("programs.objectives", 1, folder / "cells.json", folder / "found.json")
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def more_looked(bpe_folder, tmp_path_factory):
    bases = {
        **{f"capped {kind}": (kind, more, 2, 3) for kind, more in CAPPED_IN_VAIN.items()},
        **{f"own {kind}": (kind, more, 2, 3) for kind, more in OWN_HEADS.items()},
        **{f"ahead {kind}": (kind, {"is_decoder": False, "initializer_range": 0.2}, 2, 3) for kind in AHEAD},
        "ahead xlm": ("xlm", {"causal": False, "init_std": 0.2, "embed_init_std": 0.2}, 2, 3),
        **{f"routed {kind}": (kind, ROUTED, 2, 3) for kind in ROUTERS},
    }
    return look_at(bases, bpe_folder, tmp_path_factory.mktemp("more_objectives"))


@pytest.fixture(scope="module")
def looked(bpe_folder, tmp_path_factory):
    return look_at(BASES, bpe_folder, tmp_path_factory.mktemp("objectives"))


@pytest.mark.parametrize("name", ["plain", "plain at stage 3", "capped"])
def test_an_objective_that_is_the_models_own_is_flattened_and_nothing_is_said(name, looked):
    assert looked[name] == {"began": True, "flat": True, "said": [], "refused": ""}


@pytest.mark.parametrize("name", ["capped by its configuration alone", "the same at stage 3"])
def test_where_the_class_leaves_out_what_its_configuration_says_rows_are_padded(name, looked):
    one = looked[name]
    assert one["began"] and not one["flat"] and not one["refused"]
    assert one["said"][0].startswith("  rows are padded: without padding the loss of")


@pytest.mark.parametrize("name", ["scaled", "scaled otherwise"])
def test_a_head_of_another_kind_is_the_models_own(name, looked):
    assert not looked[name]["flat"] and looked[name]["said"] == [] and not looked[name]["refused"]


@pytest.mark.parametrize("name", ["looks ahead", "looks ahead too"])
def test_a_model_whose_tokens_see_those_behind_them_is_refused(name, looked):
    assert (
        "its tokens see those behind them" in looked[name]["refused"] or "have another loss" in looked[name]["refused"]
    )


@pytest.mark.parametrize(("name", "part"), [("routed", "router_aux_loss_coef"), ("routed otherwise", "router_aux_loss_coef"),
                                            ("weighed by z", "z_loss_coefficient")])  # fmt: skip
def test_what_the_models_own_loss_adds_is_said_once(name, part, looked):
    [line] = [line for line in looked[name]["said"] if "is left out" in line]
    assert part in line and not looked[name]["refused"]


@pytest.mark.parametrize("name", ["takes no such row", "has no such positions"])
def test_a_model_whose_code_takes_no_row_as_long_as_the_longest_is_refused_in_its_own_words(name, looked):
    assert "its own code computes no loss of a row of 40 tokens (" in looked[name]["refused"]
    assert "\n" not in looked[name]["refused"]


@pytest.mark.slow
def test_each_kind_holds_for_other_families_too(more_looked):
    wrong = []
    for name, one in more_looked.items():
        kind = name.split()[0]
        held = {
            "capped": one["began"] and not one["flat"] and not one["refused"],
            "own": not one["flat"] and not one["refused"] and not one["said"],
            "ahead": "its tokens see those behind them" in one["refused"] or "have another loss" in one["refused"],
            "routed": not one["refused"] and any("is left out" in line for line in one["said"]),
        }[kind]
        wrong += [] if held else [(name, one)]
    assert not wrong


@pytest.mark.parametrize(
    ("dtype", "flat", "padded", "is_own"),
    [
        (torch.bfloat16, 66.47, 65.70, True),  # padding moves it by as much: rounding
        (torch.bfloat16, 66.47, 66.05, False),
        (torch.bfloat16, 70.0, 62.0, False),  # no rounding is that far
        (torch.float32, 66.47, 65.70, False),  # fp32 does not round so
    ],
)
def test_in_16_bit_a_flattened_loss_may_differ_as_much_as_padding_moves_it(dtype, flat, padded, is_own):
    engine = SimpleNamespace(
        model=torch.nn.Linear(1, 1, dtype=dtype), ranks=SimpleNamespace(device=torch.device("cpu"))
    )
    assert _is_rounding(flat, 66.01, padded, engine) is is_own
