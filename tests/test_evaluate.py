"""`aligner evaluate`: from files to a report, with judges that behave and judges that do not."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_correct_file import lines, write
from test_servers import Told
from transformers import LlamaForSequenceClassification

from aligner import cli
from aligner.evaluation.dimensions import HELPFUL
from aligner.evaluation.judges.judge import Asked
from aligner.evaluation.judges.local import LocalJudge
from aligner.evaluation.judges.scores import ScoreJudge
from aligner.quality.edits import words
from aligner.records import UserError

ALPACA = ROOT.parent / "shared/data/qac_aligner2b_alpacaeval.json"
PANDALM = ROOT.parent / "shared/data/qac_pandalm.json"
ROWS = [{"question": f"q{n}", "answer": f"bad {n}", "corrected": f"good {n}"} for n in range(12)]


def responses(prompt: str) -> tuple[str, str]:
    found = re.search(r"\[Response A\]\n(.*?)\n\n\[End.*\[Response B\]\n(.*?)\n\n\[End", prompt, re.DOTALL)
    assert found
    return found[1], found[2]


def fair(prompt: str) -> str:
    """Prefers what is good, and names the worse where that is asked."""
    a, b = responses(prompt)
    better = "A" if "good" in a and "good" not in b else "B" if "good" in b and "good" not in a else "Equal"
    worse = {"A": "B", "B": "A"}.get(better, "Equal")
    return f"I think so.\n[[{worse if 'MORE harmful' in prompt else better}]]"


def evaluate(told: Told, folder: Path, rows: list[Any], *more: object) -> tuple[int, dict[str, Any]]:
    after = write(folder / "after.jsonl", rows)
    status = cli.main(["evaluate", "--after", after, "--output", str(folder / "out"), "--judge", "served", "--judge_url", told.url,
                       "--judge_model", "m", *map(str, more)])  # fmt: skip
    assert status < 2
    return status, json.loads((folder / "out" / "report.json").read_text())["verdicts"]


def test_a_fair_judge_finds_the_corrections_better_in_both_directions(told, tmp_path, capsys):
    told.rule = fair
    status, found = evaluate(told, tmp_path, [*ROWS, {"question": "same", "answer": "x", "corrected": "x"}])
    assert status == 0 and len(told.asked) == 12 * 2 * 2, "two orders, two dimensions; what is the same is not asked"
    for name in ("helpful", "harmless"):
        assert (found[name]["wins"], found[name]["ties"], found[name]["losses"]) == (12, 1, 0)
        assert found[name]["rate"] == pytest.approx(12 / 13) and found[name]["changed"]["rate"] == 1
        assert found[name]["order_bias"] == 0
    said = capsys.readouterr().out
    assert "48 replies to ask for" in said and "+92.3 %" in said
    assert len(lines(tmp_path / "out" / "verdicts.jsonl")) == 26


def test_nothing_is_asked_twice(told, tmp_path, capsys):
    told.rule = fair
    evaluate(told, tmp_path, ROWS[:6])
    evaluate(told, tmp_path, ROWS)
    assert len(told.asked) == 48, "six were known"
    evaluate(told, tmp_path, ROWS)
    assert len(told.asked) == 48 and "every reply is known" in capsys.readouterr().out
    file = tmp_path / "out" / "replies.jsonl"
    kept = file.read_text().splitlines()
    file.write_text("\n".join([kept[0], kept[1].replace('"reply": "', '"reply": 7, "x": "'), *kept[2:], ""]))
    with pytest.raises(AssertionError):
        evaluate(told, tmp_path, ROWS)
    assert "replies.jsonl line 2: is damaged" in capsys.readouterr().err


def test_a_judge_that_always_takes_the_first_makes_ties_and_shows_its_bias(told, tmp_path, capsys):
    told.rule = lambda prompt: "[[A]]"
    _, found = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert (found["helpful"]["ties"], found["helpful"]["order_bias"], found["helpful"]["changed_minds"]) == (12, 1, 1)
    assert "mind changed with the order in 100.0%" in capsys.readouterr().out


def test_garbage_is_unreadable_and_never_a_tie(told, tmp_path):
    told.rule = lambda prompt: "As a language model ..." if "q3" in prompt else fair(prompt)
    status, found = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert (found["helpful"]["unreadable"], found["helpful"]["wins"], found["helpful"]["ties"], status) == (1, 11, 0, 0)


def test_a_judge_of_which_nothing_can_be_read_is_said_and_no_success(told, tmp_path, capsys):
    told.rule = lambda prompt: "As a language model ..."
    status, _ = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert status == 1 and "no verdict could be read of helpful" in capsys.readouterr().out


def test_labelled_pairs_that_were_not_read_are_counted_beside_the_agreement(told, tmp_path, capsys):
    told.rule = lambda prompt: "Hm." if "q3" in prompt or "q4" in prompt else fair(prompt)
    labels = write(tmp_path / "l.jsonl", [{**row, "label": "after"} for row in ROWS])
    _, found = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful", "--labels", labels)
    agreement = found["helpful"]["agreement"]
    assert (agreement["labelled"], agreement["rows"], agreement["share"]) == (12, 10, 1)
    assert (
        "in 100.0% of 10 pairs" in (said := capsys.readouterr().out) and "(2 more were labelled, and not read)" in said
    )
    told.rule = lambda prompt: "Hm."
    _, found = evaluate(told, tmp_path, ROWS, "--dimensions", "honest", "--labels", labels)
    assert "of 12 labelled pairs none was judged and read" in capsys.readouterr().out


def test_how_long_it_takes_is_said_after_the_first_replies(told, tmp_path, capsys):
    told.rule = fair
    evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert "for the other" not in capsys.readouterr().out, "24 replies are soon there"
    evaluate(told, tmp_path, ROWS, "--dimensions", "harmless,honest")
    assert "about 0 s for the other 32, by the first 16" in capsys.readouterr().out


def test_replies_that_do_not_come_are_unanswered_and_asked_again_next_time(told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aligner.inference.servers.RETRIES", 0)
    told.rule = fair
    rows = [*ROWS[:3], {"question": "this breaks it", "answer": "bad", "corrected": "good"}]
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    assert (status, found["helpful"]["unanswered"], found["helpful"]["wins"]) == (1, 1, 3)
    assert "1 unanswered, the first: " in capsys.readouterr().out
    assert "fails on it" in lines(tmp_path / "out" / "verdicts.jsonl")[3]["error"]
    asked = len(told.asked)
    evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    assert len(told.asked) == asked + 2


def test_a_judge_that_hangs_on_a_pair_leaves_it_unanswered(told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aligner.inference.servers.RETRIES", 0)
    told.rule, told.delay = fair, 5
    rows = [*ROWS[:3], {"question": "slow", "answer": "bad", "corrected": "good"}]
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful", "--timeout", 1)
    assert (status, found["helpful"]["unanswered"], found["helpful"]["wins"]) == (1, 1, 3)
    assert "does not answer it within 1 seconds" in capsys.readouterr().out
    assert "does not answer it within 1 seconds" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("odd", ["list", "usage", "choices", "html", "forbidden", "empty"])
def test_one_odd_reply_is_that_pairs_alone(odd, told, tmp_path, capsys):
    told.rule, told.odd = fair, odd
    rows = [*ROWS, {"question": "an odd one", "answer": "bad", "corrected": "good"}]
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    helpful = found["helpful"]
    assert (helpful["wins"], helpful["unanswered"]) == ((13, 0) if odd == "usage" else (12, 1))
    assert status == (0 if odd == "usage" else 1)
    told.odd = ""
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    assert (status, found["helpful"]["wins"]) == (0, 13), "what was odd was not kept"


def test_where_no_changed_pair_was_judged_there_is_no_rate(tmp_path, capsys):
    """One of two is labelled, but it is the one that nobody need be asked about."""
    rows = [ROWS[0], {"question": "same", "answer": "x", "corrected": "x"}]
    after, labels = write(tmp_path / "a.jsonl", rows), write(tmp_path / "l.jsonl", [{**ROWS[1], "label": "after"}])
    command = ["evaluate", "--after", after, "--output", str(tmp_path / "out"), "--judge", "human", "--labels", labels]
    assert cli.main([*command, "--dimensions", "helpful,helpful"]) == 1
    found = json.loads((tmp_path / "out" / "report.json").read_text())["verdicts"]["helpful"]
    assert found["rate"] is None and (found["pairs"], found["unanswered"]) == (2, 1)


def test_a_mind_that_changes_to_equal_is_a_changed_mind(told, tmp_path):
    told.rule = lambda prompt: "[[A]]" if responses(prompt)[0].startswith("good") else "[[Equal]]"
    _, found = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert (found["helpful"]["changed_minds"], found["helpful"]["ties"]) == (1, 12)


def test_an_upstream_called_all_is_not_taken_for_all(tmp_path):
    rows = [{**row, "upstream": "all" if n else "other"} for n, row in enumerate(ROWS)]
    cli.main(["evaluate", "--after", write(tmp_path / "a.jsonl", rows), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "report.json").read_text())["copying"]
    assert {name: each["pairs"] for name, each in found.items()} == {"all": 12, "other": 1, "'all'": 11}


def test_what_it_costs_at_most_is_said_before(told, tmp_path, capsys):
    """24 replies of at most 100 tokens at 1,000,000 a million are 2,400; what goes in is free here."""
    told.rule = fair
    evaluate(told, tmp_path, ROWS, "--dimensions", "helpful", "--price", 0, 1_000_000, "--max_tokens", 100)
    assert "at most about 2,400.00" in capsys.readouterr().out


def test_a_model_without_a_trained_head_is_no_judge(tiny_model, tmp_path):
    folder = classifier(tiny_model, tmp_path / "rm")
    weights = load_file(tmp_path / "rm" / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "rm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has no trained score\.weight"):
        ScoreJudge.load(folder, costs=False)


def test_a_busy_judge_is_waited_for(told, tmp_path):
    told.rule, told.failures = fair, [(429, {"Retry-After": "1"})] * 3
    status, found = evaluate(told, tmp_path, ROWS[:4], "--dimensions", "helpful")
    assert status == 0 and found["helpful"]["wins"] == 4


def test_a_judge_that_points_the_wrong_way_disagrees_with_people(told, tmp_path, capsys):
    """It names the better one as more harmful: the labels show it."""
    told.rule = lambda prompt: fair(prompt.replace("MORE harmful", "better"))
    labels = [{**row, "label": "after" if n % 3 else "before"} for n, row in enumerate(ROWS)]
    _, found = evaluate(
        told, tmp_path, ROWS, "--dimensions", "harmless", "--labels", write(tmp_path / "l.jsonl", labels)
    )
    assert found["harmless"]["agreement"]["share"] == pytest.approx(4 / 12) and found["harmless"]["losses"] == 12
    assert "agrees with people in 33.3%" in capsys.readouterr().out


def test_people_can_be_the_judge(tmp_path):
    labels = write(
        tmp_path / "l.jsonl", [{**row, "label": ("after", "before", "tie")[n % 3]} for n, row in enumerate(ROWS)]
    )
    after = write(tmp_path / "a.jsonl", ROWS)
    command = ["evaluate", "--after", after, "--output", str(tmp_path / "out"), "--judge", "human", "--labels", labels]
    assert cli.main([*command, "--dimensions", "helpful"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())["verdicts"]["helpful"]
    assert (found["wins"], found["losses"], found["ties"]) == (4, 4, 4)


def test_labels_that_contradict_each_other_or_say_nothing_known_are_named(tmp_path, capsys):
    after = write(tmp_path / "a.jsonl", ROWS[:1])
    for second, said in (("before", "row 2: contradicts"), ("AFTER", "row 2: its label is 'AFTER'")):
        labels = write(tmp_path / "l.jsonl", [{**ROWS[0], "label": "after"}, {**ROWS[0], "label": second}])
        command = [
            "evaluate",
            "--after",
            after,
            "--output",
            str(tmp_path / "out"),
            "--judge",
            "human",
            "--labels",
            labels,
        ]
        assert cli.main(command) == 2 and said in capsys.readouterr().err


def classifier(base: Path, folder: Path) -> str:
    """A model with a head that scores, beside its tokenizer."""
    LlamaForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    for file in base.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return str(folder)


def test_a_reward_model_and_a_cost_model_point_opposite_ways(tiny_model, tmp_path):
    folder = classifier(tiny_model, tmp_path / "rm")
    reward, cost = (ScoreJudge.load(folder, costs) for costs in (False, True))
    asked = Asked(HELPFUL, "q", "one answer", "quite another one")
    [(_, said)], [(_, again)] = list(reward.ask([asked])), list(cost.ask([asked]))
    assert said == again and reward.read(asked, said.text) == -cost.read(asked, said.text) != 0
    assert (
        reward.read(asked, "[1, 1]") == 0 and reward.read(asked, "[NaN, 1]") is None and reward.read(asked, "?") is None
    )


def test_reward_and_cost_together_score_helpful_and_harmless_and_show_the_shift(tiny_model, tmp_path, capsys):
    """Harmlessness is minus the cost: with one model as both, what is more helpful is less harmless."""
    folder = classifier(tiny_model, tmp_path / "rm")
    after = write(tmp_path / "a.jsonl", [*ROWS, {"question": "same", "answer": "x", "corrected": "x"}])
    command = [
        "evaluate",
        "--after",
        after,
        "--output",
        str(tmp_path / "out"),
        "--judge",
        "reward-cost",
        "--judge_model",
        folder,
    ]
    assert cli.main(command) == 2 and "needs --cost_model" in capsys.readouterr().err
    assert cli.main([*command, "--cost_model", folder]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    helpful, harmless = report["verdicts"]["helpful"], report["verdicts"]["harmless"]
    assert (helpful["wins"], helpful["losses"]) == (harmless["losses"], harmless["wins"]) and helpful["unreadable"] == 0
    shift = report["scores"]
    assert shift["helpful"]["changed"] == 12 and shift["helpful"]["before"] == pytest.approx(
        -shift["harmless"]["before"]
    )
    [(_, scored)] = list(
        ScoreJudge.load(folder, costs=False).ask([Asked(HELPFUL, ROWS[0]["question"], "bad 0", "good 0")])
    )
    first = json.loads(lines(tmp_path / "out" / "verdicts.jsonl")[0]["replies"][0])
    assert first == json.loads(scored.text), "helpful is the reward as it is"
    assert "Helpfulness and harmlessness" in (tmp_path / "out" / "report.html").read_text()
    assert cli.main([*command, "--cost_model", folder, "--dimensions", "honest"]) == 2
    assert "not for honest" in capsys.readouterr().err


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
    [(_, said)] = list(judge.ask([Asked(HELPFUL, "Why?", "Because.", "So.")]))
    from transformers import LlamaModel

    ids = [
        *judge.tokenizer("BEGINNING OF CONVERSATION: USER: Why? ASSISTANT:Because.")["input_ids"],
        judge.tokenizer.eos_token_id,
    ]
    with torch.inference_mode():
        hidden = LlamaModel.from_pretrained(tiny_model)(torch.tensor([ids])).last_hidden_state[0, -1]
    assert json.loads(said.text)[0] == pytest.approx((head @ hidden).item(), abs=1e-5)


def test_a_local_model_judges_and_what_is_too_long_for_it_is_said(tiny_model):
    judge = LocalJudge.load(str(tiny_model), 4)
    short, long = Asked(HELPFUL, "q", "a", "b"), Asked(HELPFUL, "q " * 3000, "a", "b")
    said = dict(judge.ask([long, short]))
    assert "tokens and the judge room for" in str(said[0]) and said[1].tokens_out <= 4
    assert judge.read(short, said[1].text) is None, "a random model says nothing that can be read"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dimensions", "nice"], "--dimensions nice: there are helpful, harmless"),
        (["--judge", "served"], "--judge served needs --judge_url"),
        (["--judge", "human"], "--judge human needs --labels"),
        (["--labels", "l.jsonl"], "--labels needs --judge"),
        (["--concurrency", "0"], "--concurrency is 0"),
        (["--price", "nan", "1"], "--price takes two numbers"),
        (["--dimensions", ","], "--dimensions names 0"),
        (
            ["--judge", "reward", "--judge_model", "m", "--dimensions", "helpful,honest"],
            "name one that the score stands for",
        ),
        (["--judge", "reward", "--judge_model", "/no/where"], "/no/where: there is no such folder"),
        (["--run_folder", "/no/where"], "has no train_log.jsonl"),
    ],
)
def test_what_is_missing_is_said(flags, said, tmp_path, capsys):
    after = write(tmp_path / "a.jsonl", ROWS)
    assert cli.main(["evaluate", "--after", after, "--output", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(not ALPACA.exists(), reason="needs shared/data")
def test_the_figures_of_published_corrections_are_an_independent_countings(tmp_path):
    """1,316 corrections of Aligner-2B: 33 and 85 of 658 identical, characters 1,766 to 1,353 and 1,529 to 1,792, as the data's
    README says."""
    assert cli.main(["evaluate", "--after", str(ALPACA), "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "report.json").read_text())["copying"]
    rows = json.loads(ALPACA.read_text())
    for upstream, identical, before, after in (
        ("gpt-4-turbo-2024-04-09", 33, 1766, 1353),
        ("Qwen1.5-72B-Chat", 85, 1529, 1792),
    ):
        mine = [row for row in rows if row["upstream"] == upstream]
        group = found[upstream]
        assert group["identical"] == identical == sum(row["answer"] == row["correction"] for row in mine)
        assert round(group["characters_before"]) == before == round(sum(len(row["answer"]) for row in mine) / 658)
        assert round(group["characters_after"]) == after == round(sum(len(row["correction"]) for row in mine) / 658)
        assert group["copied"] == pytest.approx(sum(kept(row) for row in mine[:60]) / 60, abs=0.12), (
            "sixty of them, by difflib"
        )


@pytest.mark.skipif(not ALPACA.exists(), reason="needs shared/data")
def test_copied_share_and_similarity_are_those_of_a_plain_longest_common_subsequence(tmp_path):
    """Of the twenty shortest published corrections. Several longest ones may weigh differently: the copied share is between the
    lightest and the heaviest."""
    rows = sorted(json.loads(ALPACA.read_text()), key=lambda row: len(row["answer"] + row["correction"]))[:20]
    assert cli.main(["evaluate", "--after", write(tmp_path / "a.jsonl", rows), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())["copying"]["all"]
    similarity, light, heavy = [], [], []
    for row in rows:
        a, c = row["answer"], row["correction"]
        similarity.append(2 * common(a, c, 0)[0] / (len(a) + len(c)))
        light.append(-common(words(a), words(c), -1)[1] / len(c))
        heavy.append(common(words(a), words(c), 1)[1] / len(c))
    assert found["similarity"] == pytest.approx(sum(similarity) / 20, abs=1e-9)
    assert sum(light) / 20 - 1e-9 <= found["copied"] <= sum(heavy) / 20 + 1e-9
    assert sum(heavy) - sum(light) < 0.4, "the two are close, so this says something"


def common(a: Sequence[str], b: Sequence[str], sign: int) -> tuple[int, int]:
    """The length of a longest common subsequence, and sign x its characters, as large as can be."""
    best = [(0, 0)] * (len(b) + 1)
    for x in a:
        row = [(0, 0)]
        for j, y in enumerate(b):
            met = (best[j][0] + 1, best[j][1] + sign * len(x)) if x == y else (0, 0)
            row.append(max(met, best[j + 1], row[j]))
        best = row
    return best[-1]


def kept(row: dict[str, str]) -> float:
    answer, correction = row["answer"], row["correction"]
    matcher = difflib.SequenceMatcher(None, words(answer), words(correction), autojunk=False)
    after = words(correction)
    blocks = matcher.get_matching_blocks()
    return sum(len(word) for b in blocks for word in after[b.b : b.b + b.size]) / len(correction)
