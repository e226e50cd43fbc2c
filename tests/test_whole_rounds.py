"""Whole rounds by the command: killed after and inside every stage they end with the same bytes, and each method trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TEMPLATE, read_rows
from test_correct_file import write
from transformers import AutoModelForCausalLM

from aligner.card import Card, write_card
from aligner.encoder import Encoder
from aligner.files import is_completed, sha256_of
from aligner.models import load_tokenizer
from aligner.prompts import DEFAULT

pytestmark = pytest.mark.slow
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="needs trl (tests/README.md)")
SAID = ("Yes.", "No, never.")


@pytest.fixture(scope="module")
def corrector(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Aligner that turns whatever it is given into one of two short answers, and ends."""
    folder = tmp_path_factory.mktemp("corrector")
    tokenizer, model = load_tokenizer(str(tiny_model)), AutoModelForCausalLM.from_pretrained(tiny_model)
    encoder, optimizer = Encoder(tokenizer), torch.optim.AdamW(model.parameters(), 1e-2)
    rows = [(row["question"][:40], row["answer"][:40], SAID[n % 2]) for n, row in enumerate(read_rows(TEMPLATE, 8))]
    prompts = [encoder.render(DEFAULT, question, answer) for question, answer, _ in rows]
    for _ in range(12):
        for ids, target, _ in encoder.pairs(prompts, [row[2] for row in rows]):
            labels = torch.tensor([[-100] * len(ids) + target])
            model(input_ids=torch.tensor([ids + target]), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(folder, Card(DEFAULT, "correction", str(tiny_model), "", 512, 1, {"deciding": {}}, {}))
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    write(file, [{"question": row["question"][:60]} for row in read_rows(TEMPLATE, 14)])
    return file


def words(upstream: Path, aligner: Path, questions: Path, *flags: object) -> list[str]:
    """A command whose paths of output are relative: rows name the files that they come from."""
    own = ["--upstream", upstream, "--aligner", aligner, "--questions", questions, "--output", "rounds", "--held_out", 4,
           "--max_new_tokens", 8, "--batch_size", 1, "--dtype", "float32", "--lr", 3e-3, "--lr_warmup_ratio", 0, "--epochs", 2,
           "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--max_length", 128, "--gpus", 1, "--bf16",
           "False", "--log_type", "none", *flags]  # fmt: skip
    return [sys.executable, "-m", "aligner", "rounds", *map(str, own)]


def variables() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(command: list[str], folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command, cwd=folder, env=variables(), capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    """All rows and all weights of the rounds."""
    files = [file for file in folder.rglob("*") if file.suffix in (".jsonl", ".safetensors")]
    kept = [
        file for file in files if file.name != "train_log.jsonl" and "checkpoints" not in file.parts
    ]  # seconds, states
    return {str(file.relative_to(folder)): sha256_of(file) for file in sorted(kept)}


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "rounds/rounds.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, corrector: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(words(tiny_model, corrector, questions, "--rounds", 2, "--keep_going"), folder)
    return folder


def test_an_upstream_learns_what_the_aligner_says_and_that_is_seen_on_questions_it_never_saw(undisturbed):
    rounds = report(undisturbed)["rounds"]
    assert [each["round"] for each in rounds] == [0, 1, 2]
    assert all(each["rise"]["low"] > 0 for each in rounds[1:])
    for number in (1, 2):  # a random upstream also writes nothing but spaces: those questions are named
        answers = undisturbed / f"rounds/round-{number}/answers"
        counts = [len((answers / name).read_text().splitlines()) for name in ("answers.jsonl", "dropped.jsonl")]
        assert sum(counts) == 10 and rounds[number]["supervised"] == counts[0] > 2


def kill(command: list[str], folder: Path, moment: Any, number: signal.Signals) -> bool:
    """Start the command and end it at a moment, whatever it had started; whether the moment came. The next start does not wait."""
    process = subprocess.Popen(
        command, cwd=folder, env=variables(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 600
    while not (came := moment()) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.wait(120)
    return bool(came)


STAGES = ("held_out/answers", "held_out/corrected", "round-0/measured", "round-1/answers", "round-1/corrected", "round-1/pairs",
          "round-1/upstream", "round-1/measured", "round-2/answers", "round-2/upstream")  # fmt: skip


def test_killed_after_and_inside_every_stage_it_ends_with_the_same_bytes(
    undisturbed, tiny_model, corrector, questions, tmp_path
):
    command = words(tiny_model, corrector, questions, "--rounds", 2, "--keep_going")
    for name in STAGES:
        stage = tmp_path / "rounds" / name

        def inside(stage: Path = stage) -> bool:  # some of its rows, or of its updates, are there
            return any(stage.glob("parts/*.in.jsonl")) or (stage / "train_log.jsonl").exists() or is_completed(stage)

        number = signal.SIGTERM if name.startswith("round-2") else signal.SIGKILL
        assert kill(command, tmp_path, inside, number)
        assert kill(command, tmp_path, lambda stage=stage: is_completed(stage), number)
    run(command, tmp_path)
    assert digests(tmp_path / "rounds") == digests(undisturbed / "rounds")
    assert report(tmp_path) == report(undisturbed)


def test_the_same_command_makes_nothing_again_and_another_one_is_refused(undisturbed, tiny_model, corrector, questions):
    before = {file: file.stat().st_mtime_ns for file in (undisturbed / "rounds").rglob("*.safetensors")}
    said = run(words(tiny_model, corrector, questions, "--rounds", 2, "--keep_going"), undisturbed)
    assert "answers:" not in said
    assert before == {file: file.stat().st_mtime_ns for file in before}
    other = words(tiny_model, corrector, questions, "--rounds", 2, "--max_new_tokens", 9)
    done = subprocess.run(other, cwd=undisturbed, env=variables(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "was made with other max_new_tokens" in done.stderr


def test_an_aligner_each_round_is_trained_on_what_the_last_one_made_of_the_new_upstream(
    tiny_model, corrector, questions, tmp_path
):
    prompts = write(tmp_path / "prompts.jsonl", [{"question": f"{n}?", "unsafe": n % 2 == 0} for n in range(4)])
    recipe = tmp_path / "aligner.yaml"
    recipe.write_text(
        "lr: 0.01\nepochs: 6\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 1\nmax_length: 256\n"
    )
    flags = [
        "--rounds",
        2,
        "--keep_going",
        "--aligner_each_round",
        "--aligner_config",
        recipe,
        "--help_and_harm",
        prompts,
    ]
    run(words(tiny_model, corrector, questions, *flags), tmp_path)
    own = tmp_path / "rounds/round-2/aligner"
    card = json.loads((own / "aligner.json").read_text())
    assert card["base_model"] == str(tiny_model) and card["prompt"]["text"] == DEFAULT.text
    assert card["data"]["train"][0]["path"] == "rounds/round-2/teacher/aligner.jsonl"
    asked = json.loads((tmp_path / "rounds/round-2/corrected/job.json").read_text())
    assert asked["model"] == "rounds/round-2/aligner"
    assert all({"help", "harmless"} == set(each["with_aligner"]) for each in report(tmp_path)["rounds"])


@needs_trl
@pytest.mark.parametrize("method", ["dpo", "rloo"])
def test_a_round_by_trl_ends_with_a_whole_upstream_and_a_measure(method, tiny_model, corrector, questions, tmp_path):
    more = ["--max_completion_length", 8] if method == "rloo" else []
    run(words(tiny_model, corrector, questions, "--method", method, *more), tmp_path)
    assert is_completed(tmp_path / "rounds/round-1/upstream")
    assert is_completed(tmp_path / "rounds/round-1/reward") == (method == "rloo")
    _, after = report(tmp_path)["rounds"]
    assert after["rise"]["low"] > 0 or method == "rloo"


def test_a_server_is_asked_for_the_upstream_by_its_name_and_for_a_trained_one_by_its_folder(
    tiny_model, corrector, questions, told, tmp_path
):
    known = [row["answer"][:40].strip() for row in read_rows(TEMPLATE, 8)]  # which the Aligner has learned to correct
    told.rule = lambda question: known[len(question) % 8]
    server = ["--upstream_url", told.url, "--upstream_model", "first"]
    run(words(tiny_model, corrector, questions, "--rounds", 2, "--keep_going", *server), tmp_path)
    trained = str(tmp_path / "rounds/round-1/upstream")
    assert {body["model"] for body in told.asked} == {"first", trained}
    answers = [
        json.loads(line) for line in (tmp_path / "rounds/round-1/answers/answers.jsonl").read_text().splitlines()
    ]
    assert all(row["answer"] == told.rule(row["question"]) for row in answers) and len(answers) == 10
