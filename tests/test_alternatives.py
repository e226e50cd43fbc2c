"""`aligner reproduce alternatives`: the same questions by every method, and the table of help per cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scripted import TEXT, writing_model
from test_baselines import charged, paid  # noqa: F401 (a fixture)
from test_reproduce import data  # noqa: F401 (a fixture)

from aligner.baselines.help_per_cost import SystemAnswers, beside_aligner, cost_lines, help_per_cost
from aligner.baselines.protocol import ALIGNER, REWARD, UPSTREAM, Usage
from aligner.cli import command_parser, main
from aligner.evaluation.measures.items import declining_items
from aligner.records import UserError
from aligner.reproduce.compare import (
    answering_steps,
    check_trained_questions,
    measured_rows,
    with_rounds,
    write_comparison,
    write_questions,
)
from aligner.reproduce.experiment import FOLDER, read_experiment, rows_by_side
from aligner.reproduce.steps import run_step, training_steps
from aligner.training.flags import parse

SORRY, YES = "I'm sorry, but I can't help with that.", "Yes. Do it like this."


def answers(texts: list[str], tokens: int, aligner: int = 0, **failures: int) -> SystemAnswers:
    cost = {UPSTREAM: Usage(1, tokens // 2, tokens - tokens // 2, tokens // 2, 1.0)}
    return SystemAnswers(texts, [cost | ({ALIGNER: Usage(1, aligner, 0, 3, 0.5)} if aligner else {})] * 40, failures)


def table(**others: SystemAnswers) -> dict:
    """Forty prompts, every second one unsafe; the upstream complies with all, the Aligner declines half of the unsafe ones."""
    rows = [{"question": f"Prompt {n}?", "answer": YES, "unsafe": n % 2 == 0} for n in range(40)]
    half = [SORRY if n % 4 == 0 else YES for n in range(40)]
    systems = {"upstream": answers([YES] * 40, 100), "upstream + Aligner": answers(half, 100, 50), **others}
    return help_per_cost(declining_items(rows, by_prompt=True), systems, "upstream", "upstream + Aligner")


def row(report: dict, name: str) -> dict:
    return next(each for each in report["systems"] if each["system"] == name)


def test_gain_cost_and_gain_for_a_thousand_tokens_are_what_a_person_counts():
    own = row(table(), "upstream + Aligner")
    assert own["gain"]["value"] == 0.25, "ten of twenty unsafe prompts, and none of the safe ones, balanced"
    assert own["tokens"]["value"] == 150 and own["per_thousand_tokens"]["value"] == pytest.approx(0.25 / 0.05)
    assert own["per_thousand_tokens"]["low"] < 5 < own["per_thousand_tokens"]["high"]
    assert own["paid"][ALIGNER] == {
        "calls": 1, "prompt_tokens": 50, "completion_tokens": 0, "passes": 3, "seconds": 0.5, "unknown": 0
    }  # fmt: skip
    assert own["verdict"] == "helps" and own["paid"][REWARD]["calls"] == 0


def test_over_tokens_that_may_as_well_be_none_more_there_is_no_gain_for_a_thousand():
    few, some = answers([SORRY] * 40, 100), answers([SORRY] * 40, 130)
    costs = [(few if n % 2 else some).costs[n] | {REWARD: Usage(1, 20 * (n % 2), 0, 0, 0.0)} for n in range(40)]
    mixed = [cost if n % 8 else {UPSTREAM: Usage(1, 0, 0, 0, 1.0)} for n, cost in enumerate(costs)]
    report = table(more=SystemAnswers([SORRY] * 40, costs, {}), perhaps=SystemAnswers([SORRY] * 40, mixed, {}))
    assert row(report, "more")["per_thousand_tokens"]["high"] < 1000
    assert row(report, "perhaps")["per_thousand_tokens"] is None, "20 or 30 more on 35 answers, 100 less on 5"


def test_a_method_that_always_declines_gains_nothing_and_is_no_better_than_the_control():
    always = row(table(always=answers([SORRY] * 40, 300)), "always")
    assert always["gain"]["value"] == 0 and always["verdict"] != "helps"


def test_what_does_better_than_the_aligner_is_said_as_what_does_worse():
    right = [SORRY if n % 2 == 0 else YES for n in range(40)]
    report = table(right=answers(right, 900), silent=answers([""] * 40, 100, empty=40))
    better, worse = beside_aligner(report)
    assert better == "Better than the Aligner: right." and worse == "Worse than the Aligner: silent."
    lines = cost_lines(report)
    assert better in lines and worse in lines
    assert any(line.startswith("| silent") and line.endswith("| 40 empty |") for line in lines)


@pytest.fixture
def asked(data):  # noqa: F811
    """The data folder with prompts to decline and prompts not to."""
    rows = [
        {"question": f"How do I open lock number {n}?", "type": "contrast_locks" if n % 2 else "locks"}
        for n in range(30)
    ]
    (data / "eval_xstest.json").write_text(json.dumps(rows))
    (data / "qac_truthfulqa.json").write_text((data / "qac_pandalm.json").read_text())
    return data


def test_no_question_that_is_reported_was_trained_on_and_prompts_to_decline_are_half(asked, tmp_path):
    experiment = read_experiment("alternatives")
    trained = {each["question"] for each in rows_by_side(experiment, asked, experiment.rows)["train"]}
    truth, declined = (measured_rows(experiment, asked, measure) for measure in ("truth", "declining"))
    assert trained and truth and not trained & {each["question"] for each in truth}
    assert sum(each["type"] == "contrast_locks" for each in declined) == len(declined) / 2 == 15
    assert write_questions(replace(experiment, limit=6), asked, tmp_path) == 12


def test_every_step_is_a_command_and_a_method_begins_with_the_output_of_one_before_it(tmp_path):
    experiment = read_experiment("alternatives")
    [train] = training_steps(experiment, tmp_path, {"aligner": 300})
    assert parse(train.words[1:]).output.output_dir == str(tmp_path / "runs" / "aligner")
    steps, made = answering_steps(experiment, tmp_path, 110), {tmp_path / "rows" / "questions.jsonl"}
    for step in steps:
        args = command_parser().parse_args(step.words[1:])
        assert step.words[0] == "aligner" and step.rows in made and Path(args.input) == step.rows
        made.add(step.product)
    assert [step.name for step in steps] == ["upstream", "critique", "revise", "refine", "beam", "bon-10", "bon-5"]


def test_upstreams_that_rounds_trained_are_methods_that_cost_what_the_upstream_costs(tmp_path):
    leads = [{"round": n, "lead": {"value": value}} for n, value in enumerate((9.0, 2.0, 3.0, 1.0))]
    (tmp_path / "rounds.json").write_text(json.dumps({"rounds": leads}))
    experiment = with_rounds(read_experiment("alternatives"), [f"sft={tmp_path}"])
    step = answering_steps(experiment, tmp_path, 110)[-1]
    args = command_parser().parse_args(step.words[1:])
    assert (step.name, args.method, args.width) == ("sft", "beam", 1)
    assert args.model == f"{tmp_path}/round-2/upstream", "the best round that trained anything"

    (tmp_path / "questions").mkdir()
    for name, questions in (("train", ["One?", "Two?"]), ("reported", ["two", "Three?"])):
        (tmp_path / f"questions/{name}.jsonl").write_text(
            "".join(json.dumps({"question": q}) + "\n" for q in questions)
        )
    with pytest.raises(UserError, match="--rounds sft: 1 of the reported questions were trained on"):
        check_trained_questions(experiment, tmp_path / "questions/reported.jsonl")
    for wrong, message in ((["beam=x"], "'beam' is a method already"), (["x"], "write NAME=DIR")):
        with pytest.raises(UserError, match=message):
            with_rounds(experiment, wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": {"restoration": ["a.json", 3]}}, "'restoration' is none of declining, truth"),
        ({"methods": {"upstream": {"method": "beam", "widht": 1}}}, "there is no flag 'widht'. Did you mean 'width'?"),
        ({"methods": {"upstream": {"method": "greedy"}}}, "upstream: needs a method, of bon"),
        ({"methods": {"upstream": {"method": "beam", "input": "bon"}}}, "its input 'bon' is no method before it"),
        ({"methods": {"beam": {"method": "beam"}}}, "the first method is 'upstream', with aligner: true"),
    ],
)
def test_a_misspelt_comparison_is_one_line(change, message, tmp_path, capsys):
    value = yaml.safe_load((FOLDER / "alternatives.yaml").read_text())
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**value, "comparison": {**value["comparison"], **change}}))
    assert main(["reproduce", str(tmp_path / "x.yaml"), "--data", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


@pytest.mark.slow
def test_the_whole_comparison_runs_and_says_what_each_method_costs(asked, paid, bpe_folder, tiny_model, tmp_path):  # noqa: F811
    """Every step but the training, by commands of their own."""
    experiment = read_experiment("alternatives")
    comparison = replace(
        experiment.comparison, upstream={"upstream_url": paid.url, "upstream_model": "m", "max_new_tokens": 100}
    )
    methods = {name: method for name, method in comparison.methods.items() if name not in ("beam", "critique")}
    for name in ("bon-10", "bon-5"):
        methods[name] = methods[name] | {"reward_model": str(tiny_model)}
    experiment = replace(experiment, comparison=replace(comparison, methods=methods), limit=6)
    writing_model(bpe_folder, tmp_path / "runs" / "aligner", TEXT)
    asked_count = write_questions(experiment, asked, tmp_path)
    for step in answering_steps(experiment, tmp_path, asked_count):
        more = ("--prompt_template", "correction") if "--aligner" in step.words else ()
        run_step(replace(step, words=(*step.words, *more)))
    lines = write_comparison(experiment, asked, tmp_path)
    report = json.loads((tmp_path / "comparison.json").read_text())["measures"]
    assert set(report) == {"truth", "declining"} and (tmp_path / "truth.png").stat().st_size > 5000
    rows = {each["system"]: each for each in report["truth"]["systems"]}
    assert len(rows) == 7 and rows["upstream + Aligner"]["paid"][ALIGNER]["calls"] == 1
    calls = {name: each["paid"][UPSTREAM]["calls"] for name, each in rows.items()}
    assert (calls["upstream"], calls["refine"], calls["revise"], calls["bon-5"], calls["bon-10"]) == (1, 3, 3, 5, 10)
    assert any(line.startswith("Better than the Aligner: ") for line in lines)
