"""TRL really trains an upstream: every method, split over ranks, killed and stopped. Needs trl (tests/README.md)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE, read_rows
from safetensors.torch import load_file
from test_resume import processes_of

from aligner.card import read_card
from aligner.files import sha256_of
from aligner.training.train_log import read_log

pytestmark = pytest.mark.slow
ONLINE = ["--max_completion_length", "8", "--num_generations", "2"]


@pytest.fixture(scope="module", autouse=True)
def trl():
    return pytest.importorskip("trl")


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("preferences") / "rows.json"
    file.write_text(json.dumps([row for row in read_rows(TEMPLATE, 40) if row["answer"] != row["correction"]][:16]))
    return file


def command(method: str, out: Path, base: Path, rows: Path, *flags: object) -> list[str]:
    """Four updates of four rows."""
    words = ["--method", method, "--train_datasets", rows, "--model_name_or_path", base, "--output_dir", out, "--epochs", 1,
             "--max_length", 256, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--lr", 1e-3,
             "--lr_warmup_ratio", 0, "--bf16", "False", "--log_type", "none", *flags]  # fmt: skip
    return [sys.executable, "-m", "aligner.launch", *map(str, words)]


def variables() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=variables(), capture_output=True, text=True, timeout=900, check=False
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scorer(tiny_model, preferences, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reward") / "out"
    done = train("reward", out, tiny_model, preferences, "--gpus", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("method", ["dpo", "kto", "reward", "rloo", "grpo"])
def test_every_method_leaves_a_whole_folder_under_zero_3(method, ranks, tiny_model, preferences, scorer, tmp_path):
    out = tmp_path / "out"
    more = [*ONLINE, "--reward_model", scorer] if method in ("rloo", "grpo") else []
    done = train(method, out, tiny_model, preferences, "--gpus", ranks, "--zero_stage", 3, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"COMPLETED", "aligner.json", "train_log.jsonl", "loss.png", "command.sh", "config.json"} <= {
        path.name for path in out.iterdir()
    }
    base, trained = load_file(tiny_model / "model.safetensors"), load_file(out / "model.safetensors")
    head = {"score.weight"} if method == "reward" else set()
    assert set(trained) == set(base) | head
    assert all(trained[name].shape == base[name].shape and trained[name].isfinite().all() for name in base)
    assert any(not trained[name].equal(base[name]) for name in base)
    card, log = read_card(out), read_log(out)
    assert card and card.settings["method"] == method and card.prompt.text == "{question}"
    assert [line["update"] for line in log] == list(range(1, len(log) + 1)) and all("lr" in line for line in log)


def test_the_losses_of_dpo_do_not_depend_on_how_the_model_is_split(tiny_model, preferences, tmp_path):
    losses = []
    for name, flags in {"whole": ["--zero_stage", 0], "split": ["--zero_stage", 3]}.items():
        done = train("dpo", tmp_path / name, tiny_model, preferences, "--gpus", 1, *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        losses.append([line["loss"] for line in read_log(tmp_path / name)])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4) and losses[0][0] == pytest.approx(0.6931, abs=1e-3)


def test_the_loss_of_the_correction_is_added_to_the_preference_at_its_weight(tiny_model, preferences, tmp_path):
    first = []
    for weight in (1, 3):
        done = train("dpo", tmp_path / str(weight), tiny_model, preferences, "--gpus", 1, "--sft_weight", weight)
        assert done.returncode == 0, done.stdout + done.stderr
        first.append(
            read_log(tmp_path / str(weight))[0]["loss"] - 0.6931
        )  # log 2: before the first update nothing is preferred
    assert first[0] > 1 and first[1] == pytest.approx(3 * first[0], rel=1e-3)


def test_killed_and_stopped_the_same_command_ends_with_the_same_weights(tiny_model, preferences, tmp_path):
    out, whole = tmp_path / "disturbed", tmp_path / "whole"
    flags = ["--gpus", 1, "--save_interval", 1, "--epochs", 2]
    assert train("dpo", whole, tiny_model, preferences, *flags).returncode == 0
    for updates, number, status in ((2, signal.SIGKILL, -9), (4, signal.SIGTERM, 75)):
        process = subprocess.Popen(command("dpo", out, tiny_model, preferences, *flags), env=variables())
        deadline = time.monotonic() + 400
        while len(read_log(out)) < updates:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(200) == status
        while processes_of(out) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not (out / "COMPLETED").exists()
    done = train("dpo", out, tiny_model, preferences, *flags)
    assert done.returncode == 0 and "resuming after update" in done.stdout + done.stderr
    assert sha256_of(out / "model.safetensors") == sha256_of(whole / "model.safetensors")
    figures = [[(line["update"], line["loss"]) for line in read_log(folder)] for folder in (out, whole)]
    assert figures[0] == figures[1]


def test_checkpoints_of_another_run_are_not_gone_on_with(tiny_model, preferences, tmp_path):
    out = tmp_path / "out"
    assert train("dpo", out, tiny_model, preferences, "--gpus", 1, "--save_interval", 1).returncode == 0
    (out / "COMPLETED").unlink()
    other = train("dpo", out, tiny_model, preferences, "--gpus", 1, "--beta", 0.5)
    assert other.returncode == 2 and "differs in beta" in other.stdout + other.stderr
