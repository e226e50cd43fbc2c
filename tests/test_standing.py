"""What a folder holds from an earlier run, and where the ranks of a new one are put."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TEMPLATE
from tqdm import tqdm

from aligner.card import Card, differences, prompt_of, read_card, write_card
from aligner.files import COMPLETED
from aligner.launch import command, launch
from aligner.records import UserError
from aligner.training.checkpoint.resume import begin_run, inspect_output, inspect_run, states
from aligner.training.distributed.hardware import resolved
from aligner.training.finetune import metrics as metrics_module
from aligner.training.finetune.loop import is_evaluation_due
from aligner.training.finetune.metrics import Metrics
from aligner.training.flags import parse
from aligner.training.plan import Plan
from aligner.training.stages import check_positions, make_card, stage_data, stages
from aligner.training.train_log import read_log


def flags(model: Path, out: Path, *more: str) -> list[str]:
    return ["--train_datasets", str(TEMPLATE), "--model_name_or_path", str(model), "--output_dir", str(out), *more]


def card(arguments: list[str], rows: int = 32) -> tuple[Card, object, object]:
    config = resolved(parse(arguments))
    stage = stages(config)[-1]
    return make_card(config, stage, stage_data(config, stage.name), rows, {}), config, stage


def finish(folder: Path, made: Card) -> None:
    write_card(folder, made)
    (folder / COMPLETED).touch()


def test_a_finished_run_is_known_again(tiny_model, tmp_path):
    made, config, _ = card(flags(tiny_model, tmp_path))
    finish(tmp_path, made)
    found = inspect_output(config, tmp_path, made)
    assert found.finished and found.changed == () and read_card(tmp_path) == made


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        (["--lr", "1e-5"], "lr (2e-05 -> 1e-05)"),
        (["--epochs", "4"], "epochs (3 -> 4)"),
        (["--prompt_template", "edit-pair"], "prompt"),
        (["--eval_split_ratio", "0.5"], "eval_split_ratio (None -> 0.5)"),
        (["--identity_proportion", "0.2"], "identity (None -> [0.2, None, None])"),
        (["--max_length", "512"], "max_length (2048 -> 512)"),
        (["--zero_stage", "1"], None),
        (["--gradient_checkpointing", "False"], None),
        (["--save_interval", "7"], None),
    ],
)
def test_what_decides_the_weights_is_compared_and_nothing_else(more, changed, tiny_model, tmp_path):
    old, *_ = card(flags(tiny_model, tmp_path))
    new, *_ = card(flags(tiny_model, tmp_path, *more))
    assert differences(old, new) == ([changed] if changed else [])


def test_other_data_another_formatter_and_another_base_are_other_runs(tiny_model, bpe_folder, tmp_path):
    from conftest import save_llama

    from aligner.training.datasets import Correction, register

    register("swapped")(lambda row: Correction(row["question"], row["correction"], row["answer"]))
    old, *_ = card(flags(tiny_model, tmp_path))
    swapped, *_ = card(flags(tiny_model, tmp_path, "--train_datasets", f"swapped::{TEMPLATE}"))
    fewer, *_ = card(flags(tiny_model, tmp_path, "--train_datasets", f"correction-json:0.5:{TEMPLATE}"))
    other, *_ = card(flags(save_llama(bpe_folder, tmp_path / "other", tied=False), tmp_path))
    assert differences(old, swapped) == ["train_datasets"] == differences(old, fewer)
    assert differences(old, other) == ["base_model"]


def test_records_per_update_stay_what_the_run_began_with(tiny_model, tmp_path):
    old, *_ = card(flags(tiny_model, tmp_path), rows=32)
    finish(tmp_path, old)
    doubled, config, _ = card(flags(tiny_model, tmp_path), rows=64)  # twice the ranks
    assert inspect_output(config, tmp_path, doubled).records_per_update == 32
    forced, config, _ = card(flags(tiny_model, tmp_path, "--records_per_update", "64"), rows=64)
    assert inspect_output(config, tmp_path, forced).changed == ("records_per_update (32 -> 64)",)


def test_resume_never_sees_nothing(tiny_model, tmp_path):
    made, config, _ = card(flags(tiny_model, tmp_path, "--resume", "never"))
    finish(tmp_path, made)
    assert not inspect_output(config, tmp_path, made).finished


def test_only_whole_states_count_and_the_newest_comes_last(tmp_path):
    for name in ("update-2", "update-10", "update-9", "update-11.partial", "update-12"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "update-12":
            (tmp_path / "checkpoints" / name / COMPLETED).touch()
    assert [state.name for state in states(tmp_path)] == ["update-2", "update-9", "update-10"]


def finished_run(arguments: list[str]) -> object:
    """The configuration of a run whose stages are all complete, by their cards."""
    config = resolved(parse(arguments))
    for stage in stages(config):
        stage.folder.mkdir(exist_ok=True)
        finish(stage.folder, make_card(config, stage, stage_data(config, stage.name), 32, {}))
    return config


def test_a_complete_run_has_nothing_left_to_train_whatever_became_of_its_warm_up(tiny_model, tmp_path):
    config = finished_run(flags(tiny_model, tmp_path, "--identity_proportion", "0.2"))
    assert inspect_run(config, 1) == {}
    (tmp_path / "identity" / COMPLETED).unlink()
    assert inspect_run(config, 1) == {}
    (tmp_path / COMPLETED).unlink()
    assert list(inspect_run(config, 1)) == ["identity", "correction"]


def test_a_main_stage_of_another_run_is_refused_and_a_warm_up_of_one_is_trained_anew(tiny_model, tmp_path):
    arguments = flags(tiny_model, tmp_path, "--identity_proportion", "0.2")
    finished_run(arguments)
    other = resolved(parse([*arguments, "--lr", "1e-3"]))
    with pytest.raises(UserError, match=r"holds a finished run that differs in lr \(2e-05 -> 0.001\)"):
        begin_run(other, 1)
    assert (tmp_path / "identity").exists(), "nothing is touched of a run that is refused"
    (tmp_path / COMPLETED).unlink()
    assert inspect_run(other, 2)["identity"].changed and (tmp_path / "identity").exists(), "to inspect changes nothing"
    remaining = begin_run(other, 2)
    assert list(remaining) == ["identity", "correction"] and not (tmp_path / "identity").exists()
    assert remaining["identity"].records_per_update == 64, "its own, and not the earlier run's"


def test_a_main_stage_alone_starts_from_a_complete_warm_up_of_this_run_only(tiny_model, tmp_path):
    arguments = flags(tiny_model, tmp_path, "--identity_proportion", "0.2")
    finished_run(arguments)
    (tmp_path / COMPLETED).unlink()
    assert list(inspect_run(resolved(parse([*arguments, "--stage", "correction"])), 1)) == ["correction"]
    other = [*arguments, "--stage", "correction", "--lr", "1e-3"]
    with pytest.raises(UserError, match=r"cannot be started from \(lr \(2e-05 -> 0.001\)\). Leave --stage out"):
        inspect_run(resolved(parse(other)), 1)
    assert inspect_run(resolved(parse([*other, "--resume", "force"])), 1)
    (tmp_path / "identity" / COMPLETED).unlink()
    with pytest.raises(UserError, match="not complete"):
        inspect_run(resolved(parse([*arguments, "--stage", "correction"])), 1)


def test_starting_over_removes_the_results_of_every_stage_and_a_warm_up_that_is_not_wanted(tiny_model, tmp_path):
    with_warm_up = flags(tiny_model, tmp_path, "--identity_proportion", "0.2")
    finished_run(with_warm_up)
    assert list(begin_run(resolved(parse([*with_warm_up, "--resume", "never"])), 1)) == ["identity", "correction"]
    assert not (tmp_path / COMPLETED).exists() and not (tmp_path / "identity" / COMPLETED).exists()
    assert (tmp_path / "identity").exists()
    assert list(begin_run(resolved(parse(flags(tiny_model, tmp_path, "--resume", "never"))), 1)) == ["correction"]
    assert not (tmp_path / "identity").exists()


def test_another_prompt_than_a_model_was_trained_with_is_said(tiny_model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("aligner"), "propagate", True)
    config = resolved(parse(flags(tiny_model, tmp_path)))
    write_card(tmp_path, make_card(config, stages(config)[0], stage_data(config, "correction"), 32, {}))
    prompt_of(str(tmp_path), "correction")
    assert not caplog.records
    assert prompt_of(str(tmp_path), "revision").name == "revision"
    assert "was trained with the prompt 'correction', and 'revision' is used" in caplog.text


def test_the_base_model_is_never_the_output_folder(tiny_model):
    with pytest.raises(UserError, match="is the base model's own folder"):
        stages(parse(flags(tiny_model, tiny_model)))


def test_max_length_beyond_the_models_positions_is_refused(tiny_model, tmp_path):
    config = parse(flags(tiny_model, tmp_path, "--max_length", "4096"))
    with pytest.raises(UserError, match="4096 is more than the model's 2048 positions"):
        check_positions(config, stages(config)[0])


def test_a_card_that_is_none_is_named(tmp_path):
    (tmp_path / "aligner.json").write_text('{"prompt": 3}')
    with pytest.raises(UserError, match="is not an Aligner's card"):
        prompt_of(str(tmp_path), None)
    (tmp_path / "aligner.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        prompt_of(str(tmp_path), None)
    assert prompt_of(str(tmp_path), "edit-pair").name == "edit-pair"


# --- where the ranks are put


def test_a_login_node_without_a_gpu_starts_ranks_on_hosts_that_have_them(tmp_path, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    hosts = tmp_path / "hosts"
    hosts.write_text("worker-1 slots=8\nworker-2 slots=8\n")
    launch.quiet_libraries()
    config = resolved(parse(["--hostfile", str(hosts)]))
    assert (config.optimization.bf16, config.optimization.tf32) == (True, True)
    assert command.environment(config, 16)["DS_ACCELERATOR"] == "cuda"
    program = "import os, sys, aligner.launch.launch; print('DS_ACCELERATOR' in os.environ, 'deepspeed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_the_ranks_of_a_hostfile_are_its_slots(tmp_path, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)  # set where DeepSpeed was imported before
    hosts = tmp_path / "hosts"
    hosts.write_text("# two nodes\nworker-1 slots=8\nworker-2 slots=8\n")
    run = ["--model_name_or_path", "base", "--output_dir", str(tmp_path / "out")]
    config = resolved(parse(["--hostfile", str(hosts), *run]))
    assert command.count_ranks(config) == 16
    assert command.placement(config, 16) == ["--hostfile", str(hosts)]
    assert config.optimization.bf16 is True or command.gpus_here()
    hosts.write_text("worker-1 slots=many\n")
    with pytest.raises(UserError, match="is not like 'worker-1 slots=8'"):
        command.count_ranks(config)


def test_the_gpus_that_are_visible_are_the_ones_used(monkeypatch):
    monkeypatch.setattr(command, "gpus_here", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert command.placement(parse([]), 2) == ["--include", "localhost:4,5"]
    assert command.placement(parse([]), 1) == ["--include", "localhost:4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert command.placement(parse([]), 2) == ["--num_gpus", "2"]


# --- when to evaluate, and trackers


@pytest.mark.parametrize(("strategy", "due"), [("epoch", [3, 6, 9]), ("steps", [2, 4, 6, 8, 9]), ("none", [9])])
def test_evaluation_is_due_at_the_end_and_as_configured(strategy, due):
    from types import SimpleNamespace

    data = parse(["--eval_strategy", strategy, "--eval_interval", "2"]).data
    parts = SimpleNamespace(plan=Plan(10, 4, 2, 1, 3, 0.1), data=data)
    assert [done for done in range(1, 10) if is_evaluation_due(parts, done)] == due


@pytest.mark.parametrize(("reachable", "tried"), [(True, ["online", "offline"]), (False, ["offline"])])
def test_wandb_without_a_network_goes_offline_and_the_run_goes_on(reachable, tried, tmp_path, monkeypatch):
    """An address that cannot be reached is not waited for; one that answers may still fail."""
    import wandb

    real, modes = wandb.init, []

    def no_network(**options):
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return real(**options)

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", no_network)
    monkeypatch.setattr(metrics_module.network, "is_reachable", lambda address: reachable)
    metrics = Metrics(parse([]).output, tmp_path, "correction", 1, 0, {})
    metrics.record({"update": 1, "loss": 2.0, "lr": 1e-5, "tokens_per_second": 3.0})
    metrics.close()
    assert modes == tried and list((tmp_path / "wandb").glob("offline-run-*"))
    assert [line["loss"] for line in read_log(tmp_path)] == [2.0]


def test_without_a_key_nothing_is_asked_of_wandb(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not metrics_module.wandb_key_is_set()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    (tmp_path / ".netrc").chmod(0o600)
    assert metrics_module.wandb_key_is_set()


def test_the_log_is_cut_back_to_where_the_run_goes_on(tmp_path):
    lines = [{"update": 0, "eval_loss": 3.0}, *({"update": n, "loss": 1.0} for n in (1, 2, 3))]
    (tmp_path / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"upd')
    output = replace(parse([]).output, log_type="none")
    Metrics(output, tmp_path, "correction", 4, 2, {}).close()
    assert [line["update"] for line in read_log(tmp_path)] == [0, 1, 2]


def test_a_pipe_whose_reader_is_gone_ends_no_run(tmp_path, monkeypatch):
    """`... 2>&1 | tee log` over a connection that drops: the stop's state must still be saved."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    reader, writer = os.pipe()
    pipe = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", pipe)
    monkeypatch.setattr(sys, "stdout", pipe)
    metrics = Metrics(replace(parse([]).output, log_type="none"), tmp_path, "correction", 2, 0, {})
    os.close(reader)
    for update in (1, 2):
        metrics.record({"update": update, "loss": 1.0, "lr": 1e-5, "tokens_per_second": 3.0})
        metrics.record({"update": update, "eval_loss": 1.0})
    metrics.close()
    assert len(read_log(tmp_path)) == 4
    with pytest.raises(BrokenPipeError):  # it was one
        pipe.close()
