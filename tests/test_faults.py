"""What happens when something stops, dies, hangs or is cut off: done to real runs, with what a user sees."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, save_llama, sft
from disturbed import TABLE, Run, goes_on
from test_resume import losses, processes_of, weights
from two_hosts import cut, missing, two_hosts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_run_that_is_asked_to_stop_saves_its_last_update_and_goes_on(name, tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.process.pid, signal.Signals[name])
    assert run.end() == 75, run.said
    line = run.line("stopped after update")
    stopped = int(re.search(r"stopped after update (\d+)", line)[1])
    assert run.states() == [f"update-{stopped}"] and stopped == run.made() < 30
    TABLE.append(
        (f"{name} in training", line, 75, f"update {stopped}, the last one; the same command ends as if undisturbed")
    )
    goes_on(run, whole)


def test_a_second_ctrl_c_ends_at_once(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.rank(0), signal.SIGSTOP)  # so that there is time for a second one
    os.kill(run.process.pid, signal.SIGINT)
    time.sleep(1)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end() == 130, run.said
    assert "update-4" in run.states()
    TABLE.append(("Ctrl-C twice", run.line("stopped"), 130, "the last state, update 4"))
    goes_on(run, whole)


def test_a_rank_that_dies_is_named(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.rank(1), signal.SIGKILL)
    assert run.end() not in (0, 75)
    said = [line for line in run.said.splitlines() if line.startswith("error: rank 1 ")]
    assert said and "left no word" in said[0], run.said
    TABLE.append(("kill -9 of rank 1", said[0], run.process.returncode, "the last state, update 4"))
    goes_on(run, whole)


def test_a_rank_that_hangs_is_named(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2, DEEPSPEED_TIMEOUT="1").start().until(6)
    os.kill(run.rank(1), signal.SIGSTOP)
    assert run.end(timeout=300) not in (0, 75)
    said = [line for line in run.said.splitlines() if line.startswith("error: rank 1 ")]
    assert said and "hanging" in said[0], run.said
    TABLE.append(("rank 1 hangs (DEEPSPEED_TIMEOUT=1)", said[0], run.process.returncode, "the last state, update 4"))
    goes_on(run, whole)


def test_nothing_is_orphaned_when_the_launch_script_is_killed(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.process.pid, signal.SIGKILL)
    assert run.end() == -9
    TABLE.append(
        ("kill -9 of the launch script", "(nothing: it is gone)", 137, "the last state, update 4; no process is left")
    )
    goes_on(run, whole)


def test_a_run_stopped_on_two_ranks_goes_on_with_one(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 75
    again = Run(tiny_model, tmp_path / "out", "--epochs", 2, "--gpus", 1).start()
    assert again.end() == 0, again.said
    for (_, a), (_, b) in zip(losses(run.out), losses(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    TABLE.append(("two ranks before, one after", again.line("going on after"), 0, "everything: losses within 1e-5"))


def test_a_second_run_into_the_same_folder_is_refused(tiny_model, whole, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2).start().until(2)
    second = Run(tiny_model, tmp_path / "out", "--epochs", 2).start()
    second.said = second.process.communicate(timeout=60)[0].decode()
    assert second.process.returncode == 2
    TABLE.append(
        ("a second run into the same folder", second.line("another run is writing"), 2, "the first run, undisturbed")
    )
    assert run.end() == 0
    assert losses(run.out) == losses(whole) and weights(run.out) == weights(whole)


def test_another_recipe_is_refused_field_by_field_unless_forced(tiny_model, tmp_path):
    run = Run(tiny_model, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 75
    changed = Run(tiny_model, tmp_path / "out", "--epochs", 2, "--lr", "1e-4").start()
    assert changed.end() == 2
    line = changed.line("differs in lr")
    assert "2e-05 -> 0.0001" in line
    TABLE.append(("another learning rate on resume", line, 2, "everything"))
    forced = Run(tiny_model, tmp_path / "out", "--epochs", 2, "--lr", "1e-4", "--resume", "force").start()
    assert forced.end() == 0 and "going on although lr" in forced.said, forced.said


def test_a_linked_output_folder_a_read_only_home_and_planted_keys(tiny_model, whole, tmp_path):
    planted = {name: f"planted-{number}-secret" for number, name in enumerate(
        ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DATABASE_PASSWORD"))}  # fmt: skip
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    home = tmp_path / "home"
    home.write_text("")  # nothing can be made below it
    nowhere = {"HOME": str(home), "ALIGNER_CACHE": str(home / "cache")}
    run = Run(tiny_model, tmp_path / "link", "--epochs", 2, **planted, **nowhere).start()
    assert run.end() == 0, run.said
    assert weights(tmp_path / "real") == weights(whole)
    for file in (tmp_path / "real").rglob("*"):
        assert not file.is_file() or b"planted-" not in file.read_bytes(), file
    assert "planted-" not in run.said
    TABLE.append(
        ("linked output folder, no home, keys in the environment", run.line("is complete"), 0, "everything; no key")
    )


@pytest.mark.skipif(bool(missing()), reason=f"two hosts need {', '.join(missing())}")
def test_a_host_that_is_cut_off_ends_the_run_with_the_cause(tiny_model, whole, tmp_path):
    with two_hosts(tmp_path / "hosts") as hosts:
        path = f"{Path(sys.executable).parent}:{hosts.variables['PATH']}"
        run = Run(
            tiny_model, tmp_path / "out", "--epochs", 2, **{**hosts.variables, "PATH": path, "DEEPSPEED_TIMEOUT": "1"}
        )
        at = run.flags.index("--gpus")
        run.flags[at : at + 2] = ["--hostfile", str(hosts.hostfile)]
        run.command = [*hosts.on_first, sys.executable, "-m", "aligner.launch", *run.flags]
        run.start().until(6)
        cut(connected=False)
        status = run.end(timeout=400)
        said = [line for line in run.said.splitlines() if line.startswith("error: rank ")]
        assert status not in (0, 75) and said, run.said
        cut(connected=True)
        TABLE.append(("a host is cut off (DEEPSPEED_TIMEOUT=1)", said[0], status, "the last state, update 4"))
        goes_on(run, whole)


# What each of the twenty kills waits for: so many updates at most, and of those folders one that is being written or removed.
ANY, SAVE, ROTATION, EXPORT = "", "checkpoints/*.partial", "checkpoints/*.removing", "export.partial"
MIXED = [(0, ANY)] * 2 + [(6, ANY)] * 5 + [(9, SAVE)] * 5 + [(20, ROTATION)] * 3
MOMENTS = [(0, ANY), (3, ANY), (9, SAVE), (99, EXPORT), *random.Random(1).sample(MIXED, len(MIXED)), (999, EXPORT)]


def test_twenty_kills_at_random_moments_change_nothing(bpe_folder, tmp_path, capsys):
    """Of one run with a warm-up: in loading, updates, saves, rotation, both exports. Bit for bit in fp32."""
    model = save_llama(bpe_folder, tmp_path / "model", hidden=256)
    flags = ("--epochs", 4, "--records_per_update", 2, "--save_interval", 2, "--identity_proportion", 0.2)
    undisturbed = Run(model, tmp_path / "whole", *flags).start()
    assert undisturbed.end(1200) == 0
    run, draw, found = Run(model, tmp_path / "killed", *flags), random.Random(2), []
    for updates, pattern in MOMENTS:
        before = made_in_all(run.start().out)
        most, caught = before + draw.randint(min(updates, 1), updates), list[str]()
        while (
            run.process.poll() is None
            and (made_in_all(run.out) < most or (pattern == EXPORT and not caught))
            and not caught
        ):
            caught = present(run.out, pattern)
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 8 if updates == 0 else 0.5) * (not caught))
        kill_all(run)
        found.append(f"{made_in_all(run.out) - before:+} updates{', ' + caught[0] if caught else ''}")
    assert not (run.out / "COMPLETED").exists(), "killed before its end, each time"
    assert run.start().end(1200) == 0, run.said
    for stage in ("", "identity"):
        assert losses(run.out / stage) == losses(undisturbed.out / stage)
        assert weights(run.out / stage) == weights(undisturbed.out / stage)
    assert not [p for pattern in (SAVE, ROTATION, EXPORT) for p in run.out.glob(f"**/{pattern}")], (
        "nothing half-written is left"
    )
    with capsys.disabled():
        print(f"\n{len(found)} kills: {'; '.join(found)}")


def made_in_all(out: Path) -> int:
    """Updates of both stages in the logs."""
    logs = [log for log in (out / "train_log.jsonl", out / "identity" / "train_log.jsonl") if log.exists()]
    return sum(log.read_text().count('"loss"') for log in logs)


def present(out: Path, pattern: str) -> list[str]:
    """What there is now of folders that are being written or removed, in both stages."""
    with suppress(FileNotFoundError):  # gone while it was looked at
        return (
            [str(p.relative_to(out)) for folder in (out, out / "identity") for p in folder.glob(pattern)]
            if pattern
            else []
        )
    return []


def kill_all(run: Run) -> None:
    """kill -9, at once: the launch script and everything it started."""
    run.process.kill()
    run.process.wait()
    run.process.stdout.close()
    while left := processes_of(run.out):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def test_the_same_script_ends_with_75_too(tiny_model, tmp_path):
    """`bash scripts/sft-correction.sh` hands on signal and exit status."""
    flags = Run(tiny_model, tmp_path / "out", "--epochs", 2).flags
    process = subprocess.Popen(["bash", str(ROOT / "scripts/sft-correction.sh"), *flags], stdout=subprocess.DEVNULL,
                               env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})  # fmt: skip
    log = tmp_path / "out" / "train_log.jsonl"
    while not (log.is_file() and log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert sft(*flags).returncode == 0
