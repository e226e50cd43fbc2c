"""A run's stages follow each other in one process: what an engine held is given back before the next is built."""

from __future__ import annotations

import json
import subprocess
import sys

from conftest import environment


def test_a_closed_engine_holds_no_model_states_at_any_zero_stage(tiny_model):
    command = [sys.executable, "-m", "programs.closing", str(tiny_model)]
    done = subprocess.run(command, env=environment(1), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for zero_stage, during, after in json.loads(done.stdout.splitlines()[-1]):
        assert during > 500_000, "weights and two moments of 50,000 parameters in fp32"
        assert after < 8_000, f"ZeRO-{zero_stage} keeps {after} of {during} bytes"
