"""A run that was stopped goes on to the same losses and the same weights, bit for bit in fp32."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, launch_program, save_llama, sft
from safetensors.torch import load_file

from aligner.training.checkpoint.export import export_state


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [(line["update"], line["loss"]) for line in lines if "loss" in line]


def norms(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [line["grad_norm"] for line in lines if "loss" in line]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def tensors(folder: Path) -> dict[str, tuple[str, list[float]]]:
    loaded = load_file(folder / "model.safetensors")
    return {name: (str(tensor.dtype), tensor.float().flatten().tolist()) for name, tensor in loaded.items()}


@pytest.fixture
def rows23(real_rows, tmp_path) -> Path:
    rows = [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 450][:23]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path / "rows.json"


@pytest.mark.parametrize("stages", [(0, 3), pytest.param((0, 1, 2, 3), marks=pytest.mark.slow)], ids=["some", "all"])
def test_two_ranks_resume_exactly_and_refuse_infinite_gradients(stages, rows23, bpe_folder, tmp_path):
    tiny_model = save_llama(bpe_folder, tmp_path / "model", dropout=0.2)
    common = ["--train_datasets", str(rows23), "--model_name_or_path", str(tiny_model), "--records_per_update", "8"]
    common += [
        "--epochs",
        "2",
        "--lr",
        "1e-3",
        "--save_interval",
        "2",
        "--log_type",
        "none",
        "--eval_split_ratio",
        "0.2",
    ]
    runs = {f"zero{stage}": [*common, "--zero_stage", str(stage), "--bf16", "False"] for stage in stages}
    runs |= {f"bf16-zero{stage}": [*common, "--zero_stage", str(stage), "--bf16"] for stage in stages}
    work = {"folder": str(tmp_path), "runs": runs, "model": str(tiny_model)}
    (tmp_path / "work.json").write_text(json.dumps(work))
    launch_program("programs.stopped", 2, tmp_path / "work.json")

    for name in runs:
        whole, stopped = tmp_path / f"{name}-whole", tmp_path / f"{name}-stopped"
        assert losses(stopped) == losses(whole), name
        assert [update for update, _ in losses(stopped)] == list(range(1, len(losses(whole)) + 1))
        assert weights(stopped) == weights(whole), name
        assert all(norm > 0.05 for norm in norms(whole)), name
        export_state(next((stopped / "checkpoints").iterdir()), tmp_path / f"{name}-exported", False, iter)
        assert tensors(tmp_path / f"{name}-exported") == tensors(stopped), "the last state is the run's own model"
        left = {p.name for p in (stopped / "checkpoints").iterdir()}
        assert left == {max(left, key=lambda n: int(n.split("-")[1]))}, "rotation keeps one, and no half of another"
    first, *others = ([loss for _, loss in losses(tmp_path / f"bf16-zero{stage}-whole")] for stage in stages)
    assert all(other == others[0] for other in others)
    assert first == pytest.approx(others[0], rel=3e-4)  # stage 0 accumulates in bf16
    for rank in (0, 1):
        found = json.loads((tmp_path / f"refused-{rank}.json").read_text())
        assert [f["refused"] for f in found] == ["a gradient is not finite"] * 4
        assert not any(f["moved"] for f in found), "a skipped update moves nothing"
        assert all(f["stop"] for f in found), "one rank was asked while the update was under way: all heard of it"
        assert (
            "rank 1 on " in (said := (tmp_path / f"disagreed-{rank}").read_text())
            and "has another seed than rank 0" in said
        )
        assert [f["rate"] for f in found] == [found[0]["rate"]] * 4 and found[0]["rate"] < 2e-5  # the schedule went on
        assert [f["norm"] for f in found] == pytest.approx([found[0]["norm"]] * 4, rel=1e-5), (
            "and nothing of it is left"
        )


def test_the_best_state_is_kept_and_exported_on_request(rows23, tiny_model, tmp_path):
    """A rate that is far too high: the held-out loss rises, and rotation leaves the best state beside the last one."""
    flags = ["--train_datasets", str(rows23), "--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "out"),
             "--eval_split_ratio", "0.2", "--epochs", "4", "--lr", "0.05", "--records_per_update", "8", "--bf16", "False",
             "--log_type", "none", "--save_interval", "3", "--export", "best"]  # fmt: skip
    (tmp_path / "cells.json").write_text(json.dumps([flags]))
    launch_program("programs.cells", 2, tmp_path / "cells.json")
    log = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    held_out = {line["update"]: line["eval_loss"] for line in log if "eval_loss" in line and line["update"]}
    best, last = min(held_out, key=held_out.__getitem__), max(held_out)
    assert best < last and held_out[best] < held_out[last]
    assert {p.name for p in (tmp_path / "out" / "checkpoints").iterdir()} == {f"update-{best}", f"update-{last}"}
    export_state(tmp_path / "out" / "checkpoints" / f"update-{best}", tmp_path / "exported", False, iter)
    assert tensors(tmp_path / "exported") == tensors(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "aligner.json").read_text())["stage"] == f"correction, after update {best}"


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_to_the_same_losses(rows23, tiny_model, tmp_path, capsys):
    """2 ranks to 1, 1 to 2, 2 to 3, and another ZeRO stage, in fp32; records per update stay what the run began with."""
    common = ["--train_datasets", str(rows23), "--model_name_or_path", str(tiny_model), "--epochs", "2", "--lr", "1e-3",
              "--per_device_train_batch_size", "2", "--save_interval", "2", "--log_type", "none", "--bf16", "False",
              "--save_total_limit", "9"]  # fmt: skip

    def flags(name: str, stage: int, accumulation: int = 2) -> list[str]:
        where = ["--output_dir", str(tmp_path / name), "--zero_stage", str(stage)]
        return [*common, *where, "--gradient_accumulation_steps", str(accumulation)]

    def launch(ranks: int, runs: list[list[str]]) -> None:
        (tmp_path / "runs.json").write_text(json.dumps(runs))
        launch_program("programs.runs", ranks, tmp_path / "runs.json")

    def stopped(source: str, name: str) -> str:
        """What a kill after the third update of a run leaves."""
        shutil.copytree(tmp_path / source / "checkpoints" / "update-2", tmp_path / name / "checkpoints" / "update-2")
        lines = (tmp_path / source / "train_log.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / name / "train_log.jsonl").write_text("".join(lines[:3]))
        return name

    every = (0, 1, 2, 3)
    launch(2, [flags(f"two-{stage}", stage) for stage in every])
    one = [flags(stopped(f"two-{stage}", f"two-to-one-{stage}"), stage) for stage in every]
    launch(1, one + [flags(f"one-{stage}", stage, accumulation=4) for stage in every])
    launch(3, [flags(stopped(f"two-{stage}", f"two-to-three-{stage}"), stage) for stage in every])
    crossed = [flags(stopped("two-3", "three-to-one"), 1), flags(stopped("two-0", "none-to-three"), 3)]
    launch(2, [flags(stopped(f"one-{stage}", f"one-to-two-{stage}"), stage) for stage in every] + crossed)
    names = [f"{how}-{stage}" for how in ("two-to-one", "two-to-three", "one-to-two") for stage in every]
    worst = {}
    for name in [*names, "three-to-one", "none-to-three"]:
        stage = {"three-to-one": "3", "none-to-three": "0"}.get(name, name[-1])
        whole = tmp_path / f"{'one' if name.startswith('one') else 'two'}-{stage}"
        expected, found = losses(whole), losses(tmp_path / name)
        assert [update for update, _ in found] == [update for update, _ in expected] == list(range(1, 7))
        worst[name] = max(abs(a / b - 1) for (_, a), (_, b) in zip(found, expected, strict=True))
        assert worst[name] < 1e-5
    with capsys.disabled():
        print("\nlargest relative difference of a loss: " + ", ".join(f"{n} {w:.0e}" for n, w in worst.items()))


def processes_of(folder: Path) -> list[int]:
    """Every process that has the folder in its command line: launcher, DeepSpeed's two, and the ranks."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def kill_when(moment, command: list[str], folder: Path, **variables: str) -> None:
    """Start a run and kill -9 all of it as soon as `moment()` holds."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **variables}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not moment():
        assert process.poll() is None and time.monotonic() < deadline, "the moment never came"
        time.sleep(0.0005)
    while found := processes_of(folder):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.wait()


@pytest.mark.slow
def test_killed_in_training_in_a_save_and_in_the_export_the_result_is_the_uninterrupted_runs(
    rows23, bpe_folder, tmp_path, capsys
):
    model = save_llama(bpe_folder, tmp_path / "model", hidden=768)  # large enough for a save to take a moment

    def flags(out: Path) -> list[str]:
        return ["--train_datasets", str(rows23), "--model_name_or_path", str(model), "--output_dir", str(out),
                "--records_per_update", "8", "--epochs", "2", "--save_interval", "2", "--gpus", "2", "--bf16", "False",
                "--log_type", "none", "--identity_proportion", "0.5"]  # fmt: skip

    whole = tmp_path / "whole"
    assert sft(*flags(whole)).returncode == 0
    moments = {
        "in the warm-up": lambda out: (out / "identity/train_log.jsonl").is_file() and losses(out / "identity"),
        "in training": lambda out: (out / "train_log.jsonl").is_file() and len(losses(out)) == 3,
        "in a save": lambda out: (out / "checkpoints/update-4.partial").is_dir(),
        "in the export": lambda out: (out / "export.partial").is_dir(),
    }
    for number, (name, moment) in enumerate(moments.items()):
        out = tmp_path / f"killed-{number}"
        kill_when(lambda m=moment, o=out: m(o), [sys.executable, "-m", "aligner.launch", *flags(out)], out)
        assert not (out / "COMPLETED").exists(), name
        left = sorted(p.name for p in (out / "checkpoints").glob("*")) if (out / "checkpoints").is_dir() else []
        again = sft(*flags(out))
        assert again.returncode == 0, again.stdout + again.stderr
        assert losses(out) == losses(whole), name
        assert weights(out) == weights(whole), name
        assert sorted(p.name for p in out.rglob("*.partial*")) == []
        with capsys.disabled():
            print(f"\nkilled {name}: states left {left}; run again: same losses and weights, nothing left half-written")
