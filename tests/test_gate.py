"""The gate: when an answer is left alone, and how the threshold is chosen."""

from __future__ import annotations

import pytest
import torch
from conftest import TEMPLATE

from aligner import cli
from aligner.inference.corrector import Corrector
from aligner.serving.gate import choose_threshold, confidence, curve


def test_the_threshold_is_the_lowest_that_misses_few_enough_changes():
    """Of five answers, by confidence -1 ... -5, the second and the fifth would be changed."""
    points = curve([-1, -2, -3, -4, -5], [False, True, False, False, True])
    assert [(p.threshold, p.left_alone, p.missed) for p in points] == [
        (-1, 0.2, 0), (-2, 0.4, 0.5), (-3, 0.6, 0.5), (-4, 0.8, 0.5), (-5, 1.0, 1.0),
    ]  # fmt: skip
    assert choose_threshold(points, 0.5).threshold == -4 and choose_threshold(points, 0.1).threshold == -1
    assert choose_threshold(curve([-1, -2], [True, False]), 0.1) is None, "the first that is left alone would be missed"


def test_confidence_is_the_mean_log_probability_of_the_answer(tiny_model):
    """Against a plain sum over a full forward pass."""
    prompt, answer = [5, 6, 7, 8], [9, 10, 11]
    corrector = Corrector.load(str(tiny_model), "correction")
    logits = corrector.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = sum(logits[3 + place, token].item() for place, token in enumerate(answer)) / 3
    assert confidence(corrector.model, prompt, answer) == pytest.approx(expected, abs=1e-5)


def test_calibrate_draws_what_thresholds_do_and_says_how_to_serve(tiny_model, tmp_path, capsys):
    command = ["calibrate", "--model", str(tiny_model), "--prompt_template", "correction", "--input", str(TEMPLATE), "--rows", "30",
               "--max_new_tokens", "4", "--output", str(tmp_path / "gate.png")]  # fmt: skip
    assert cli.main([*command, "--missed", "1"]) == 0
    said = capsys.readouterr().out
    assert "changes missed" in said and "--mode gate --threshold -" in said
    assert (tmp_path / "gate.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*command, "--rows", "3"]) == 2
    assert "a threshold needs at least 20" in capsys.readouterr().err
