"""The acceptance run of a GPU, rehearsed: every step's program works, on a CPU and at tiny sizes."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, environment

from tests.acceptance.__main__ import LIMITS


@pytest.mark.slow
@pytest.mark.parametrize("step", LIMITS)
def test_each_step_runs_on_a_cpu(step, tmp_path):
    command = [sys.executable, "-m", "tests.acceptance", "--tiny", "--only", step, "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, check=False)
    line = json.loads((tmp_path / "acceptance.jsonl").read_text())
    assert done.returncode == 0 and line["missed"] == [], (line, (tmp_path / f"{step}.log").read_text()[-3000:])


@pytest.mark.slow
def test_without_a_gpu_the_run_stops_at_its_first_step(tmp_path):
    command = [sys.executable, "-m", "tests.acceptance", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in (tmp_path / "acceptance.jsonl").read_text().splitlines()]
    assert done.returncode == 1 and [line["step"] for line in lines] == ["device"]
    assert lines[0]["missed"] == ["torch sees no GPU"]
