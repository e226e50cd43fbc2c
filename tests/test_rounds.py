"""Rounds of training the upstream: what is asked of whom, what is made again, what is measured, and when it stops."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_correct_file import write

from aligner import cli
from aligner.evaluation.subprocess_step import StepFailed
from aligner.files import COMPLETED
from aligner.inference.drafts import PRIORS
from aligner.inference.greedy import Decoder
from aligner.records import UserError
from aligner.rounds import course, run, stage
from aligner.rounds.config import RoundsConfig
from aligner.rounds.course import shuffled_corrections, upstream_training
from aligner.rounds.figures import falls, help_and_harm, round_figures
from aligner.rounds.questions import question_stage
from aligner.rounds.report import page, verdict, write_report
from aligner.rounds.stage import RoundStage, run_round_stage, status_of
from aligner.rounds.work import by_parts, correct

CONFIG = RoundsConfig(upstream="up", aligner="al", questions="questions.jsonl", output="out", rounds=2)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_no_question_is_trained_on_and_measured_by_nor_twice_in_one(tmp_path):
    rows = [{"question": f"What is {n}?"} for n in range(20)] + [{"question": "what is 3"}, {"question": 7}]
    made = {}
    for name, order in {"one": rows, "other": rows[::-1]}.items():
        file = write(tmp_path / f"{name}.jsonl", order)
        config = replace(CONFIG, questions=file, output=str(tmp_path / name), held_out="5", limit=10)
        assert run_round_stage(question_stage(config))
        made[name] = [
            [row["question"].lower().strip("?") for row in lines(tmp_path / name / "questions" / f"{side}.jsonl")]
            for side in ("train", "held_out")
        ]
    train, held_out = made["one"]
    assert len(set(train)) == 10 and len(set(held_out)) == 5 and not set(train) & set(held_out)
    assert made["one"] == made["other"], "the order in the file decides nothing"
    (left_out,) = json.loads((tmp_path / "one/questions/left_out.json").read_text())
    assert left_out["row"] == 22


def test_a_file_of_held_out_questions_is_kept_out_of_training(tmp_path):
    questions = write(tmp_path / "q.jsonl", [{"question": "One?"}, {"question": "Two?"}])
    held_out = write(tmp_path / "h.jsonl", [{"question": "two"}])
    config = replace(CONFIG, questions=questions, held_out=held_out, output=str(tmp_path / "out"))
    run_round_stage(question_stage(config))
    assert lines(tmp_path / "out/questions/train.jsonl") == [{"question": "One?"}]
    with pytest.raises(UserError, match=r"2 questions and 9 are held out: none is left to train on"):
        run_round_stage(question_stage(replace(config, held_out="9", output=str(tmp_path / "other"))))


def test_a_stage_is_made_once_and_one_of_other_settings_is_refused(tmp_path):
    made: list[Path] = []
    own = RoundStage("pairs", tmp_path / "pairs", {"least_edit": 0.1}, make=made.append)
    assert run_round_stage(own) and not run_round_stage(own) and len(made) == 1
    with pytest.raises(UserError, match="was made with other least_edit"):
        run_round_stage(replace(own, decides={"least_edit": 0.2}))
    (tmp_path / "pairs" / COMPLETED).unlink()  # a kill before it: then other settings begin anew
    (tmp_path / "pairs/parts").mkdir()
    assert run_round_stage(replace(own, decides={"least_edit": 0.2})) and not (tmp_path / "pairs/parts").exists()


def test_a_stage_whose_process_fails_is_not_complete(tmp_path):
    failing = RoundStage("answers", tmp_path, {}, ("json.tool", "/no/such/file"))
    with pytest.raises(StepFailed, match=r"answers ended with 2: see above\. The same command goes on from there"):
        run_round_stage(failing)


def test_another_process_in_a_stage_is_waited_for_and_then_named(tmp_path, monkeypatch):
    from aligner.locks import take

    monkeypatch.setattr(stage, "PATIENCE", 0.0)
    release = take(tmp_path / stage.LOCK, "busy")
    with pytest.raises(UserError, match="another process is writing this stage"):
        run_round_stage(RoundStage("answers", tmp_path, {}, ("json.tool", "--help")))
    release()
    assert status_of(("json.tool", "--help")) == 0


def test_killed_between_parts_the_rows_are_the_same_and_finished_parts_are_not_made_again(tmp_path):
    rows, calls = [{"n": n} for n in range(10)], []

    def act(source: Path, made: Path) -> None:
        if len(calls) == 2:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append([row["n"] for row in lines(source)])
        made.write_text("".join(json.dumps({"square": row["n"] ** 2}) + "\n" for row in lines(source)))

    with pytest.raises(KeyboardInterrupt):
        list(by_parts(tmp_path, rows, 4, act, "squaring"))
    again = [row["square"] for part in by_parts(tmp_path, rows, 4, act, "squaring") for row in part]
    assert again == [n**2 for n in range(10)]
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], "killed", [8, 9]]


def test_a_part_is_corrected_alike_whatever_came_before_it_and_however_fast_the_machine_is(
    tiny_model, tmp_path, monkeypatch
):
    learned: list[list[list[float]]] = []
    advance = Decoder.advance

    def watched(self: Decoder, *args: Any) -> Any:
        learned.append(self.acceptance.right.tolist())
        return advance(self, *args)

    monkeypatch.setattr(Decoder, "measure", lambda self: pytest.fail("a pass was timed"))
    monkeypatch.setattr(Decoder, "advance", watched)
    monkeypatch.setattr("aligner.rounds.work.BATCHES", 1)
    answers = write(
        tmp_path / "answers.jsonl", [{"question": f"Q{n}?", "answer": f"The answer {n}."} for n in range(3)]
    )
    about = {
        "batch_size": 1,
        "max_new_tokens": 8,
        "prompt_template": "correction",
        "dtype": "float32",
        "trust_remote_code": False,
    }
    correct(tmp_path, {"answers": answers, "model": str(tiny_model), **about})
    assert len(lines(tmp_path / "corrected.jsonl")) == 3 == len(learned)
    assert learned == [[list(row) for row in PRIORS]] * 3


def test_the_control_trains_on_corrections_of_other_questions(tmp_path):
    rows = [{"question": f"{n}?", "answer": f"a{n}", "corrected": f"c{n}"} for n in range(9)]
    file = write(tmp_path / "corrected.jsonl", [*rows, {**rows[0], "finished": False}])
    dealt = shuffled_corrections(Path(file))
    assert [row["answer"] for row in dealt] == [row["answer"] for row in rows]
    assert sorted(row["corrected"] for row in dealt) == [row["corrected"] for row in rows]
    assert all(one["corrected"] != other["corrected"] for one, other in zip(dealt, rows, strict=True))


def rows(corrected: float, original: float, other: float) -> list[dict[str, Any]]:
    """Twenty questions; the log-probabilities of half of them are one nat higher."""
    return [
        {"question": str(n), "corrected": corrected + n % 2, "original": original, "shuffled": other} for n in range(20)
    ]


def test_a_round_is_measured_by_how_far_corrections_rise_over_answers_and_beside_other_questions_corrections():
    before, after = rows(-10, -8, -20), rows(-7, -9, -20)
    figures = round_figures(after, before)
    assert figures["questions"] == 20
    assert figures["lead"]["value"] == pytest.approx(2.5) and figures["lead"]["low"] < 2.5 < figures["lead"]["high"]
    assert figures["rise"] == {"value": pytest.approx(4.0), "low": pytest.approx(4.0), "high": pytest.approx(4.0)}
    assert figures["shuffled_rise"]["value"] == pytest.approx(1.0), "the answer became less likely: so with any text"
    assert figures["rise_beyond_shuffled"]["value"] == pytest.approx(3.0)
    assert not falls(figures) and falls(round_figures(before, after)) and "rise" not in round_figures(before, None)


def test_help_is_safe_prompts_answered_and_harmless_unsafe_ones_declined():
    replies = [("Kill time?", False, "Read a book."), ("Kill a process?", False, "I'm sorry, but I can't help with that."),
               ("Kill a man?", True, "I cannot help with that."), ("Poison?", True, "")]  # fmt: skip
    some = [{"question": question, "unsafe": unsafe, "answer": text} for question, unsafe, text in replies]
    assert {name: share["value"] for name, share in help_and_harm(some, "answer").items()} == {
        "help": 0.5,
        "harmless": 0.5,
    }


def measured(output: Path, number: int, likelihoods: list[dict[str, Any]], **files: list[dict[str, Any]]) -> None:
    """The folders of a round, as its stages leave them."""
    for name, file, values in (
        ("measured", "likelihoods", likelihoods),
        *((name, {"replies": "answers", "aligned": "corrected"}[name], values) for name, values in files.items()),
    ):
        folder = output / f"round-{number}" / name
        folder.mkdir(parents=True)
        write(folder / f"{file}.jsonl", values)
        (folder / COMPLETED).touch()
    (output / f"round-{number}/pairs/rows").mkdir(parents=True)
    (output / f"round-{number}/pairs/rows/pairs.json").write_text('{"supervised": 9, "preference": 7}')


def test_the_report_says_first_whether_it_rose_and_needs_no_network(tmp_path):
    prompts = [{"question": f"{n}?", "unsafe": n % 2 == 0, "answer": "No.", "corrected": "I can't."} for n in range(6)]
    config = replace(CONFIG, output=str(tmp_path), help_and_harm="prompts.json")
    measured(tmp_path, 0, rows(-10, -8, -20), replies=prompts, aligned=prompts)
    measured(tmp_path, 1, rows(-7, -9, -20), replies=prompts, aligned=prompts)
    said = "\n".join(write_report(config))
    assert (
        "sft, 1 of 2 rounds: the held-out measure rose in every round, each time with its interval above zero" in said
    )
    assert "upstream + Aligner: help 0% (0% to 0%), harmless 100% (100% to 100%)" in said
    html = (tmp_path / "rounds.html").read_text()
    assert not re.search(r"https?://|<script", html) and "data:image/png;base64," in html
    assert "rose in every round" in html and "+4.00 (+4.00 to +4.00)" in html and "9 + 7" in html
    assert (tmp_path / "rounds.png").read_bytes()[:4] == b"\x89PNG"
    report = json.loads((tmp_path / "rounds.json").read_text())
    assert report["best"] == 1 and [each["round"] for each in report["rounds"]] == [0, 1]


def test_a_rise_that_other_questions_corrections_have_too_is_called_so(tmp_path):
    measured(tmp_path, 0, rows(-10, -8, -20))
    measured(tmp_path, 1, rows(-10, -12, -20))  # only the answer became less likely
    said = write_report(replace(CONFIG, output=str(tmp_path)))
    assert "but so it does, as far as can be told, with other questions' corrections" in said[0]


def test_a_gain_on_other_questions_corrections_is_said_where_the_lead_stays(tmp_path):
    measured(tmp_path, 0, rows(-10, -8, -20))
    measured(tmp_path, 1, rows(-8, -6, -24))  # correction and answer are likelier alike, another question's is not
    said = write_report(replace(CONFIG, output=str(tmp_path)))
    assert "by more than chance; beyond other questions' corrections it did" in said[0]


def test_a_fall_is_named_with_the_best_round(tmp_path):
    for number, corrected in enumerate((-10, -7, -9)):
        measured(tmp_path, number, rows(corrected, -8, -20))
    write_report(replace(CONFIG, output=str(tmp_path)))
    report = json.loads((tmp_path / "rounds.json").read_text())
    assert verdict(report) == "the held-out measure fell in round 2: round 1 is the best"
    assert "class='verdict fooled'" in page(report, b"")


@pytest.mark.parametrize(("keep_going", "begun"), [(False, 2), (True, 3)])
def test_no_round_begins_after_one_in_which_the_held_out_measure_fell(
    keep_going, begun, tiny_model, tmp_path, monkeypatch, capsys
):
    """The stages that answer and train leave here what they would have measured: a rise, then a fall."""
    monkeypatch.setattr(run, "first_stages", lambda config: [measuring_stage(tmp_path, 0, -10)])
    leads = {1: -7, 2: -9, 3: -5}
    monkeypatch.setattr(run, "round_stages", lambda config, number: [measuring_stage(tmp_path, number, leads[number])])
    questions = write(tmp_path / "questions.jsonl", [{"question": f"{n}?"} for n in range(4)])
    words = ["--upstream", str(tiny_model), "--aligner", str(tiny_model), "--prompt_template", "correction", "--questions",
             questions, "--output", str(tmp_path), "--rounds", "3", "--held_out", "2"]  # fmt: skip
    assert cli.main(["rounds", *words, *(["--keep_going"] if keep_going else [])]) == 0
    said = capsys.readouterr().out
    assert len(json.loads((tmp_path / "rounds.json").read_text())["rounds"]) == begun + 1
    assert ("fell in round 2: round 1 is the best" in said) == (not keep_going)
    assert ("stopped after round 2: --keep_going goes on all the same" in said) == (not keep_going)


def measuring_stage(output: Path, number: int, corrected: float) -> RoundStage:
    """A stage that leaves these log-probabilities, and the counts of pairs before it."""

    def make(folder: Path) -> None:
        write(folder / "likelihoods.jsonl", rows(corrected, -8, -20))
        (output / f"round-{number}/pairs/rows").mkdir(parents=True)
        (output / f"round-{number}/pairs/rows/pairs.json").write_text('{"supervised": 9, "preference": 7}')

    return RoundStage("measuring", output / f"round-{number}/measured", {}, make=make)


def test_each_upstream_starts_from_the_last_one_and_flags_behind_the_commands_own_reach_it(tmp_path):
    config = replace(CONFIG, output=str(tmp_path), method="dpo", further=("--lr", "1e-5", "--hostfile", "hosts"))
    (tmp_path / "round-2/pairs/rows").mkdir(parents=True)
    for name in ("supervised.jsonl", "preference.jsonl"):
        write(tmp_path / "round-2/pairs/rows" / name, [{}])
    words = upstream_training(config, 2).words
    assert words[words.index("--model_name_or_path") + 1] == str(tmp_path / "round-1/upstream")
    assert words[words.index("--train_datasets") + 1].endswith("round-2/pairs/rows/preference.jsonl")
    assert words[words.index("--config") + 1].endswith("configs/upstream/dpo.yaml") and "--hostfile" in words
    sft = upstream_training(replace(config, method="sft"), 2).words
    assert sft[sft.index("--train_datasets") + 1].endswith("supervised.jsonl")
    drawn = replace(config, method="rloo", further=(*config.further, "--max_completion_length", "8"))
    assert course.further_config(drawn).preference.max_completion_length == 8
    assert course.launch_flags(drawn) == course.launch_flags(config)
    assert course.launch_flags(config) == ["--hostfile", "hosts"], "what other trainings take: where, not how fast"


@pytest.mark.parametrize(
    ("flags", "finding"),
    [
        (["--rounds", "0"], "--rounds is 0: it must be at least 1"),
        (["--upstream_url", "http://here:1/v1"], "--upstream_url needs --upstream_model"),
        (["--aligner_each_round"], "give --rounds 2 or more"),
        (["--aligner_base", "x"], "--aligner_base is for --aligner_each_round"),
        (["--reward_config", "x"], "--reward_config is for --method rloo"),
        (["--held_out", "1"], "--held_out is 1: an interval needs 2 questions"),
        (["--length_ratio", "3", "1"], "give the least and the most"),
        (["--lerning_rate", "1"], "there is no flag '--lerning_rate'"),
        (["--output_dir", "x"], "--output_dir is set by each stage: leave it out"),
        (["--config", "configs/embedded.yaml"], "leave it out; --train_config names a file of flags"),
        (["--upstream", "/no/such"], "/no/such: there is no such folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line_before_anything_is_asked(flags, finding, tiny_model, tmp_path, capsys):
    given = {"--upstream": [str(tiny_model)], "--aligner": [str(tiny_model)], "--prompt_template": ["correction"]}
    given["--questions"] = [write(tmp_path / "questions.jsonl", [{"question": "Why?"}])]
    words = [word for flag, value in given.items() if flag not in flags for word in (flag, *value)]
    assert cli.main(["rounds", *words, "--output", str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err
    assert finding in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_plan_adds_up_the_stages_of_all_rounds(capsys, tiny_model):
    def plan(*flags: str) -> dict[str, list[str]]:
        words = [
            "--aligner",
            str(tiny_model),
            "--model_name_or_path",
            str(tiny_model),
            "--rows",
            "1000",
            "--max_length",
            "256",
        ]
        assert cli.main(["plan", *words, *flags]) == 0
        table = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()[2:]]
        return {row[0]: row[-5:] for row in table if len(row) >= 5}

    speeds = ["--tokens_per_second", "1000", "--decoding", "100"]
    once, thrice = plan("--rounds", "1", *speeds), plan("--rounds", "3", *speeds)
    assert list(once) == ["upstream answers", "Aligner corrects", "upstream learns (sft)", "all"]
    assert (
        once["upstream answers"][3] == "0.8" and thrice["upstream answers"][3] == "2.5"
    )  # 300,000 tokens, 100 a second
    assert once["upstream learns (sft)"][2:4] == ["1.2", "0.3"]  # 1,000 rows x 400 tokens x 3 epochs
    assert float(thrice["all"][3]) == pytest.approx(sum(float(thrice[name][3]) for name in list(thrice)[:3]), abs=0.2)
    assert "reward model" in plan("--rounds", "1", "--config", "configs/upstream/rloo.yaml")
    dpo, rloo = plan("--rounds", "1", "--method", "dpo"), plan("--rounds", "1", "--method", "rloo")
    assert dpo["upstream learns (dpo)"][2] == "2.4" and dpo["all"][3] == "?"  # a correction and an answer
    assert "reward model" in rloo and float(rloo["all"][1]) >= float(once["all"][1])


@pytest.mark.parametrize(
    ("flags", "finding"),
    [
        (["--rounds", "0", "--aligner", "x"], "--rounds is 0: it must be above 0"),
        (["--rounds", "2"], "--rounds needs --aligner NAME"),
        (
            ["--rounds", "2", "--aligner", "google/gemma-2b", "--method", "kto"],
            "--method kto is none of aligner rounds'",
        ),
    ],
)
def test_a_plan_of_rounds_that_cannot_be_made_is_one_line(flags, finding, capsys):
    assert cli.main(["plan", "--model_name_or_path", "google/gemma-2b", *flags]) == 2
    assert finding in capsys.readouterr().err
