"""The stages of a run follow each other in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from conftest import environment


@pytest.fixture(scope="module")
def process(tiny_model, tmp_path_factory) -> dict[str, Any]:
    """What one process tells of the engines and stages that followed each other in it."""
    command = [sys.executable, "-m", "programs.one_process", str(tiny_model), str(tmp_path_factory.mktemp("run"))]
    done = subprocess.run(command, env=environment(1), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_closed_engine_holds_no_model_states_at_any_zero_stage(process):
    for zero_stage, during, _, after in process["lives"]:
        assert during > 500_000, "weights and two moments of 50,000 parameters in fp32"
        assert after < 8_000, f"ZeRO-{zero_stage} keeps {after} of {during} bytes"


def test_recomputing_leaves_nothing_behind_from_one_micro_batch_to_the_next(process):
    assert [stacked for _, _, stacked, _ in process["lives"]] == [0, 0, 0]


def test_nor_does_a_run_of_two_stages(process):
    assert process["after_a_run"] < 8_000


def test_a_run_that_is_to_stop_does_not_begin_another_stage_and_goes_on_with_it(process):
    assert process["text"] == "stopped after the identity stage, which is saved. The same command goes on from there."
    assert process["left"] == ["identity"]
    assert process["warm_up_untouched"] and process["updates"] == 2


def test_training_holds_the_text_of_no_record(process):
    assert process["held"] == [0, 0], "at each of the two updates: their ids are enough"
