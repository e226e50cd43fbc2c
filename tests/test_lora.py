"""LoRA: adapters alone are trained, exactly as PEFT in a plain loop trains them, and leave as a whole model and by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import launch_program, save_llama
from plain_loop import plain_trajectory
from test_exact_updates import base_flags, trajectory
from transformers import AutoModelForCausalLM

peft = pytest.importorskip("peft")

LR = 2e-3
LORA = {"lora_rank": 4, "lora_alpha": 16}


def short_rows(real_rows: list[dict], count: int) -> list[dict]:
    return [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 450][:count]


@pytest.fixture(scope="module")
def rows24(real_rows, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    file.write_text(json.dumps(short_rows(real_rows, 24)))
    return file


def adapt(model, target="all-linear"):
    """PEFT's own adapters, by the seed of the run."""
    torch.manual_seed(42)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, target_modules=target, task_type="CAUSAL_LM"))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(5, 45)[None]).logits


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_updates_equal_a_plain_loop_with_peft_and_the_merged_model_its_adapters(
    ranks, rows24, tiny_model, tmp_path, capsys
):
    stages = (0, 3) if ranks == 1 else (0, 1, 2, 3)
    cells = [
        base_flags(rows24, tiny_model, tmp_path / str(stage), lr=LR, zero_stage=stage, records_per_update=8, **LORA)
        for stage in stages
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    launch_program("programs.cells", ranks, tmp_path / "cells.json")
    want, plain = plain_trajectory(
        tiny_model,
        json.loads(rows24.read_text()),
        per_update=8,
        micro_batch=4,
        reduction="micro_batch",
        epochs=2,
        lr=LR,
        adapt=adapt,
    )
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_model))
    for stage in stages:
        folder = tmp_path / str(stage)
        got = trajectory(folder)
        errors = [max(abs(g[i] / w[i] - 1) for g, w in zip(got, want, strict=True)) for i in (0, 1)]
        merged = logits(AutoModelForCausalLM.from_pretrained(folder))
        beside = logits(
            peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder / "adapter")
        )
        apart = [float((other - beside).abs().max()) for other in (merged, logits(plain), base)]
        with capsys.disabled():
            print(f"\n{ranks} rank(s) ZeRO-{stage}: loss {errors[0]:.1e} norm {errors[1]:.1e}; logits of the adapters: "
                  f"merged {apart[0]:.1e}, plain loop {apart[1]:.1e}, base {apart[2]:.1e}")  # fmt: skip
        assert len(got) == 6 and errors[0] < 1e-5 and errors[1] < 1e-4
        assert apart[0] < 1e-5 and apart[1] < 1e-4 and apart[2] > 1e-2
