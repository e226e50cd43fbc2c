"""Equal preference: a stage of its own between warm-up and correction, from pairs that are rated the same in an objective."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from disturbed import Run
from test_resume import losses, weights
from test_standing import flags

from aligner.known_prompts import EQUAL
from aligner.records import UserError
from aligner.training.flags import parse
from aligner.training.stages import stage_data, stages

STAGES = ("identity", "equal", "")


def rated_rows(file: Path, count: int = 24) -> Path:
    """Questions with two answers, of which the second is more concise, and both as honest."""
    answers = [
        ("it is a long story about {n}", {"honest": 3, "concise": 1}),
        ("it is {n}", {"honest": 3, "concise": 5}),
    ]
    with file.open("w") as stream:
        for n in range(count):
            rated = [{"text": text.format(n=n), "ratings": ratings} for text, ratings in answers]
            stream.write(json.dumps({"question": f"what is {n}?", "answers": rated}) + "\n")
    return file


def run_of(rows: Path, out: Path, *more: str):
    return parse(
        [
            "--train_datasets",
            f"rated-json::{rows}",
            "--model_name_or_path",
            str(out.parent),
            "--output_dir",
            str(out),
            *more,
        ]
    )


def test_the_stage_stands_between_warm_up_and_correction_and_each_starts_from_the_one_before(tmp_path):
    config = run_of(tmp_path / "r", tmp_path / "out", "--identity_proportion", "0.2", "--equal_proportion", "1")
    chain = [(stage.name, Path(stage.start_from).name, stage.folder.name) for stage in stages(config)]
    assert chain == [
        ("identity", tmp_path.name, "identity"),
        ("equal", "identity", "equal"),
        ("correction", "equal", "out"),
    ]


def test_it_learns_pairs_that_are_rated_the_same_under_a_prompt_of_its_own_and_no_other_stage_sees_them(tmp_path):
    rows = rated_rows(tmp_path / "rows.jsonl")
    config = run_of(rows, tmp_path / "out", "--equal_proportion", "0.5", "--eval_split_ratio", "0.25")
    equal, correction = stage_data(config, "equal"), stage_data(config, "correction")
    assert len(equal.train) == 9 and all(record.objectives == ("honest",) for record in equal.train), "half of 18 pairs"
    assert {equal.prompts.of(record) for record in equal.train} == {EQUAL}
    assert "##Equal in: Honest: " in EQUAL.render("Q", "A", equal.train[0].feedback)
    assert len(correction.train) == 18 and {record.objectives for record in correction.train} == {("concise",)}
    assert EQUAL not in correction.prompts.all()
    asked = {record.question for record in equal.train}
    assert not asked & {record.question for record in correction.held_out}, (
        "nothing that is held out is seen in any stage"
    )
    without = stage_data(run_of(rows, tmp_path / "out", "--eval_split_ratio", "0.25"), "correction")
    assert without.train == correction.train


def test_without_pairs_that_are_rated_the_same_there_is_no_such_stage(tmp_path):
    file = tmp_path / "rows.jsonl"
    pair = [{"text": "a", "ratings": {"honest": 1}}, {"text": "b", "ratings": {"honest": 2}}]
    file.write_text(json.dumps({"question": "Q", "answers": pair}) + "\n")
    with pytest.raises(UserError, match="no two answers are rated the same"):
        stage_data(run_of(file, tmp_path / "out", "--equal_proportion", "1"), "equal")


def test_pairs_that_are_rated_the_same_in_all_objectives_leave_nothing_to_correct(tmp_path):
    file = tmp_path / "rows.jsonl"
    pair = [{"text": "a", "ratings": {"honest": 1}}, {"text": "b", "ratings": {"honest": 1}}]
    file.write_text(json.dumps({"question": "Q", "answers": pair}) + "\n")
    with pytest.raises(UserError, match="every pair is rated the same in all its objectives"):
        stage_data(run_of(file, tmp_path / "out", "--equal_proportion", "1"), "correction")


def test_data_without_ratings_are_named(tiny_model, tmp_path):
    config = parse([*flags(tiny_model, tmp_path / "out"), "--equal_proportion", "1"])
    with pytest.raises(UserError, match="--equal_proportion is read by none of the data sets here"):
        stage_data(config, "correction")


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_three_stages_killed_in_the_middle_one_end_as_if_undisturbed(zero_stage, tiny_model, tmp_path):
    """Two ranks; the same losses and weights bit for bit in each stage, and three folders."""
    rows = rated_rows(tmp_path / "rows.jsonl", 60)
    more = (
        "--train_datasets",
        f"rated-json::{rows}",
        "--identity_proportion",
        0.5,
        "--equal_proportion",
        1,
        "--epochs",
        2,
    )
    more = (*more, "--zero_stage", zero_stage, "--save_interval", 2)
    undisturbed = Run(tiny_model, tmp_path / "whole", *more).start()
    assert undisturbed.end() == 0, undisturbed.said
    run = Run(tiny_model, tmp_path / "killed", *more).start()
    middle = tmp_path / "killed" / "equal" / "train_log.jsonl"
    while not (middle.is_file() and middle.read_text().count('"loss"') >= 5):
        assert run.process.poll() is None, run.process.communicate()[0].decode()
    os.kill(run.rank(1), signal.SIGKILL)
    assert run.end() not in (0, 75) and not (tmp_path / "killed" / "equal" / "COMPLETED").exists()
    assert run.start().end() == 0, run.said
    for stage in STAGES:
        assert losses(run.out / stage) == losses(undisturbed.out / stage) != []
        assert weights(run.out / stage) == weights(undisturbed.out / stage)
        card = json.loads((run.out / stage / "aligner.json").read_text())
        assert card["stage"] == (stage or "correction") and (run.out / stage / "COMPLETED").exists()
    assert "equal: " in undisturbed.said
