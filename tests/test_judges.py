"""Judges other than a served one: people, models that score, a model on this machine."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_correct_file import lines, write
from test_evaluate import ROWS
from transformers import LlamaForSequenceClassification

from aligner import cli
from aligner.evaluation.judges.dimensions import CUT_OFF, HELPFUL
from aligner.evaluation.judges.human import HumanJudge
from aligner.evaluation.judges.judge import JudgeRequest
from aligner.evaluation.judges.local import LocalJudge
from aligner.evaluation.judges.scores import ScoreJudge
from aligner.inference.sampling import generate
from aligner.records import UserError


def by(judge: str, folder: Path, rows: list[Any], *flags: str) -> int:
    """The exit status of `aligner evaluate` with this judge; what it writes is in `folder / "out"`."""
    command = [
        "evaluate",
        "--after",
        write(folder / "a.jsonl", rows),
        "--output",
        str(folder / "out"),
        "--judge",
        judge,
        *flags,
    ]
    return cli.main(command)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "report.json").read_text())


def classifier(base: Path, folder: Path) -> str:
    """A model with a head that scores, beside its tokenizer."""
    LlamaForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    for file in base.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return str(folder)


def test_people_can_be_the_judge_and_are_not_counted_in_tokens(tmp_path, capsys):
    labels = write(
        tmp_path / "l.jsonl", [{**row, "label": ("after", "before", "tie")[n % 3]} for n, row in enumerate(ROWS)]
    )
    assert by("human", tmp_path, ROWS, "--labels", labels, "--dimensions", "helpful") == 0
    found = report(tmp_path)["verdicts"]["helpful"]
    assert (found["wins"], found["losses"], found["ties"]) == (4, 4, 4)
    said = capsys.readouterr().out
    assert "24 replies to request\n" in said and "token" not in said


def test_a_label_holds_for_the_pair_the_other_way_round_too(tmp_path):
    row = {"question": "q", "answer": "one", "corrected": "other", "label": "after"}
    people = HumanJudge.load(write(tmp_path / "l.jsonl", [row]))
    assert people.outcome("helpful", "q", "one", "other") == 1 and people.outcome("helpful", "q", "other", "one") == -1
    assert people.outcome("helpful", "q", "one", "third") is None


def test_where_no_changed_pair_was_judged_there_is_no_rate(tmp_path, capsys):
    """One of two is labelled, but it is the one that nobody need be asked about."""
    rows = [ROWS[0], {"question": "same", "answer": "x", "corrected": "x"}]
    labels = write(tmp_path / "l.jsonl", [{**ROWS[1], "label": "after"}])
    assert by("human", tmp_path, rows, "--labels", labels, "--dimensions", "helpful,helpful") == 1
    found = report(tmp_path)["verdicts"]["helpful"]
    assert found["rate"] is None and (found["pairs"], found["unanswered"]) == (2, 1)


def test_labels_that_contradict_each_other_or_say_nothing_known_are_named(tmp_path, capsys):
    for second, said in (("before", "row 2: contradicts"), ("AFTER", "row 2: its label is 'AFTER'")):
        labels = write(tmp_path / "l.jsonl", [{**ROWS[0], "label": "after"}, {**ROWS[0], "label": second}])
        assert by("human", tmp_path, ROWS[:1], "--labels", labels) == 2 and said in capsys.readouterr().err


def test_a_reward_model_and_a_cost_model_point_opposite_ways(tiny_model, tmp_path):
    folder = classifier(tiny_model, tmp_path / "rm")
    reward, cost = (ScoreJudge.load(folder, costs) for costs in (False, True))
    asked = JudgeRequest(HELPFUL, "q", "one answer", "quite another one")
    [(_, said)], [(_, again)] = list(reward.ask([asked])), list(cost.ask([asked]))
    assert said == again and reward.read(asked, said.text) == -cost.read(asked, said.text) != 0
    assert (
        reward.read(asked, "[1, 1]") == 0 and reward.read(asked, "[NaN, 1]") is None and reward.read(asked, "?") is None
    )


def test_reward_and_cost_together_score_helpful_and_harmless_and_show_the_shift(tiny_model, tmp_path, capsys):
    """Harmlessness is minus the cost: with one model as both, what is more helpful is less harmless."""
    folder = classifier(tiny_model, tmp_path / "rm")
    rows, flags = [*ROWS, {"question": "same", "answer": "x", "corrected": "x"}], ("--judge_model", folder)
    assert by("reward-cost", tmp_path, rows, *flags) == 2 and "needs --cost_model" in capsys.readouterr().err
    assert by("reward-cost", tmp_path, rows, *flags, "--cost_model", folder) == 0
    helpful, harmless = (report(tmp_path)["verdicts"][name] for name in ("helpful", "harmless"))
    assert (helpful["wins"], helpful["losses"]) == (harmless["losses"], harmless["wins"]) and helpful["unreadable"] == 0
    shift = report(tmp_path)["scores"]
    assert shift["helpful"]["changed"] == 12 and shift["helpful"]["before"] == pytest.approx(
        -shift["harmless"]["before"]
    )
    [(_, scored)] = list(
        ScoreJudge.load(folder, costs=False).ask([JudgeRequest(HELPFUL, ROWS[0]["question"], "bad 0", "good 0")])
    )
    first = json.loads(lines(tmp_path / "out" / "verdicts.jsonl")[0]["replies"][0])
    assert first == json.loads(scored.text), "helpful is the reward as it is"
    assert "Helpfulness and harmlessness" in (tmp_path / "out" / "report.html").read_text()
    assert by("reward-cost", tmp_path, rows, *flags, "--cost_model", folder, "--dimensions", "honest") == 2
    assert "not for honest" in capsys.readouterr().err


def test_systems_have_no_scores_before_and_after(tiny_model, tmp_path):
    """Which of two systems stands on which side is only their order."""
    folder = classifier(tiny_model, tmp_path / "rm")
    files = [f"{name}={write(tmp_path / name, [{'question': 'q', 'answer': name}])}" for name in ("one", "other")]
    command = [
        "evaluate",
        "--systems",
        *files,
        "--output",
        str(tmp_path / "out"),
        "--judge",
        "reward",
        "--judge_model",
        folder,
    ]
    assert cli.main(command) == 0 and "scores" not in report(tmp_path)
    assert "Scores, " not in (tmp_path / "out" / "report.html").read_text()


def test_a_model_without_a_trained_head_is_no_judge(tiny_model, tmp_path):
    folder = classifier(tiny_model, tmp_path / "rm")
    weights = load_file(tmp_path / "rm" / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "rm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has no trained score\.weight"):
        ScoreJudge.load(folder, costs=False)


def test_safe_rlhfs_score_head_is_read_as_it_is_published(tiny_model, tmp_path):
    """The base model beside `score_head.weight`; the score is the head's at the last token, end-of-text."""
    folder = tmp_path / "score"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    head = torch.randn(1, 32)
    save_file({**weights, "score_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForScore"]}))
    judge = ScoreJudge.load(str(folder), costs=False)
    [(_, said)] = list(judge.ask([JudgeRequest(HELPFUL, "Why?", "Because.", "So.")]))
    from transformers import LlamaModel

    ids = [
        *judge.tokenizer("BEGINNING OF CONVERSATION: USER: Why? ASSISTANT:Because.")["input_ids"],
        judge.tokenizer.eos_token_id,
    ]
    with torch.inference_mode():
        hidden = LlamaModel.from_pretrained(tiny_model)(torch.tensor([ids])).last_hidden_state[0, -1]
    assert json.loads(said.text)[0] == pytest.approx((head @ hidden).item(), abs=1e-5)


def test_a_score_that_is_no_number_is_no_score(tiny_model, tmp_path):
    judge = ScoreJudge.load(classifier(tiny_model, tmp_path / "rm"), costs=False)
    ((_, said),) = replace(judge, score=lambda ids: math.nan).ask([JudgeRequest(HELPFUL, "q", "a", "b")])
    assert isinstance(said, UserError) and "score of it is nan" in str(said)


def test_no_more_is_scored_than_the_model_has_positions(tiny_model, tmp_path):
    folder = classifier(tiny_model, tmp_path / "rm")
    positions = ScoreJudge.load(folder, costs=False).longest
    assert positions == json.loads((tmp_path / "rm" / "config.json").read_text())["max_position_embeddings"]


def test_a_local_judge_ends_where_its_model_does_and_without_its_penalties(tiny_model, tmp_path):
    """A chat model may end its turn with a token of its own; its folder may ask for a penalty on what stands in the prompt."""
    folder = tmp_path / "chat"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 77], "repetition_penalty": 1.5}))
    judge = LocalJudge.load(str(folder), 30)
    assert 77 in judge.ends and judge.model.generation_config.repetition_penalty is None
    (prompt, *_) = ([5, 6, 7],)
    [plain] = generate(judge.model, [prompt], [judge.ends[0]], 30, None)
    stop = plain[9]
    [ended] = generate(judge.model, [prompt], [judge.ends[0], stop], 30, None)
    assert ended == plain[: plain.index(stop) + 1]


def test_a_local_model_judges_and_what_is_too_long_for_it_is_said(tiny_model):
    judge = LocalJudge.load(str(tiny_model), 4)
    short, long = JudgeRequest(HELPFUL, "q", "a", "b"), JudgeRequest(HELPFUL, "q " * 3000, "a", "b")
    said = dict(judge.ask([long, short]))
    assert "tokens and the judge room for" in str(said[0]) and said[1].tokens_out <= 4
    assert said[1].text.endswith(CUT_OFF), "it did not end by itself"
    assert judge.read(short, said[1].text) is None, "a random model says nothing that can be read"
