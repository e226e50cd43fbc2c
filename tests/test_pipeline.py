"""What a user types, from records to corrected answers, with two real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SECRET, TEMPLATE

from aligner.cli import main as aligner
from aligner.launch.launch import main as launch
from aligner.training.finetune.metrics import Metrics
from aligner.training.flags import parse
from aligner.training.train_log import read_log


def test_it_ends_by_showing_what_was_learned_and_the_next_command(trained):
    out, _, said = trained
    assert "Loss on 4 held-out corrections" in said
    for line in ("before", "after the warm-up", "after the correction", f"checkpoint  {out}", f"{out}/loss.png"):
        assert line in said.replace("\n", "")
    assert f"correct --model {out} --input" in said
    assert "\x1b[" not in said  # colour only on a terminal


def test_the_output_folder_is_what_the_design_says(trained):
    out, _, _ = trained
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                "chat_template.jinja", "aligner.json", "train_log.jsonl", "loss.png", "command.sh", "train.log",
                "COMPLETED"}  # fmt: skip
    assert {p.name for p in (out / "identity").iterdir()} - {"checkpoints", "wandb"} == expected
    assert {p.name for p in out.iterdir()} - {"checkpoints"} == {*expected, "identity", "wandb"}  # its key is set
    assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_card_carries_the_prompt_itself_and_the_provenance(trained, rows):
    import hashlib

    card = json.loads((trained[0] / "aligner.json").read_text())
    assert card["prompt"]["text"].startswith("BEGINNING OF CONVERSATION: USER: ##Question: {question}\n")
    assert card["data"]["train"][0]["sha256"] == hashlib.sha256(rows.read_bytes()).hexdigest()
    assert (card["data"]["train"][0]["rows"], card["data"]["tally"]["train"]["rows"]) == (40, 36)
    assert (card["stage"], card["records_per_update"], card["max_length"]) == ("correction", 8, 2048)
    assert card["versions"]["transformers"] and card["config"]["lr"] == 2e-5


def test_the_log_has_a_line_for_every_update_and_evaluation(trained):
    lines = read_log(trained[0])
    updates = [line for line in lines if "loss" in line]
    assert [line["update"] for line in updates] == [1, 2, 3, 4, 5]
    assert set(updates[0]) == {"update", "epoch", "loss", "lr", "grad_norm", "target_tokens", "tokens", "seconds",
                               "tokens_per_second"}  # fmt: skip
    assert [line["update"] for line in lines if "eval_loss" in line] == [0, 5]
    warm_up = [line for line in read_log(trained[0] / "identity") if "loss" in line]
    assert len(warm_up) == 2  # a quarter of the 36 training records, by 8


def test_the_main_stage_starts_where_the_warm_up_ended(trained):
    end = [line["eval_loss"] for line in read_log(trained[0] / "identity") if "eval_loss" in line][-1]
    start = next(line["eval_loss"] for line in read_log(trained[0]) if "eval_loss" in line)
    assert start == pytest.approx(end, rel=1e-5 if not _half(trained[0]) else 1e-2)


def _half(folder: Path) -> bool:
    return json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_no_file_holds_a_secret(trained):
    for file in trained[0].rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_running_it_again_trains_nothing_and_a_changed_setting_is_named(trained, capfd):
    out, flags, _ = trained
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert launch([*map(str, flags)]) == 0 and capfd.readouterr().out.count("is already complete") == 2
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert launch([*map(str, flags), "--identity_proportion", "0", "--lr", "1e-5"]) == 2
    said = capfd.readouterr().err
    assert f"{out} holds a finished run that differs in identity" in said and "lr (2e-05 -> 1e-05)" in said
    assert "Traceback" not in said


def test_transformers_opens_the_folder_and_aligner_corrects_with_it(trained, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = str(trained[0])
    AutoModelForCausalLM.from_pretrained(out)
    AutoTokenizer.from_pretrained(out)
    rows = [{"id": 7, "question": "Why?", "answer": "Because."}, {"id": 8, "question": "{x}", "answer": "y" * 200}]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = tmp_path / "corrected.jsonl"
    flags = ["--model", out, "--input", str(tmp_path / "qa.jsonl"), "--output", str(target), "--max_new_tokens", "12"]
    assert aligner(["correct", *flags]) == 0
    made = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["id"], row["question"], type(row["corrected"])) for row in made] == [(7, "Why?", str), (8, "{x}", str)]
    assert "2 answers corrected" in capsys.readouterr().out


def test_a_batch_gives_what_one_at_a_time_gives(trained):
    from aligner.inference.corrector import Corrector, Settings

    corrector = Corrector.load(str(trained[0]), settings=Settings(batch_size=3, max_new_tokens=10))
    pairs = [("Why?", "Because."), ("What is a very long question about nothing?", "No."), ("Who?", "Nobody " * 30)]
    assert corrector.correct(pairs) == [corrector.correct([pair])[0] for pair in pairs]


@pytest.mark.slow
def test_command_sh_runs_this_run_again(trained):
    script = trained[0] / "command.sh"
    assert f"--output_dir {trained[0]}" in script.read_text()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", script, "--dry_run"], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--identity_proportion 0.25" in done.stdout and "training: 36 of 36 rows kept" in done.stdout


def test_a_dry_run_prints_everything_and_writes_nothing(rows, tiny_model, tmp_path, capfd):
    out = tmp_path / "never"
    flags = ["--train_datasets", rows, "--model_name_or_path", tiny_model, "--output_dir", out, "--gpus", "2",
             "--identity_proportion", "0.2", "--eval_split_ratio", "0.1", "--dry_run"]  # fmt: skip
    assert launch([*map(str, flags)]) == 0
    said = capfd.readouterr().out
    assert "-m deepspeed.launcher.runner --quiet --num_gpus 2 --master_port" in said
    assert "2 ranks x 4 rows x 8 accumulation = 64 rows per update; 36 rows x 3 epochs = 3 updates, 1 of them" in said
    assert "training: 36 of 36 rows kept" in said and "held out: 4 of 4 rows kept" in said
    assert said.count("ASSISTANT:[[") == 3
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], None),
        (["--train_datasets", str(TEMPLATE)], "--model_name_or_path is missing"),
        (["--model_name_or_path", "m"], "--train_datasets is missing"),
        (["--train_datasets", str(TEMPLATE), "--model_name_or_path", "m"], "--output_dir is missing"),
        (
            ["--train_datasets", "no.json", "--model_name_or_path", "embedded", "--output_dir", "o"],
            "there is no such file",
        ),
        (["--epochs", "1", "--dryrun"], "Did you mean 'dry_run'"),
        (["--hostfile", "none"], "none: there is no such file"),
    ],
)
def test_what_is_missing_is_named_in_one_line(flags, message, capsys, tmp_path, monkeypatch):
    from aligner.launch.launch import completed_flags, main

    monkeypatch.chdir(tmp_path)
    if message is None:
        config = completed_flags(["--lr", "1e-5"])
        assert config.model.model_name_or_path == "embedded" and config.optimization.lr == 1e-5
        damaged = f"restoration::{TEMPLATE}"
        assert config.data.train_datasets == [f"correction-json:0.25:{TEMPLATE}", damaged, damaged]
        assert config.output.show_corrections == 3 and config.data.damage
        return
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_tensorboard_and_a_tracker_that_fails(tmp_path, tiny_model):
    output = parse(["--log_type", "tensorboard"]).output
    metrics = Metrics(output, tmp_path, "correction", 2, 0, {})
    line = {"update": 1, "loss": 2.0, "lr": 1e-5, "tokens_per_second": 3.0}

    def broken(values):
        raise OSError("disk full")

    metrics._trackers.append(broken)
    metrics.record(line)
    metrics.record({**line, "update": 2})
    metrics.close()
    assert [found["update"] for found in read_log(tmp_path)] == [1, 2]
    assert list((tmp_path / "tensorboard" / "correction").glob("events*"))


def test_check_names_unusable_rows_and_dumps_what_training_sees(tmp_path, tiny_model, capsys):
    good = {"question": "Why?", "answer": "No.", "correction": "No."}
    (tmp_path / "rows.json").write_text(json.dumps([good, {**good, "correction": ""}, good]))
    flags = [str(tmp_path / "rows.json"), "--model_name_or_path", str(tiny_model), "--dump", str(tmp_path / "d.jsonl")]
    assert aligner(["check", *flags]) == 1
    said = capsys.readouterr().out
    assert "row 2: 'correction' is empty" in said and "2 of 3 rows are usable, 1 are not" in said
    assert "equal: 2 corrections that equal their answer" in said
    dumped = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [row["row"] for row in dumped] == [1, 3] and set(dumped[0]) == {"row", "input_ids", "labels"}
    assert len(dumped[0]["input_ids"]) == len(dumped[0]["labels"]) and dumped[0]["labels"][0] == -100
    assert aligner(["check", str(TEMPLATE)]) == 0
    assert aligner(["check", str(tmp_path / "rows.json"), "--dump", "x"]) == 2


def test_a_model_without_a_card_asks_for_its_prompt(tiny_model, tmp_path, capsys):
    (tmp_path / "qa.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    flags = [
        "correct",
        "--model",
        str(tiny_model),
        "--input",
        str(tmp_path / "qa.jsonl"),
        "--output",
        str(tmp_path / "c"),
    ]
    assert aligner(flags) == 2
    assert "Pass --prompt_template with one of correction, edit-pair" in capsys.readouterr().err
    assert aligner([*flags, "--prompt_template", "edit-pair", "--max_new_tokens", "3"]) == 0
