"""A disk that is full or read-only, numbers that are not finite, a damaged state: done for real, with what a user sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import environment
from disturbed import TABLE, Run, goes_on, small_disk

pytestmark = pytest.mark.slow


def test_a_disk_without_room_for_a_state_is_noticed_before(tiny_model, tmp_path):
    with small_disk(tmp_path / "disk", "800k") as disk:
        run = Run(tiny_model, disk / "out", "--epochs", 2).start()
        assert run.end() == 2, run.said
        line = run.line("MB free, and a resume state takes")
        assert run.states() == ["update-4"], "the state before is untouched"
        TABLE.append(("no room for the next state", line, 2, "the last state, update 4"))


def test_a_disk_that_fills_up_in_a_save_leaves_the_last_state(tiny_model, tmp_path):
    with small_disk(tmp_path / "disk", "800k") as disk:
        run = Run(tiny_model, disk / "out", "--epochs", 2)
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", "2"]
        command += ["--master_port", "29611", "--module", "programs.full_disk", *run.flags]
        done = subprocess.run(command, env=environment(2), capture_output=True, text=True, timeout=200, check=False)
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and "No space left" in said[0] and "Traceback" not in done.stderr, done.stderr
        assert [s for s in run.states() if not s.endswith(".partial")] == ["update-4"]
        TABLE.append(
            ("the disk fills up in a save", said[0].replace(str(tmp_path), "…"), 2, "the last state, update 4")
        )


def test_a_folder_that_becomes_read_only_leaves_the_last_state(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2).start().until(5)
    where = tmp_path / "out" / "checkpoints"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(where)], check=False, capture_output=True
    )
    if mounted.returncode:
        os.kill(run.process.pid, signal.SIGTERM)
        run.end()
        pytest.skip("nothing can be mounted here")
    try:
        assert run.end() == 2, run.said
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)
    TABLE.append(("the folder turns read-only", run.line("Read-only file system"), 2, "the last state, update 4"))
    goes_on(run, whole)


def test_updates_that_are_not_finite_stop_or_are_skipped(tiny_model, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2, "--lr", "1e25", "--lr_warmup_ratio", 0).start()
    assert run.end() == 2, run.said
    line = run.line("the weights were not changed")
    assert "template-dataset.json row" in line
    TABLE.append(("the loss becomes infinite", line, 2, "the weights before that update"))
    skipping = Run(
        tiny_model, tmp_path / "out2", "--epochs", 1, "--lr", "1e25", "--lr_warmup_ratio", 0, "--on_nonfinite", "skip"
    ).start()
    assert skipping.end() == 0, skipping.said
    assert "; skipped" in skipping.said
    assert any("skipped" in json.loads(line) for line in (skipping.out / "train_log.jsonl").read_text().splitlines())
    TABLE.append(("the same with --on_nonfinite skip", skipping.line("; skipped"), 0, "the run"))


@pytest.mark.parametrize("file", ["weight-0.safetensors", "pieces.json", "state.json"])
def test_a_damaged_state_is_named_and_the_one_before_is_gone_on_from(file, tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2, "--save_total_limit", 2).start().until(9)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 75
    newest = max((run.out / "checkpoints").glob("update-*"), key=lambda p: int(p.name.split("-")[1]))
    damaged = next(newest.rglob(file))
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert run.start().end() == 2, run.said
    line = run.line("update-")
    TABLE.append((f"{file} of a state is cut", line.replace(str(tmp_path), "…"), 2, "the state before it"))
    subprocess.run(["rm", "-r", str(newest)], check=True)
    goes_on(run, whole)
