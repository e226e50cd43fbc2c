"""One run in wandb, however often it is resumed."""

from __future__ import annotations

import json
import logging

import pytest
import wandb

from aligner.training.finetune.metrics import Metrics, tracker_keys
from aligner.training.finetune.run import warn_of_no_gain
from aligner.training.flags import parse
from aligner.training.stages import Stage
from aligner.training.train_log import evaluations


def test_a_resumed_run_goes_on_in_the_same_wandb_run_and_the_line_to_send_it_is_shown(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    output, runs = parse(["--log_type", "wandb"]).output, []
    for start in (0, 1, 0):  # begun, resumed after update 1, begun anew
        with caplog.at_level(logging.INFO, "aligner"):
            metrics = Metrics(output, tmp_path, "correction", 3, start, {})
        runs.append(wandb.run.id)
        metrics.record({"update": start + 1, "loss": 2.0, "lr": 1e-5, "tokens_per_second": 3.0})
        metrics.close()
    assert runs[0] == runs[1] != runs[2]
    assert f"wandb sync --append {tmp_path}/wandb/offline-run-*" in caplog.text
    assert list((tmp_path / "wandb").glob(f"offline-run-*{runs[0]}"))


def test_trackers_get_the_keys_of_the_original():
    line = {"update": 3, "epoch": 0.5, "loss": 2.0, "lr": 1e-5, "grad_norm": None}
    assert tracker_keys(line) == {"train/epoch": 0.5, "train/loss": 2.0, "train/lr": 1e-5}
    assert tracker_keys({"update": 3, "eval_loss": 1.5}) == {"eval/loss": 1.5}


@pytest.mark.parametrize(("after", "warned"), [(2.6, True), (2.4, False)])
def test_the_best_of_worse_states_is_said(after, warned, tmp_path, caplog):
    lines = [{"update": 0, "eval_loss": 2.5}, {"update": 4, "eval_loss": 2.7}, {"update": 8, "eval_loss": after}]
    (tmp_path / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    warn_of_no_gain(Stage("correction", tmp_path, "base", parse([]).optimization))
    assert ("did not lower the held-out loss: it was 2.5000 before" in caplog.text) == warned


def test_a_held_out_loss_that_is_not_finite_is_no_evaluation():
    lines = [{"update": 0, "eval_loss": 2.5}, {"update": 1, "loss": 1.0}, {"update": 2, "eval_loss": None}]
    assert evaluations([*lines, {"update": 3, "eval_loss": float("nan")}]) == [(0, 2.5)]
