"""`aligner reproduce adding`: an Aligner trained on, with and without old rows, and what each has lost and learned."""

from __future__ import annotations

import json

import pytest
import yaml

from aligner.cli import main
from aligner.reproduce.adding import by_turns, route_step, sets_step, write_questions, write_sets
from aligner.reproduce.experiment import FOLDER, read_experiment
from aligner.reproduce.rows import write_rows
from aligner.reproduce.steps import training_steps
from aligner.training.flags import parse


@pytest.fixture
def data(tmp_path):
    """Old and new rows, of 90 questions each."""
    for file in ("qac_hh_rlhf.json", "qac_truthfulqa.json"):
        rows = [
            {
                "question": f"What does {file} say of number {n}?",
                "answer": f"It says that {n} is of no use at all.",
                "correction": f"It says that {n} is of much use to many.",
            }
            for n in range(90)
        ]
        (tmp_path / file).write_text(json.dumps(rows))
    return tmp_path


def test_the_new_runs_begin_from_the_old_aligner_and_one_has_a_share_of_the_old_rows(data, tmp_path):
    experiment, folder = read_experiment("adding"), tmp_path / "out"
    counts = write_rows(experiment, data, folder / "rows")
    flags = {
        step.name.removeprefix("train "): parse(step.words[1:]) for step in training_steps(experiment, folder, counts)
    }
    old = str(folder / "runs" / "old")
    bases = {name: each.model.model_name_or_path for name, each in flags.items()}
    assert bases == {"old": "embedded", "new": "embedded", "new-rows-alone": old, "old-rows-too": old}
    new, beside = flags["old-rows-too"].data.train_datasets
    assert new.startswith("correction-json:0.12:") and beside == f"correction-json:0.2:{folder}/rows/train-old.jsonl"
    assert len(flags["new-rows-alone"].data.train_datasets) == 1


def test_no_question_that_is_measured_was_trained_on_or_routed_by(data, tmp_path):
    experiment, folder = read_experiment("adding"), tmp_path / "out"
    write_rows(experiment, data, folder / "rows")
    counts = write_questions(experiment, data, folder / "rows")
    held_out = write_sets(experiment, data, folder / "rows")
    assert set(held_out) == {"old", "new"} and all(10 < count < 60 for count in held_out.values())
    read = {file.stem: file.read_text().splitlines() for file in (folder / "rows").glob("*.jsonl")}
    for name in held_out:
        assert not set(read[f"report-{name}"]) & set(read[f"train-{name}"])
        asked = {json.loads(line)["question"] for line in read[f"report-{name}"]}
        routed_by = {json.loads(line)["question"] for line in read[f"route-{name}"]}
        assert len(routed_by) > 40 and not asked & routed_by
    routes = yaml.safe_load(route_step(experiment, folder, counts).rows.read_text())["aligners"]
    assert routes["old"]["rows"] == str(folder / "rows" / "route-old.jsonl")


def test_few_rows_are_of_many_questions():
    rows = [{"question": f"Q{n}", "turn": turn} for n in range(3) for turn in range(n + 1)]
    assert [row["turn"] for row in by_turns(rows)] == [0, 0, 0, 1, 1, 2]


def test_the_first_run_is_the_one_before_and_the_route_stands_beside(data, tmp_path):
    words = sets_step(read_experiment("adding"), tmp_path, {"old": 3, "new": 4}).words
    models = words[words.index("--models") + 1 : words.index("--route")]
    assert [word.partition("=")[0] for word in models] == ["old", "new", "new-rows-alone", "old-rows-too"]


def test_an_aligner_of_ones_own_is_taken_as_it_is(data, tmp_path):
    value = yaml.safe_load((FOLDER / "adding.yaml").read_text())
    value["small"]["runs"]["old"]["trained"] = "output/mine"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    experiment = read_experiment(str(tmp_path / "mine.yaml"))
    counts = write_rows(experiment, data, tmp_path / "out" / "rows")
    steps = training_steps(experiment, tmp_path / "out", counts)
    assert [step.name for step in steps] == ["train new", "train new-rows-alone", "train old-rows-too"]
    assert "output/mine" in steps[1].words and "old=output/mine" in sets_step(experiment, tmp_path, {"old": 1}).words


def test_a_dry_run_says_what_is_left_and_trains_nothing(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reproduce", "adding", "--data", str(data), "--output", str(out), "--dry_run"]) == 0
    assert "6 of 6 steps left: about " in capsys.readouterr().out and not (out / "adding" / "runs").exists()


@pytest.mark.slow
def test_the_whole_experiment_is_one_command(data, tiny_model, tmp_path, capsys):
    """Four trainings by the launcher, the classifier, and the losses by set, from a tiny model; run again, nothing is left."""
    value = yaml.safe_load((FOLDER / "adding.yaml").read_text())
    value["small"]["train"]["model_name_or_path"] = str(tiny_model)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    command = ["reproduce", str(tmp_path / "small.yaml"), "--data", str(data), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    sets = json.loads((tmp_path / "out" / "small" / "sets" / "sets.json").read_text())["sets"]
    assert set(sets) == {"old", "new"}
    summary = (tmp_path / "out" / "small" / "summary.md").read_text()
    assert "old-rows-too" in summary and "route" in summary
    capsys.readouterr()
    assert main([*command, "--dry_run"]) == 0
    assert "0 of 6 steps left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"from": "later"}, "new: 'later' is no run that is trained before it"),
        ({"beside": {"later": 0.5}}, "new: 'later' is no run that is trained before it"),
        ({"form": "old"}, "new: there is no flag 'form'. Did you mean 'format'"),
    ],
)
def test_a_run_that_begins_from_nothing_is_one_line(run, said, data, capsys):
    value = yaml.safe_load((FOLDER / "adding.yaml").read_text())
    value["small"]["runs"] = {"old": {}, "new": run, "later": {}}
    (data / "x.yaml").write_text(yaml.safe_dump({**value, "route": []}, sort_keys=False))
    assert main(["reproduce", str(data / "x.yaml"), "--data", str(data)]) == 2
    assert said in capsys.readouterr().err
