"""`aligner export`: a resume state becomes a model folder like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_correct_file import lines, write

from aligner import cli


def export(state: Path, output: Path) -> int:
    return cli.main(["export", str(state), "--output", str(output)])


@pytest.fixture
def run(trained) -> Path:
    return trained[0]


@pytest.fixture
def state(run: Path) -> Path:
    [last] = (run / "checkpoints").iterdir()
    return last


def test_a_state_becomes_an_aligner_that_corrects_as_the_run_does(state, run, tmp_path, capsys):
    assert export(state, tmp_path / "model") == 0
    assert "the model after update 5" in capsys.readouterr().out
    card, of_run = (json.loads((folder / "aligner.json").read_text()) for folder in (tmp_path / "model", run))
    assert card["prompt"] == of_run["prompt"] and card["stage"] == "correction, after update 5"
    rows = write(tmp_path / "rows.jsonl", [{"question": f"what is {n}?", "answer": f"it is {n}"} for n in range(3)])
    corrected = []
    for name, model in (("a", tmp_path / "model"), ("b", run)):
        out = tmp_path / f"{name}.jsonl"
        cli.main(["correct", "--model", str(model), "--input", rows, "--output", str(out), "--max_new_tokens", "8"])
        corrected.append([row["corrected"] for row in lines(out)])
    assert corrected[0] == corrected[1]


def test_what_is_no_state_or_stands_in_the_way_is_said(state, run, tmp_path, capsys):
    assert export(run, tmp_path / "model") == 2 and "is no resume state" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    assert export(state, tmp_path / "there") == 2 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_state_is_named_and_leaves_nothing(harm, state, tmp_path, capsys):
    bad = tmp_path / "update-5"
    shutil.copytree(state, bad)
    file = next(bad.rglob("weight-0.safetensors"))
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        pieces = file.with_name("pieces.json")
        pieces.write_text(json.dumps(json.loads(pieces.read_text())[1:]))
    assert export(bad, tmp_path / "model") == 2
    assert f"{bad} is damaged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["update-5"]


def test_what_a_model_s_own_code_does_not_train_is_not_trained_at_any_stage(tmp_path):
    """The bias of a router's choice: transformers makes it trainable when it loads the model, but not under ZeRO-3."""
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    from aligner.models import freeze_as_built, load_model

    small = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    config = Ernie4_5_MoeConfig(vocab_size=97, num_attention_heads=4, num_key_value_heads=2, moe_num_experts=4, **small)
    Ernie4_5_MoeForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), torch.float32)
    freeze_as_built(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.layers.1.mlp.gate.moe_statics.e_score_correction_bias"]
