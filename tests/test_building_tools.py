"""The files for people, read by Label Studio's and Argilla's own packages: ALIGNER_LABEL_TOOLS names a Python that has both
(`pip install argilla label-studio-sdk` in an environment of its own)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from building_case import real_questions, write_config
from stand_in_models import stand_in_models

from aligner.building.label_tools import read_opinions
from aligner.cli import main

pytestmark = pytest.mark.slow


def test_label_studio_and_argilla_accept_the_files_and_what_they_write_is_read(tmp_path):
    python = os.environ.get("ALIGNER_LABEL_TOOLS")
    if not python:
        pytest.skip("ALIGNER_LABEL_TOOLS names no Python with argilla and label_studio_sdk")
    with stand_in_models() as server:
        config = write_config(tmp_path, server, real_questions(10), people={"review": 1.0})
        assert main(["build", "--config", str(config), "--output", str(tmp_path / "build")]) == 1
    folder = tmp_path / "build/people"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = str(Path(__file__).parent / "programs/label_tools.py")
    command = [python, program, str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    waiting = [task["data"]["row"] for task in json.loads((folder / "readers.label-studio.json").read_text())]
    for name in ("label-studio", "argilla"):
        opinions = list(read_opinions(str(tmp_path / f"{name}.json")))
        assert [each.row for each in opinions] == waiting
        assert {(each.verdict, each.text.rstrip(".!")) for each in opinions} == {("edited", "Words of mine")}
