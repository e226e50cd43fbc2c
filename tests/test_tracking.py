"""One run in wandb, however often it is resumed."""

from __future__ import annotations

import logging

import wandb

from aligner.training.finetune.metrics import Metrics, tracker_keys
from aligner.training.flags import parse


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
