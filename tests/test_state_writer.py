"""Resume states are written while training goes on, and are whole or not there."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import launch_program
from disturbed import TABLE, Run, goes_on
from test_resume import kill_when

from aligner.records import UserError
from aligner.training.checkpoint.state_writer import StateWriter
from aligner.training.config import OutputConfig
from aligner.training.distributed.hardware import spare_memory
from aligner.training.distributed.stop_signals import Stopped
from aligner.training.finetune import loop
from aligner.training.flags import parse


@pytest.fixture(scope="module")
def told(tiny_model, tmp_path_factory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("background")
    launch_program("programs.background", 2, tiny_model, out)
    return [json.loads((out / f"told-{rank}.json").read_text()) for rank in (0, 1)]


def test_an_update_is_made_while_a_rank_still_writes_and_the_state_is_what_it_was_before(told):
    for rank in told:
        assert rank["while_one_writes"] == [True, True, ["update-1.partial"]], (
            "both know, both went on, nothing is whole"
        )
        assert rank["when_it_is_whole"] == ["update-1"]
        assert rank["as_it_was"], "weights and moments, bit for bit"


def test_a_rank_that_cannot_write_fails_all_and_the_state_before_is_untouched(told):
    for rank in told:
        assert "rank 1: " in rank["failure"] and "rank-00001 cannot be written" in rank["failure"]
        assert rank["after_it"] == ["update-1"]


def test_without_memory_for_a_copy_training_waits(told):
    for rank in told:
        assert rank["without_memory"] is False
        assert rank["at_last"] == ["update-3"], "and what the failure left is removed"


def test_minutes_and_intervals_decide_when_to_save():
    def writer(**output: Any) -> StateWriter:
        ranks = SimpleNamespace(on_this_host=lambda: 1)
        return StateWriter(SimpleNamespace(ranks=ranks), Path("nowhere"), {}, OutputConfig(**output), keep_best=False)  # type: ignore[arg-type]

    every = writer(save_interval=3)
    assert [u for u in range(1, 9) if every.is_due(u, 8, False)] == [3, 6, 8] and not every.is_save_due()
    minutes = writer(save_interval=0, save_minutes=0.001)
    assert [u for u in range(1, 9) if minutes.is_due(u, 8, False)] == [8]
    assert not minutes.is_save_due()
    time.sleep(0.07)
    assert minutes.is_save_due()
    assert not writer(save_interval=0).is_due(8, 8, False)
    with pytest.raises(UserError, match="--save_minutes is 0"):
        parse(["--save_minutes", "0"])


def test_spare_memory_is_what_the_system_tells():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 50e6 < spare_memory() < total


def slow_disk(run: Run) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--quiet",
        "--num_gpus",
        "2",
        "--master_port",
        "29617",
    ]
    return [*command, "--module", "programs.slow_disk", *run.flags]


@pytest.mark.slow
def test_killed_while_a_state_is_written_and_training_goes_on(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2)
    written = run.out / "checkpoints" / "update-8.partial"

    def moment() -> bool:
        return (run.out / "checkpoints" / "update-4").is_dir() and written.is_dir() and run.made() > 9

    kill_when(moment, slow_disk(run), run.out, DS_ACCELERATOR="cpu", LOCAL_SIZE="2", OMP_NUM_THREADS="1")
    assert run.states() == ["update-4", "update-8.partial"] and run.made() > 9
    TABLE.append(
        ("kill -9 while a state is written and training goes on", "(nothing)", 137, "the last state, update 4")
    )
    goes_on(run, whole)


@pytest.mark.slow
def test_states_by_the_minute_are_resumed_from(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2, "--save_minutes", "0.005")
    run.flags[run.flags.index("--save_interval") + 1] = "0"
    run.command = [*run.command[:3], *run.flags]
    run.start().until(12)
    os.kill(run.rank(1), 9)
    assert run.end() not in (0, 75)
    assert run.states(), "saved by the clock alone"
    goes_on(run, whole)


def test_who_asks_for_a_stop_has_a_whole_state_before_an_evaluation(monkeypatch):
    """An evaluation may outlast the seconds that a scheduler grants."""
    done: list[str] = []
    states = SimpleNamespace(
        begin=lambda update: done.append(f"begin {update}"),
        settle=lambda: done.append("settle"),
        is_due=lambda *_: False,
    )
    state: Any = SimpleNamespace(plan=SimpleNamespace(updates=2), states=states)
    monkeypatch.setattr(loop, "prepare_update", lambda _, number: SimpleNamespace(number=number))
    monkeypatch.setattr(loop, "make_update", lambda *_: loop.Signals(stop=True, writing=True, save_due=False))
    monkeypatch.setattr(loop, "is_evaluation_due", lambda *_: True)
    monkeypatch.setattr(loop, "evaluate", lambda _, update: done.append(f"evaluate {update}"))
    with pytest.raises(Stopped, match="update 1"):
        loop.train(state, 0)
    assert done == ["evaluate 0", "begin 1", "settle", "evaluate 1"]
