"""Output folders of earlier versions open and go on: old_output/ is what 0.1.0 wrote, of a run stopped after update 6."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE

from aligner.card import card_from
from aligner.files import COMPLETED
from aligner.models import fingerprint
from aligner.training.checkpoint.resume import inspect_run, read_state
from aligner.training.distributed.hardware import resolved
from aligner.training.flags import parse
from aligner.training.stages import make_card, stage_data, stages

OLD = ROOT / "tests" / "old_output"


@pytest.fixture
def stopped(tiny_model, tmp_path) -> Path:
    """A run's folder as 0.1.0 left it (with the base model of here): the warm-up complete, the main stage stopped."""
    state = tmp_path / "checkpoints" / "update-6"
    for folder, name, file in ((tmp_path / "identity", "identity", "aligner"), (state, "state", "state")):
        folder.mkdir(parents=True)
        value = json.loads((OLD / f"{name}.json").read_text())
        value.get("card", value)["base_model_sha256"] = fingerprint(str(tiny_model))
        (folder / f"{file}.json").write_text(json.dumps(value))
        (folder / COMPLETED).touch()
    return tmp_path


def config_of(model: Path, out: Path, *more: str):
    """The flags that the run in old_output/ was started with."""
    common = ["--train_datasets", str(TEMPLATE), "--model_name_or_path", str(model), "--output_dir", str(out)]
    recipe = [
        "--records_per_update",
        "8",
        "--max_length",
        "512",
        "--save_interval",
        "4",
        "--bf16",
        "False",
        "--epochs",
        "2",
    ]
    return resolved(parse([*common, *recipe, "--identity_proportion", "0.5", "--eval_split_ratio", "0.1", *more]))


def test_a_stopped_run_of_an_earlier_version_is_this_run_and_goes_on(stopped, tiny_model):
    remaining = inspect_run(config_of(tiny_model, stopped), 2)
    assert list(remaining) == ["correction"], "its warm-up is complete"
    state = remaining["correction"]
    assert (state.changed, state.records_per_update) == ((), 8)
    assert state.resume_from == stopped / "checkpoints" / "update-6" and read_state(state.resume_from)["moves"] == 6


def test_its_warm_up_can_be_started_from(stopped, tiny_model):
    shutil.rmtree(stopped / "checkpoints")
    assert list(inspect_run(config_of(tiny_model, stopped, "--stage", "correction"), 2)) == ["correction"]


def test_the_card_of_today_has_the_fields_of_then(tiny_model, tmp_path):
    config = config_of(tiny_model, tmp_path)
    for stage, name in zip(stages(config), ("identity", "state"), strict=True):
        value = json.loads((OLD / f"{name}.json").read_text())
        old = card_from(value.get("card", value), name)
        new = make_card(config, stage, stage_data(config, stage.name), 8, {})
        assert asdict(new).keys() == asdict(old).keys()
        assert new.config.keys() >= old.config.keys() and new.data.keys() == old.data.keys()
        fields = {key: value for key, value in old.fingerprint_fields().items() if key != "base_model"}
        assert {key: value for key, value in new.fingerprint_fields().items() if key != "base_model"} == fields
