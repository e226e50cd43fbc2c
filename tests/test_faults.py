"""What happens when something fails: each fault is done for real, and the table at the end says what a user sees."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE, environment, save_llama, sft
from test_resume import losses, processes_of, weights
from two_hosts import cut, missing, two_hosts

pytestmark = pytest.mark.slow
TABLE: list[tuple[str, str, int, str]] = []


@pytest.fixture(scope="module", autouse=True)
def table(request) -> Iterator[None]:
    yield
    if TABLE:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n\n| what was done | exit | what the user saw | what survived |\n|---|---|---|---|")
            for done, saw, status, survived in TABLE:
                print(f"| {done} | {status} | {saw} | {survived} |")


class Run:
    """A real run of two CPU ranks that can be watched and disturbed."""

    def __init__(self, model: Path, out: Path, *flags: object, script: bool = False, **variables: str):
        self.out = out
        self.flags = ["--train_datasets", str(TEMPLATE), "--model_name_or_path", str(model), "--output_dir", str(out),
                      "--records_per_update", "8", "--max_length", "512", "--save_interval", "4", "--gpus", "2", "--bf16",
                      "False", "--log_type", "none", *map(str, flags)]  # fmt: skip
        self.command = [sys.executable, "-m", "aligner.training.launch", *self.flags]
        self.variables = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        self.said = ""

    def start(self) -> Run:
        self.process = subprocess.Popen(
            self.command, env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        return self

    def until(self, updates: int) -> Run:
        """Wait until so many updates are made."""
        deadline = time.monotonic() + 120
        while self.made() < updates:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[0].decode()
            time.sleep(0.05)
        return self

    def made(self) -> int:
        log = self.out / "train_log.jsonl"
        return log.read_text().count('"loss"') if log.is_file() else 0

    def end(self, timeout: float = 200) -> int:
        """Wait for its end; its exit status. Nothing of it may be left."""
        self.said = self.process.communicate(timeout=timeout)[0].decode().replace("\r", "\n")
        deadline = time.monotonic() + 10
        while processes_of(self.out) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes_of(self.out), "an orphan is left"
        return self.process.returncode

    def rank(self, number: int) -> int:
        """The process of a rank."""
        return int(json.loads((self.out / "ranks" / f"{number:05}.json").read_text())["process"])

    def line(self, pattern: str) -> str:
        """The line a user reads."""
        assert "Traceback" not in self.said, self.said
        found = [line for line in self.said.splitlines() if re.search(pattern, line)]
        assert found, self.said
        return found[-1].strip()

    def states(self) -> list[str]:
        return (
            sorted(p.name for p in (self.out / "checkpoints").glob("*")) if (self.out / "checkpoints").is_dir() else []
        )


@pytest.fixture(scope="module")
def tiny(bpe_folder, tmp_path_factory) -> Path:
    return save_llama(bpe_folder, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """The run that nothing disturbs: 30 updates."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert Run(tiny, out, "--epochs", 2).start().end() == 0
    assert len(losses(out)) == 30
    return out


def goes_on(run: Run, whole: Path) -> None:
    """The same command again ends as the run that nothing disturbed."""
    assert run.start().end() == 0, run.said
    assert losses(run.out) == losses(whole) and weights(run.out) == weights(whole)
    assert (
        not list(run.out.rglob("*.partial*")) and not (run.out / "STOP").exists() and not (run.out / "ranks").exists()
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_run_that_is_asked_to_stop_saves_its_last_update_and_goes_on(name, tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.process.pid, signal.Signals[name])
    assert run.end() == 75, run.said
    line = run.line("stopped after update")
    stopped = int(re.search(r"stopped after update (\d+)", line)[1])
    assert run.states() == [f"update-{stopped}"] and stopped == run.made() < 30
    TABLE.append(
        (f"{name} in training", line, 75, f"update {stopped}, the last one; the same command ends as if undisturbed")
    )
    goes_on(run, whole)


def test_a_second_ctrl_c_ends_at_once(tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.rank(0), signal.SIGSTOP)  # so that there is time for a second one
    os.kill(run.process.pid, signal.SIGINT)
    time.sleep(1)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end() == 130, run.said
    assert "update-4" in run.states()
    TABLE.append(("Ctrl-C twice", run.line("stopped"), 130, "the last state, update 4"))
    goes_on(run, whole)


def test_a_rank_that_dies_is_named(tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.rank(1), signal.SIGKILL)
    assert run.end() not in (0, 75)
    said = [line for line in run.said.splitlines() if line.startswith("error: rank 1 ")]
    assert said and "left no word" in said[0], run.said
    TABLE.append(("kill -9 of rank 1", said[0], run.process.returncode, "the last state, update 4"))
    goes_on(run, whole)


def test_a_rank_that_hangs_is_named(tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2, DEEPSPEED_TIMEOUT="1").start().until(6)
    os.kill(run.rank(1), signal.SIGSTOP)
    assert run.end(timeout=300) not in (0, 75)
    said = [line for line in run.said.splitlines() if line.startswith("error: rank 1 ")]
    assert said and "hanging" in said[0], run.said
    TABLE.append(("rank 1 hangs (DEEPSPEED_TIMEOUT=1)", said[0], run.process.returncode, "the last state, update 4"))
    goes_on(run, whole)


def test_nothing_is_orphaned_when_the_launch_script_is_killed(tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.process.pid, signal.SIGKILL)
    assert run.end() == -9
    TABLE.append(
        ("kill -9 of the launch script", "(nothing: it is gone)", 137, "the last state, update 4; no process is left")
    )
    goes_on(run, whole)


def test_a_run_stopped_on_two_ranks_goes_on_with_one(tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 75
    again = Run(tiny, tmp_path / "out", "--epochs", 2, "--gpus", 1).start()
    assert again.end() == 0, again.said
    for (_, a), (_, b) in zip(losses(run.out), losses(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    TABLE.append(("two ranks before, one after", again.line("going on after"), 0, "everything: losses within 1e-5"))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of this size."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_without_room_for_a_state_is_noticed_before(tiny, tmp_path):
    with small_disk(tmp_path / "disk", "800k") as disk:
        run = Run(tiny, disk / "out", "--epochs", 2).start()
        assert run.end() == 2, run.said
        line = run.line("MB free, and a resume state takes")
        assert run.states() == ["update-4"], "the state before is untouched"
        TABLE.append(("no room for the next state", line, 2, "the last state, update 4"))


def test_a_disk_that_fills_up_in_a_save_leaves_the_last_state(tiny, tmp_path):
    with small_disk(tmp_path / "disk", "800k") as disk:
        run = Run(tiny, disk / "out", "--epochs", 2)
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", "2"]
        command += ["--master_port", "29611", "--module", "programs.full_disk", *run.flags]
        done = subprocess.run(command, env=environment(2), capture_output=True, text=True, timeout=200, check=False)
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and "No space left" in said[0] and "Traceback" not in done.stderr, done.stderr
        assert [s for s in run.states() if not s.endswith(".partial")] == ["update-4"]
        TABLE.append(
            ("the disk fills up in a save", said[0].replace(str(tmp_path), "…"), 2, "the last state, update 4")
        )


def test_a_folder_that_becomes_read_only_leaves_the_last_state(tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2).start().until(5)
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


def test_a_second_run_into_the_same_folder_is_refused(tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2).start().until(2)
    second = Run(tiny, tmp_path / "out", "--epochs", 2).start()
    second.said = second.process.communicate(timeout=60)[0].decode()
    assert second.process.returncode == 2
    TABLE.append(
        ("a second run into the same folder", second.line("another run is writing"), 2, "the first run, undisturbed")
    )
    assert run.end() == 0
    assert losses(run.out) == losses(whole) and weights(run.out) == weights(whole)


def test_updates_that_are_not_finite_stop_or_are_skipped(tiny, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2, "--lr", "1e25", "--lr_warmup_ratio", 0).start()
    assert run.end() == 2, run.said
    line = run.line("the weights were not changed")
    assert "template-dataset.json row" in line
    TABLE.append(("the loss becomes infinite", line, 2, "the weights before that update"))
    skipping = Run(
        tiny, tmp_path / "out2", "--epochs", 1, "--lr", "1e25", "--lr_warmup_ratio", 0, "--on_nonfinite", "skip"
    ).start()
    assert skipping.end() == 0, skipping.said
    assert "; skipped" in skipping.said
    assert any("skipped" in json.loads(line) for line in (skipping.out / "train_log.jsonl").read_text().splitlines())
    TABLE.append(("the same with --on_nonfinite skip", skipping.line("; skipped"), 0, "the run"))


def test_another_recipe_is_refused_field_by_field_unless_forced(tiny, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2).start().until(6)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 75
    changed = Run(tiny, tmp_path / "out", "--epochs", 2, "--lr", "1e-4").start()
    assert changed.end() == 2
    line = changed.line("differs in lr")
    assert "2e-05 -> 0.0001" in line
    TABLE.append(("another learning rate on resume", line, 2, "everything"))
    forced = Run(tiny, tmp_path / "out", "--epochs", 2, "--lr", "1e-4", "--resume", "force").start()
    assert forced.end() == 0 and "going on although lr" in forced.said, forced.said


@pytest.mark.parametrize("file", ["weight-0.safetensors", "pieces.json", "state.json"])
def test_a_damaged_state_is_named_and_the_one_before_is_gone_on_from(file, tiny, whole, tmp_path):
    run = Run(tiny, tmp_path / "out", "--epochs", 2, "--save_total_limit", 2).start().until(9)
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


def test_a_linked_output_folder_a_read_only_home_and_planted_keys(tiny, whole, tmp_path):
    planted = {name: f"planted-{number}-secret" for number, name in enumerate(
        ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DATABASE_PASSWORD"))}  # fmt: skip
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    home = tmp_path / "home"
    home.write_text("")  # nothing can be made below it
    nowhere = {"HOME": str(home), "ALIGNER_CACHE": str(home / "cache")}
    run = Run(tiny, tmp_path / "link", "--epochs", 2, **planted, **nowhere).start()
    assert run.end() == 0, run.said
    assert weights(tmp_path / "real") == weights(whole)
    for file in (tmp_path / "real").rglob("*"):
        assert not file.is_file() or b"planted-" not in file.read_bytes(), file
    assert "planted-" not in run.said
    TABLE.append(
        ("linked output folder, no home, keys in the environment", run.line("is complete"), 0, "everything; no key")
    )


@pytest.mark.skipif(bool(missing()), reason=f"two hosts need {', '.join(missing())}")
def test_a_host_that_is_cut_off_ends_the_run_with_the_cause(tiny, whole, tmp_path):
    with two_hosts(tmp_path / "hosts") as hosts:
        path = f"{Path(sys.executable).parent}:{hosts.variables['PATH']}"
        run = Run(tiny, tmp_path / "out", "--epochs", 2, **{**hosts.variables, "PATH": path, "DEEPSPEED_TIMEOUT": "1"})
        at = run.flags.index("--gpus")
        run.flags[at : at + 2] = ["--hostfile", str(hosts.hostfile)]
        run.command = [*hosts.on_first, sys.executable, "-m", "aligner.training.launch", *run.flags]
        run.start().until(6)
        cut(connected=False)
        status = run.end(timeout=400)
        said = [line for line in run.said.splitlines() if line.startswith("error: rank ")]
        assert status not in (0, 75) and said, run.said
        cut(connected=True)
        TABLE.append(("a host is cut off (DEEPSPEED_TIMEOUT=1)", said[0], status, "the last state, update 4"))
        goes_on(run, whole)


def half_written(out: Path) -> list[str]:
    """Folders of states and exports that are being written or removed."""
    folders = [*out.glob("**/export.partial"), *out.glob("**/checkpoints/*")]
    return sorted(p.name for p in folders if p.name.endswith((".partial", ".removing")))


def test_twenty_kills_at_random_moments_change_nothing(bpe_folder, tmp_path, capsys):
    """Of one run with a warm-up: in loading, updates, saves, rotation, the export. Bit for bit in fp32."""
    model = save_llama(bpe_folder, tmp_path / "model", hidden=512)
    flags = ("--epochs", 14, "--save_interval", 2, "--identity_proportion", 0.2, "--identity_epochs", 4)
    undisturbed = Run(model, tmp_path / "whole", *flags).start()
    assert undisturbed.end(600) == 0
    run, draw, found = Run(model, tmp_path / "killed", *flags), random.Random(1), []
    while len(found) < 20 and not (run.out / "COMPLETED").exists():
        run.start()
        before = run.made()
        # Half of the kills come at any time from the start on, half as soon as a save or the export is under way.
        deadline, wait_for = time.monotonic() + draw.uniform(3, 13), draw.random() < 0.5
        while run.process.poll() is None and time.monotonic() < deadline + 15 * wait_for:
            if wait_for and half_written(run.out):
                break
            time.sleep(0.002)
        half = half_written(run.out)
        run.process.kill()
        run.process.wait()
        for pid in processes_of(run.out) * 2:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.stdout.close()
        while processes_of(run.out):
            time.sleep(0.05)
        found.append(f"{run.made() - before:+} updates{': ' + half[0] if half else ''}")
    assert run.start().end(600) == 0, run.said
    for stage in ("", "identity"):
        assert losses(run.out / stage) == losses(undisturbed.out / stage)
        assert weights(run.out / stage) == weights(undisturbed.out / stage)
    left = half_written(run.out)
    assert not left and len(found) == 20, (found, left)
    with capsys.disabled():
        print(f"\n20 kills: {'; '.join(found)}")


def test_the_same_script_ends_with_75_too(tiny, tmp_path):
    """`bash scripts/sft-correction.sh` hands on signal and exit status."""
    flags = Run(tiny, tmp_path / "out", "--epochs", 2).flags
    process = subprocess.Popen(["bash", str(ROOT / "scripts/sft-correction.sh"), *flags], stdout=subprocess.DEVNULL,
                               env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})  # fmt: skip
    log = tmp_path / "out" / "train_log.jsonl"
    while not (log.is_file() and log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert sft(*flags).returncode == 0
