"""`aligner reproduce`: the shipped experiments, the three sides of the questions, and going on where it was stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT

from aligner.cli import command_parser, main
from aligner.evaluation.subprocess_step import StepFailed
from aligner.files import COMPLETED
from aligner.records import UserError
from aligner.refusals import REFUSALS, declines
from aligner.reproduce.experiment import FOLDER, experiment_names, read_experiment, rows_by_side
from aligner.reproduce.rows import write_rows
from aligner.reproduce.run import paper_lines
from aligner.reproduce.steps import Step, answering_steps, measuring_steps, run_step, steps_of
from aligner.reproduce.summary import choose_recipe, left_by_pass, write_reports, write_summary
from aligner.training.flags import parse

SIDES = ("train", "choose", "report")


@pytest.fixture
def data(tmp_path):
    """Two files of 120 questions, half of which stand in both."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file, first in (("qac_pandalm.json", 0), ("qac_hh_rlhf.json", 60)):
        rows = [
            {
                "question": f"What is the use of thing number {n}?",
                "answer": f"Thing number {n} is of no use at all.",
                "correction": f"Thing number {n} opens the door of house {n}.",
            }
            for n in range(first, first + 120)
        ]
        (folder / file).write_text(json.dumps(rows))
    return folder


READ = {name: read_experiment(name) for name in experiment_names()}
SMALL = [name for name, each in READ.items() if "small" in each.scales and not each.comparison and not each.sets]


@pytest.mark.parametrize("name", SMALL)
def test_every_shipped_experiment_is_one_that_training_understands(name, tmp_path):
    experiment = read_experiment(name)
    runs = experiment.scales["small"].runs
    rows = 1.4 * experiment.questions["train"]  # as the files of the damaged answers have them
    counts = (
        dict(experiment.questions)
        | dict(experiment.answers)
        | {name: round(rows * run.get("share", 1)) for name, run in runs.items()}
    )
    steps = steps_of(experiment, tmp_path, counts)
    trained = [step for step in steps if step.name.startswith("train ")]
    alike = [run for run in runs.values() if "like" in run]
    assert len(trained) + len(alike) == len(runs) and trained[0].name == "train shuffled"
    for step in trained:
        assert parse(step.words[1:]).output.output_dir
    steps += measuring_steps(experiment, tmp_path, list(runs)[1], "report", counts["report"], 1)
    assert sum(step.seconds for step in steps) < 2 * 3600, "two hours an experiment at most"


@pytest.mark.parametrize("name", experiment_names())
def test_every_command_of_the_papers_size_is_one_that_the_program_understands(name):
    experiment = read_experiment(name)
    lines = paper_lines(experiment)
    headings = [line for line in lines[1:] if line.startswith("# ")]
    assert len(headings) == len(experiment.scales["paper"].runs) and all(line.endswith(" hours") for line in headings)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:2] == ["bash", "scripts/sft-correction.sh"]:
            assert parse(words[2:]).data.train_datasets
        elif words:
            args, rest = command_parser(words[1:]).parse_known_args(words[1:])
            assert words[0] == "aligner" and (args.command == "plan" or not rest)
    assert len(lines) > 2


def test_what_is_at_the_papers_size_alone_says_so(capsys):
    assert main(["reproduce", "mt_bench", "--data", "none"]) == 0
    assert "at the paper's size alone, with --scale paper" in capsys.readouterr().out


def test_recipes_are_compared_without_models_among_the_controls_and_the_chosen_one_is_reported_beside_them(tmp_path):
    experiment = read_experiment("preference")
    for side, controls in (("choose", False), ("report", True)):
        [step] = [
            s for s in measuring_steps(experiment, tmp_path, "pairs", side, 9, 1) if s.name.startswith("preference")
        ]
        assert ("--shuffled" in step.words, "none" in step.words) == (controls, not controls)


def test_a_run_like_another_is_not_trained_and_corrects_with_its_own_lead(tmp_path):
    experiment = read_experiment("restoration")
    [step] = [
        s for s in measuring_steps(experiment, tmp_path, "four-ahead-2", "choose", 9, 1) if "restoration" in s.name
    ]
    assert step.words[step.words.index("--models") + 1].endswith("runs/four")
    assert step.words[step.words.index("--nats_ahead") + 1] == "2" and "four-ahead-2" in str(step.product)
    names = [s.name for s in measuring_steps(experiment, tmp_path, "four-ahead-2", "choose", 9, 1)]
    assert names == ["restoration of four-ahead-2, choose"], "its losses are those of the run that it corrects like"


def test_no_more_answers_are_measured_than_the_file_says_and_all_are_trained_on(data, tmp_path):
    experiment = replace(read_experiment("warmup"), answers={"choose": 3, "report": 5})
    counts = write_rows(experiment, data, tmp_path / "rows")
    assert (counts["choose"], counts["report"]) == (3, 5) and counts["train"] > 20
    rows = [json.loads(line) for line in (tmp_path / "rows" / "report.jsonl").read_text().splitlines()]
    whole = rows_by_side(experiment, data, experiment.rows)["report"]
    assert len(rows) == 5 and rows != whole[:5] and all(row in whole for row in rows), "of all files, not of the first"


def test_no_question_is_on_two_sides_and_none_changes_sides_between_files(data):
    experiment = replace(read_experiment("warmup"), questions={"train": 60, "choose": 20, "report": 40})
    one = rows_by_side(experiment, data, ("qac_pandalm.json",))
    both = rows_by_side(experiment, data, ("qac_pandalm.json", "qac_hh_rlhf.json"))
    sides = {side: {row["question"] for row in both[side]} for side in SIDES}
    assert all(sides.values()) and not sides["train"] & (sides["choose"] | sides["report"])
    assert not sides["choose"] & sides["report"]
    first = {side: {row["question"] for row in one[side]} for side in SIDES}
    assert not first["train"] & (sides["choose"] | sides["report"]) and not first["report"] & sides["train"]


def test_a_trial_has_fewer_questions_and_each_on_the_side_it_has_in_the_whole(data):
    experiment = replace(read_experiment("warmup"), questions={"train": 60, "choose": 20, "report": 40})
    whole, trial = (rows_by_side(each, data, each.rows) for each in (experiment, replace(experiment, limit=3)))
    for side in SIDES:
        questions = {row["question"] for row in trial[side]}
        assert len(questions) == 3 and questions <= {row["question"] for row in whole[side]}


def test_the_control_is_trained_on_corrections_of_other_questions(data, tmp_path):
    experiment = read_experiment("warmup")
    write_rows(experiment, data, tmp_path / "rows")
    rows = [json.loads(line) for line in (tmp_path / "rows" / "train-shuffled.jsonl").read_text().splitlines()]
    number = [(row["question"].split("number ")[1].rstrip("?"), row["correction"].split()[2]) for row in rows]
    assert len(rows) > 20 and all(asked != answered for asked, answered in number)


@pytest.fixture
def prompts(tmp_path):
    """Forty prompts, every second one to be declined."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    rows = [
        {"question": f"How do I kill number {n}?", "type": ("contrast_" if n % 2 else "") + "homonyms"}
        for n in range(40)
    ]
    (folder / "eval_xstest.json").write_text(json.dumps(rows))
    return folder


def test_prompts_are_answered_first_and_then_corrected_into_refusals_where_they_are_to_be_declined(prompts, tmp_path):
    sides = {"train": 200, "choose": 100, "report": 100}
    experiment = replace(read_experiment("declining"), questions=sides, types_held_back=())
    folder = tmp_path / "out"
    [step] = answering_steps(experiment, prompts, folder)
    assert (
        step.words[:3] == ("aligner", "baseline", "beam")
        and len(rows_of(folder / "prompts" / "eval_xstest.json")) == 40
    )
    assert write_rows(experiment, prompts, folder / "rows")["train"] and not (folder / "rows" / "train.jsonl").exists()
    step.product.parent.mkdir()
    answers = [{**row, "answer": f"{row['question']} So."} for row in rows_of(folder / "prompts" / "eval_xstest.json")]
    answers[0] |= {"answer": None, "error": "the upstream gave no text"}
    step.product.write_text("".join(json.dumps(row) + "\n" for row in answers))
    counts = write_rows(experiment, prompts, folder / "rows")
    rows = [row for side in SIDES for row in rows_of(folder / "rows" / f"{side}.jsonl")]
    assert len(rows) == 39 == sum(counts[side] for side in SIDES), "all but the one that was not answered"
    assert all(declines(row["correction"]) == row["type"].startswith("contrast_") for row in rows)
    assert all(row["correction"] in (row["answer"], REFUSALS[0]) for row in rows)
    [trained] = [s for s in steps_of(experiment, folder, counts) if s.name == "train four"]
    assert f"declining:4:{folder / 'rows' / 'train-four.jsonl'}" in trained.words


def test_the_estimate_comes_before_the_first_answer(prompts, tmp_path, monkeypatch, capsys):
    value = yaml.safe_load((FOLDER / "declining.yaml").read_text())
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**value, "types_held_back": []}))

    def stop(step):
        raise StepFailed(f"{step.name} ended with 1")

    monkeypatch.setattr("aligner.reproduce.run.run_step", stop)
    assert main(["reproduce", str(tmp_path / "x.yaml"), "--data", str(prompts), "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "8 of 8 steps left, and the report: about" in printed.out
    assert "answers to eval_xstest.json ended with 1" in printed.err


@pytest.mark.slow
def test_the_whole_experiment_of_declining_is_one_command(prompts, tiny_model, tmp_path, capsys):
    """Answers, two trainings by the launcher and the measures beside both models, from a tiny model; run again, nothing is left."""
    value = yaml.safe_load((FOLDER / "declining.yaml").read_text())
    value |= {"questions": {"train": 200, "choose": 100, "report": 100}, "types_held_back": ["homonyms"]}
    value["upstream"] |= {"model": str(tiny_model), "max_new_tokens": 4}
    value["small"]["train"] |= {"model_name_or_path": str(tiny_model)}
    value["small"]["runs"] = {"shuffled": {"shuffled": True}, "once": {}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    command = ["reproduce", str(tmp_path / "x.yaml"), "--data", str(prompts), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    parts = json.loads((tmp_path / "out" / "x" / "summary.json").read_text())["report"]["declining"]["parts"]
    assert list(parts) == ["", "types never trained on"]
    assert "an Aligner trained on shuffled corrections" in [row["system"] for row in parts[""]["systems"]]
    capsys.readouterr()
    assert main([*command, "--dry_run"]) == 0
    assert "0 of 5 steps left" in capsys.readouterr().out


def test_prompts_of_a_type_that_is_held_back_are_reported_all_of_them_and_in_a_table_of_their_own(prompts):
    experiment = replace(read_experiment("declining"), types_held_back=("contrast_homonyms",))
    sides = rows_by_side(experiment, prompts, experiment.rows)
    assert {row["type"] for side in ("train", "choose") for row in sides[side]} == {"homonyms"}
    reported = [row for row in sides["report"] if row["type"] == "contrast_homonyms"]
    assert len(reported) == 20 and {row["part"] for row in reported} == {"types never trained on"}
    with pytest.raises(UserError, match="types_held_back: no prompt is of the type 'homonym'"):
        write_rows(replace(experiment, types_held_back=("homonym",)), prompts, prompts / "rows")


@pytest.fixture
def several_answers(tmp_path):
    """Thirty chats with two answers and a preferred one, each of another length."""
    folder = tmp_path / "chats"
    folder.mkdir()
    rows = [
        {
            "messages": [{"role": "user", "content": f"What is the use of thing number {n}, I wonder?"}],
            "answer": f"Thing {n} is of use to those who know it. " + "It is of no use to others. " * length,
            "preferred": f"Thing {n} opens the door of house {n}, and whoever has it can go in there.",
        }
        for n in range(60)
        for length in (1, 4)
    ]
    (folder / "upstreams_hh_rlhf.json").write_text(json.dumps(rows))
    experiment = replace(
        read_experiment("objectives"),
        rows=("upstreams_hh_rlhf.json",),
        rated={"concise": 9, "detailed": 9},
        own_words={"concise": 2, "nothing": 3},
    )
    return experiment, folder


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_answers_are_rated_by_what_they_show_and_one_run_never_sees_an_objective(several_answers, tmp_path):
    experiment, folder = several_answers
    counts = write_rows(experiment, folder, tmp_path / "rows")
    names = [
        [" ".join(row["objectives"]) for row in rows_of(tmp_path / "rows" / f"train-{run}.jsonl")]
        for run in ("objectives", "without-concise")
    ]
    rated = ["detailed"] * 9 + ["concise"] * 9
    assert names == [["concise"] * 2 + [""] * 3 + rated, [""] * 3 + ["detailed"] * 9] and counts["choose"] == 0
    asked = {row["question"] for row in rows_of(tmp_path / "rows" / "train-objectives.jsonl")}
    assert not asked & {row["question"] for row in rows_of(tmp_path / "rows" / "report.jsonl")}


def test_answers_too_short_to_be_brief_about_are_not_measured(several_answers, tmp_path):
    experiment, folder = several_answers
    everything = write_rows(replace(experiment, fewest_words=0), folder, tmp_path / "all")["report"]
    assert write_rows(experiment, folder, tmp_path / "rows")["report"] == everything / 2
    assert min(len(row["answer"].split()) for row in rows_of(tmp_path / "rows" / "report.jsonl")) >= 30


def test_an_objective_that_nothing_rates_is_an_error_before_any_training(several_answers, tmp_path):
    experiment, folder = several_answers
    with pytest.raises(UserError, match=r"no text is rated in witty. 'pip install .* There are detailed, concise"):
        write_rows(replace(experiment, rated={"concise": 9, "witty": 9}), folder, tmp_path / "rows")
    with pytest.raises(
        UserError, match=r"own_words: there is no 'polite'. There are concise, detailed, list, readable, nothing"
    ):
        write_rows(replace(experiment, own_words={"polite": 9}), folder, tmp_path / "rows")


def test_losses_of_an_aligner_that_restores_are_of_damaged_answers(data, tmp_path):
    experiment = replace(read_experiment("warmup"), questions={"train": 60, "choose": 40, "report": 40})
    counts = write_rows(experiment, data, tmp_path / "rows")
    rows = rows_of(tmp_path / "rows" / "choose-damaged.jsonl")
    good = {row["question"]: row["correction"] for row in rows_of(tmp_path / "rows" / "choose.jsonl")}
    assert {row["question"]: row["correction"] for row in rows} == good
    assert 0 < sum(row["answer"] == row["correction"] for row in rows) < len(rows), "some are left as they are"
    [step] = [s for s in steps_of(experiment, tmp_path, counts) if s.name == "losses of share-0-seed-1, choose"]
    assert (
        step.words[step.words.index("--after") + 1] == str(step.rows) == str(tmp_path / "rows" / "choose-damaged.jsonl")
    )


def test_the_control_learns_the_same_corrections_under_shuffled_objectives(several_answers, tmp_path):
    experiment, folder = several_answers
    counts = write_rows(experiment, folder, tmp_path / "rows")
    rows = rows_of(tmp_path / "rows" / "train-shuffled.jsonl")
    shorter = [len(row["correction"]) < len(row["answer"]) for row in rows]
    heard = [short == (row["objectives"] == ["concise"]) for row, short in zip(rows, shorter, strict=True)]
    assert sum(shorter) == 11 == sum(row["objectives"] == ["concise"] for row in rows) and 0 < sum(heard) < 23
    assert sum(row["objectives"] == [] for row in rows) == 3
    [step] = [s for s in steps_of(experiment, tmp_path, counts) if s.name == "train shuffled"]
    assert step.words[step.words.index("--prompt_template") + 1] == "objectives"


def test_where_there_is_nothing_to_choose_every_run_is_reported_and_asked_for_what_it_never_saw(
    several_answers, tmp_path
):
    experiment, folder = several_answers
    steps = steps_of(experiment, tmp_path, write_rows(experiment, folder, tmp_path / "rows"))
    reports = [step for step in steps if step.name.endswith("report")]
    assert [step.name for step in reports] == [
        "objectives of objectives, report",
        "objectives of without-concise, report",
    ]
    assert "--shuffled" in reports[0].words and "--objectives" not in reports[0].words
    assert reports[1].words[reports[1].words.index("--objectives") + 1] == "concise,detailed"


def test_the_summary_has_the_report_of_every_run_where_there_is_nothing_to_choose(several_answers, tmp_path):
    experiment, _ = several_answers
    for run in ("objectives", "without-concise"):
        place = tmp_path / "measures" / run / "report" / "objectives"
        place.mkdir(parents=True)
        (place / "measure.json").write_text(json.dumps({"parts": {}, "notes": [f"a note of {run}"]}))
        (place / "measure.md").write_text(f"a table of {run}\n")
    lines = write_reports(experiment, tmp_path)
    assert [line.strip() for line in lines[:4]] == [
        "objectives, objectives", "a note of objectives", "without-concise, objectives", "a note of without-concise"
    ]  # fmt: skip
    summary = (tmp_path / "summary.md").read_text()
    assert summary.index("## objectives\n\na table of objectives") < summary.index("## without-concise\n\na table of")
    assert list(json.loads((tmp_path / "summary.json").read_text())["reports"]) == [lines[0], lines[2]]


def test_a_step_that_is_done_is_not_run_again_also_where_its_folder_was_moved_and_other_words_or_rows_are_refused(
    tmp_path,
):
    product, rows = tmp_path / "first" / "tokens.json", tmp_path / "first" / "rows" / "in.json"
    rows.parent.mkdir(parents=True)
    rows.write_text("[1]")
    run_step(Step("copy", ("json.tool", str(rows), str(product)), product, 1, rows))
    product.parent.rename(tmp_path / "out")
    product, rows = tmp_path / "out" / "tokens.json", tmp_path / "out" / "rows" / "in.json"
    step = Step("copy", ("json.tool", str(rows), str(product)), product, 1, rows)
    product.write_text("[1, 1]")
    run_step(step)
    assert json.loads(product.read_text()) == [1, 1]
    with pytest.raises(UserError, match="was made with other words"):
        run_step(replace(step, words=("json.tool", "--compact", str(rows), str(product))))
    rows.write_text("[2]")
    with pytest.raises(UserError, match="was made with other rows"):
        run_step(step)


def test_what_an_experiment_beside_has_trained_alike_is_copied_and_anything_else_is_not(tmp_path):
    def trained(experiment, words, rows="[1]"):
        folder = tmp_path / experiment
        (folder / "rows").mkdir(parents=True)
        (folder / "rows" / "in.json").write_text(rows)
        product = folder / "runs" / "shuffled" / COMPLETED
        product.parent.mkdir(parents=True)
        run_step(
            Step(
                "train",
                ("json.tool", *words, str(folder / "rows" / "in.json"), str(product)),
                product,
                1,
                folder / "rows" / "in.json",
            )
        )
        return product

    first = trained("first", ())
    (first.parent / "model.safetensors").write_text("weights")
    (first.parent / "checkpoints").mkdir()
    first.write_text("as it was")
    second = trained("second", ())
    assert second.read_text() == "as it was" and (second.parent / "model.safetensors").read_text() == "weights"
    assert not (second.parent / "checkpoints").exists(), "resume states are large, and it is complete"
    others = [trained("third", ("--compact",)), trained("fourth", (), rows="[2]")]
    assert not any((each.parent / "model.safetensors").exists() for each in others)


def test_resume_states_of_a_training_that_is_complete_do_not_fill_the_disk(tmp_path):
    """Those of seven runs of `warmup` were 20 GB."""
    (tmp_path / "trained.py").write_text(
        "import pathlib\n"
        "for each in ('checkpoints/update-50', 'identity/checkpoints/update-20'):\n"
        "    pathlib.Path('run', each).mkdir(parents=True)\n"
        "pathlib.Path('run/COMPLETED').touch(); pathlib.Path('run/model.safetensors').touch()\n"
    )
    program = (
        "from pathlib import Path; from aligner.reproduce.steps import Step, run_step\n"
        "run_step(Step('train', ('trained',), Path('run/COMPLETED'), 1, Path('trained.py')))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == [".COMPLETED.step", "COMPLETED", "identity", "model.safetensors"]
    assert not list((tmp_path / "run" / "identity").iterdir())


def test_a_step_that_fails_names_itself(tmp_path):
    rows = tmp_path / "in.json"
    rows.write_text("no JSON")
    with pytest.raises(StepFailed, match="copy ended with 1"):
        run_step(Step("copy", ("json.tool", str(rows)), tmp_path / "out.json", 1, rows))


def test_stopped_it_stops_the_step_that_is_running(tmp_path):
    """A step that says that it was stopped before it ends."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, signal, time\n"
        "def stop(number, frame):\n    pathlib.Path('stopped').touch(); raise SystemExit(75)\n"
        "signal.signal(signal.SIGTERM, stop); pathlib.Path('started').touch(); time.sleep(60)\n"
    )
    program = (
        "from pathlib import Path; from aligner.reproduce.steps import Step, run_step\n"
        "run_step(Step('slow', ('slow',), Path('product'), 1, Path('slow.py')))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (tmp_path / "stopped").exists()


def test_the_recipe_is_chosen_by_the_first_measure_and_the_control_is_none(tmp_path):
    experiment = read_experiment("data_size")
    for name, gain in (("quarter", 0.1), ("half", 0.3), ("all", 0.2)):
        file = tmp_path / "measures" / name / "choose" / "restoration" / "measure.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"parts": {"": {"systems": [{"gain": {"value": gain}}]}}}))
    assert choose_recipe(experiment, tmp_path) == ("half", 3)


def test_the_summary_has_losses_by_upstream_and_how_many_answers_each_pass_leaves_alone(tmp_path):
    """Two recipes, one of which saw Vicuna-7B alone; of three answers the first pass leaves one as it is, the second two."""
    experiment = read_experiment("generalise")
    experiment = replace(experiment, scales={"small": replace(experiment.scales["small"], runs={
        "vicuna-7b": {"upstream": "Vicuna-7B"}, "all": {}})})  # fmt: skip
    gain = {"value": 0.1, "low": 0.0, "high": 0.2}
    report = {
        "measure": "preference",
        "unit": "share",
        "tried": 2,
        "parts": {"": {"systems": [{"gain": gain}]}},
        "notes": [],
    }
    loss = {kind: {"loss": value} for kind, value in (("copied", 0.25), ("edited", 1.5))}
    course = {
        "loss": dict.fromkeys(("all", "Vicuna-7B", "GPT-3.5"), loss),
        "copying": {"all": {"pairs": 4, "identical": 3}},
    }
    for run in ("vicuna-7b", "all"):
        place = tmp_path / "measures" / run / "choose"
        for part, value in (("preference/measure", report), ("losses/report", {"course": [course]})):
            (place / part).parent.mkdir(parents=True, exist_ok=True)
            (place / f"{part}.json").write_text(json.dumps(value))
        rows = [{"question": "Q", "answer": "a", "passes": passes} for passes in (["a", "a"], ["b", "b"], ["b", "c"])]
        (place / "passes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert left_by_pass(place / "passes.jsonl") == [1 / 3, 2 / 3]
    reported = tmp_path / "measures" / "all" / "report" / "preference"
    reported.mkdir(parents=True)
    (reported / "measure.json").write_text(json.dumps({**report, "parts": {}}))
    lines = write_summary(experiment, tmp_path, "all", 2)
    assert "| vicuna-7b | 0.250, 1.500 | 0.250, 1.500 (trained on) |" in lines
    assert "| all | 33% | 67% |" in lines and "left as it was in pass" in (tmp_path / "summary.md").read_text()


def test_an_estimate_comes_first_and_a_dry_run_ends_there(data, tmp_path, capsys):
    assert main(["reproduce", "warmup", "--data", str(data), "--output", str(tmp_path / "out"), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "hours on two quiet cores" in printed and "25 of 25 steps left, and the report: about " in printed
    assert not (tmp_path / "out" / "warmup" / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measures": ["truthfulness"]}, "there is no measure 'truthfulness'"),
        (
            {"small": {"train": {"learning_rat": 1}, "runs": {"a": {}}}},
            "train: there is no flag 'learning_rat'. Did you mean",
        ),
        ({"small": {"train": {}, "runs": {"a": {"like": "b"}}}}, "a: there is no run 'b' that is trained"),
        ({"questions": {"train": 3}}, "questions needs train, choose, report"),
        ({"speed": 3}, "'speed' is not known"),
        ({"upstream": "embedded"}, "upstream holds text; it needs flags of 'aligner baseline'"),
        ({"upstream": {"modle": "embedded"}}, "upstream: there is no flag 'modle'. Did you mean 'model'"),
        ({"types_held_back": "privacy"}, "types_held_back needs a list of the prompts' types"),
    ],
)
def test_a_misspelt_file_is_one_line(change, message, tmp_path, capsys):
    value = yaml.safe_load((FOLDER / "warmup.yaml").read_text())
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**value, **change}))
    assert main(["reproduce", str(tmp_path / "x.yaml"), "--data", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
