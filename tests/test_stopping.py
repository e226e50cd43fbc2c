"""Being stopped and falling silent: who hears what, and whom the launch script names. Real faults are in test_faults.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from aligner.records import UserError
from aligner.training.checkpoint.resume import run_lock
from aligner.training.distributed import heartbeat, stop_signals
from aligner.training.finetune.metrics import is_far_above


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_heard_once_and_the_earlier_handler_comes_back(number):
    told: list[signal.Signals] = []
    before = signal.getsignal(number)
    signals = stop_signals.StopSignals(told.append)
    try:
        assert not signals.received
        os.kill(os.getpid(), number)
        assert signals.received and told == [number]
        assert stop_signals.stop_requested(signals, None), "on any rank, also one that does not look at the folder"
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(0.1)
        os.kill(os.getpid(), number)  # once more disturbs nothing
        assert told == [number]
    finally:
        signals.restore()
    assert signal.getsignal(number) is before


def test_a_file_in_the_folder_asks_too_and_only_the_first_rank_looks(tmp_path):
    assert not stop_signals.stop_requested(None, tmp_path)
    stop_signals.request_stop(tmp_path)
    assert stop_signals.stop_requested(None, tmp_path) and not stop_signals.stop_requested(None, None)
    stop_signals.clear_stop_request(tmp_path)
    assert not stop_signals.stop_requested(None, tmp_path)


def record(folder: Path, rank: int, words: str | None, when: float = 0.0) -> None:
    file = folder / heartbeat.FOLDER / f"{rank:05}.json"
    file.parent.mkdir(exist_ok=True)
    said = {"rank": rank, "host": "gpu1", "process": 7, "error": words, "time": time.time() + when}
    file.write_text(json.dumps(said))


LOST = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]"
MEMORY = "OutOfMemoryError: CUDA out of memory"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            [None, LOST, heartbeat.TERMINATED],
            "rank 0 (process 7 on gpu1) gave no sign of life",
        ),  # killed: it left no word
        ([LOST, MEMORY, None], "rank 1 on gpu1 failed: OutOfMemoryError"),  # a cause of its own comes first
        ([LOST, heartbeat.TERMINATED], "rank 0 on gpu1 failed: RuntimeError"),
        ([], None),
    ],
)
def test_the_rank_that_a_run_failed_by(words, expected, tmp_path):
    for rank, said in enumerate(words):
        record(tmp_path, rank, said)
    found = heartbeat.root_cause(tmp_path)
    assert found is None if expected is None else found and found.startswith(expected)


def test_a_run_whose_rank_spoke_its_last_words_long_ago_is_lost(tmp_path):
    record(tmp_path, 0, None, when=-1000)
    record(tmp_path, 1, LOST, when=-10)
    assert not heartbeat.is_lost(tmp_path)
    record(tmp_path, 1, LOST, when=-2 * heartbeat.PATIENCE)
    assert heartbeat.is_lost(tmp_path)


def test_a_rank_leaves_its_cause_or_nothing(tmp_path):
    with heartbeat.heartbeat(tmp_path, 3):
        assert json.loads((tmp_path / "ranks/00003.json").read_text())["error"] is None
    assert not (tmp_path / "ranks").exists()
    with pytest.raises(ValueError), heartbeat.heartbeat(tmp_path, 3):
        raise ValueError("no such\nthing")
    assert heartbeat.root_cause(tmp_path) == f"rank 3 on {socket.gethostname()} failed: ValueError: no such"


@pytest.mark.parametrize("how", ["told", "orphan"])
def test_a_rank_that_waits_for_others_still_hears_that_it_is_to_end(how, tmp_path):
    """SIGTERM, and the death of its launch script, while the main thread is inside a call that does not come back."""
    program = """if True:
        import ctypes, sys
        from pathlib import Path
        from aligner.training.distributed.heartbeat import heartbeat
        with heartbeat(Path(sys.argv[1]), 0):
            print("in", flush=True)
            while True:
                ctypes.CDLL(None).pause()
    """
    parent = subprocess.Popen(["sleep", "100"])
    variables = {heartbeat.LAUNCHER: f"{socket.gethostname()}:{parent.pid}", "PYTHONPATH": str(ROOT)}
    rank = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, **variables}, stdout=subprocess.PIPE
    )
    assert rank.stdout and rank.stdout.readline() == b"in\n"
    if how == "told":
        rank.terminate()
    parent.kill()
    parent.wait()
    assert rank.wait(10) == (143 if how == "told" else 129)
    rank.stdout.close()


def test_two_runs_never_share_a_folder(tmp_path):
    with run_lock(tmp_path):
        program = "import sys; from pathlib import Path; from aligner.training.checkpoint.resume import run_lock\n"
        program += "with run_lock(Path(sys.argv[1])): pass"
        command = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
    assert UserError.__name__ in done.stderr and "another run is writing into" in done.stderr
    with run_lock(tmp_path):  # free again
        pass
    assert not list(tmp_path.iterdir())


def test_a_loss_far_above_its_recent_course_by_eye():
    steady = [2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 2.0]
    assert not is_far_above(2.5, steady)
    assert is_far_above(3.2, steady)  # half above, and far more than the usual 0.1 from the median
    assert not is_far_above(9.0, steady[:9])  # too few to say
    falling = [6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.8, 1.6, 1.5, 1.4]
    assert not is_far_above(4.0, falling)
