"""At the start of a run the objective is compared with the model's own logits, whatever its configuration says of its head."""

from __future__ import annotations

import json

import pytest
from conftest import launch_program
from families import save_tiny

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
}


@pytest.fixture(scope="module")
def looked(bpe_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("objectives")
    cells = {}
    for number, (name, (kind, more, stage, rows)) in enumerate(BASES.items()):
        save_tiny(kind, bpe_folder, folder / str(number), **more)
        cells[name] = (str(folder / str(number)), stage, rows)
    (folder / "cells.json").write_text(json.dumps(cells))
    launch_program("programs.objectives", 1, folder / "cells.json", folder / "found.json")
    return json.loads((folder / "found.json").read_text())


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
