"""`aligner baseline`: the methods, what they cost, going on after a kill, and what an error says."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from scripted import TEXT, USUAL, scripted_upstream, writing_model
from test_correct_file import lines, write
from test_judges import classifier

from aligner.baselines.converse import answer
from aligner.baselines.local import LocalModel, LocalUpstream, beam_search
from aligner.baselines.methods import METHODS, MethodSettings
from aligner.baselines.prompts import read_prompts
from aligner.baselines.protocol import UPSTREAM, ChatRequest, Question, Reply, Usage
from aligner.cli import command_parser, main
from aligner.evaluation.judges.scores import ScoreJudge
from aligner.evaluation.pairs import read_pairs
from aligner.evaluation.systems import match_pairs, parse_system
from aligner.inference.likelihood import log_likelihood

QUESTIONS = [f"What is the use of thing number {number}?" for number in range(6)]
SETTINGS = MethodSettings(read_prompts())


@pytest.fixture
def paid():
    """A server that states its usage, gives each new request a text of its own, and knows what it was paid for."""
    with scripted_upstream() as server:
        server.receipts, server.gone_after = [], 10**9  # type: ignore[attr-defined]
        server.rule = lambda path, body: charged(server, body)
        yield server


def charged(server: Any, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """A reply of the words that its prompt ends with, at a token a word."""
    if len(server.receipts) >= server.gone_after:
        return 401, {}, b'{"error": {"message": "no money left"}}'
    prompt = body["messages"][-1]["content"]
    text = f"REVISED ANSWER: an answer with {len(prompt)} letters before it, drawn with {body.get('seed', 'nothing')}"
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
    server.receipts.append((prompt, body.get("seed"), usage))
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return 200, {}, json.dumps({**USUAL, "choices": [choice], "usage": usage}).encode()


def baseline(folder: Path, method: str, *flags: object, rows: Any = None, out: str = "out.jsonl") -> int:
    source = rows if isinstance(rows, Path) else folder / "in.jsonl"
    if source.name == "in.jsonl":
        write(source, rows or [{"question": question} for question in QUESTIONS])
    return main(["baseline", method, "--input", str(source), "--output", str(folder / out), *map(str, flags)])


def served(server: Any, *more: object) -> tuple[object, ...]:
    return "--upstream_url", server.url, "--upstream_model", "m", "--concurrency", 2, *more


class Scripted:
    """A responder that gives these texts in turn; one that ends with an ellipsis was cut off."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.prompts = list(texts), list[str]()

    def stream(self, requests: Any) -> Any:
        for place, request in enumerate(requests):
            self.prompts.append(request.prompt)
            text = self.texts.pop(0)
            yield place, Reply(text.removesuffix("..."), not text.endswith("..."), Usage(1, 2, 3, 3, 0.5))


def by(method: str, *texts: str, given: str | None = "It is flat.", **settings: Any) -> tuple[Any, Any, list[str]]:
    """Outcome, cost and prompts of a method on one question, the upstream replying with these texts."""
    upstream = Scripted(*texts)
    chosen = MethodSettings(SETTINGS.prompts, **settings)
    outcome, cost = answer(METHODS[method], Question("Is the earth flat?", given), chosen, {UPSTREAM: upstream})
    assert not upstream.texts, "every reply was asked for"
    return outcome, cost, upstream.prompts


def test_self_refine_shows_the_answer_then_the_feedback_and_stops_where_nothing_is_to_improve():
    outcome, cost, prompts = by(
        "refine", "It is flat.", "Say the truth.", "It is round.", "NOTHING TO IMPROVE.", given=None, rounds=3
    )
    assert outcome.text == "It is round." and outcome.failure is None
    assert prompts[0] == "Is the earth flat?" and "It is flat." in prompts[1] and "Say the truth." in prompts[2]
    assert cost[UPSTREAM] == Usage(4, 8, 12, 12, 2.0)


def test_revision_by_principles_criticises_by_one_of_the_principles_and_revises_by_both():
    outcome, _, prompts = by("revise", "It is not true.", "It is round.")
    principle = outcome.shown["steps"][0]["principle"]
    assert principle in SETTINGS.prompts.principles and all(principle in prompt for prompt in prompts)
    assert "It is not true." in prompts[1] and outcome.text == "It is round."


def test_the_heading_of_a_revision_is_no_part_of_it():
    outcome, *_ = by("refine", "Say the truth.", "Revised answer: It is round.\nReally.")
    assert (outcome.text, outcome.failure) == ("It is round.\nReally.", None)


def test_self_critique_takes_what_stands_behind_the_mark():
    outcome, cost, _ = by("critique", "It is wrong.\nRevised answer: It is round.")
    assert (outcome.text, outcome.shown["steps"][0]["critique"]) == ("It is round.", "It is wrong.")
    assert cost[UPSTREAM].calls == 1, "an answer that a row has is not asked for again"


@pytest.mark.parametrize(
    ("method", "replies", "failure"),
    [
        ("critique", ["It is wrong, and that is all."], "no revision"),
        ("critique", ["REVISED ANSWER:"], "empty"),
        ("critique", ["It is wrong and..."], "unfinished"),
        ("refine", [" "], "empty"),
        ("refine", ["Say the truth.", "It is round and round and..."], "unfinished"),
        ("refine", ["Say the truth.", "Say the truth."], "no revision"),
        ("refine", ["Say the truth.", "Is the earth flat?"], "no revision"),
        ("revise", ["Not true.", "Question: Is the earth flat?\nAnswer: It is."], "no revision"),
        ("revise", ["Not true.", ""], "empty"),
    ],
)
def test_what_is_no_revision_is_named_and_the_answer_before_it_stands(method, replies, failure):
    outcome, cost, _ = by(method, *replies)
    assert (outcome.text, outcome.failure) == ("It is flat.", failure)
    assert cost[UPSTREAM].calls == len(replies), "a failure is paid for all the same"


@pytest.mark.parametrize("method", ["refine", "bon"])
def test_tokens_are_those_that_the_server_states(method, paid, tiny_model, tmp_path, capsys):
    more = ("--n", 3, "--reward_model", tiny_model) if method == "bon" else ()
    assert baseline(tmp_path, method, *served(paid, *more)) == 0
    stated = [sum(usage[name] for *_, usage in paid.receipts) for name in ("prompt_tokens", "completion_tokens")]
    costs = [row["cost"][UPSTREAM] for row in lines(tmp_path / "out.jsonl")]
    for name, total in zip(("prompt_tokens", "completion_tokens"), stated, strict=True):
        assert abs(sum(cost[name] for cost in costs) - total) <= 0.01 * total and total > 100
    assert f"upstream: {len(paid.receipts)} calls, {stated[0]:,} tokens read, {stated[1]:,} written" in (
        capsys.readouterr().out
    )


def test_a_method_that_was_killed_goes_on_and_nothing_is_paid_for_twice(paid, tmp_path, capsys):
    flags = served(paid, "--rounds", 2)
    paid.gone_after = 7
    assert baseline(tmp_path, "revise", *flags) == 2
    assert "replies are kept in" in capsys.readouterr().err
    paid.gone_after = 23
    assert baseline(tmp_path, "revise", *flags) == 2
    paid.gone_after = 10**9
    assert baseline(tmp_path, "revise", *flags) == 0
    asked = Counter(prompt for prompt, *_ in paid.receipts)
    assert len(paid.receipts) == 5 * len(QUESTIONS) and set(asked.values()) == {1}
    rows = lines(tmp_path / "out.jsonl")
    assert [row["question"] for row in rows] == QUESTIONS and all(row["cost"][UPSTREAM]["calls"] == 5 for row in rows)
    assert not (tmp_path / "out.jsonl.journal").exists()


def test_going_on_with_other_prompts_is_refused(paid, tmp_path, capsys):
    paid.gone_after = 3
    assert baseline(tmp_path, "refine", *served(paid)) == 2
    value = yaml.safe_load((ROOT / "configs/baselines/prompts.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**value, "answer": "Briefly: {question}"}))
    assert baseline(tmp_path, "refine", *served(paid, "--prompts", tmp_path / "mine.yaml")) == 2
    assert "was begun with other prompts" in capsys.readouterr().err


def test_the_users_prompts_are_used_and_saved_beside_the_answers(paid, tmp_path):
    value = yaml.safe_load((ROOT / "configs/baselines/prompts.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**value, "answer": "Briefly, {braces}: {question}"}))
    assert baseline(tmp_path, "beam", "--width", 1, *served(paid, "--prompts", tmp_path / "mine.yaml")) == 0
    assert {prompt for prompt, *_ in paid.receipts} == {f"Briefly, {{braces}}: {question}" for question in QUESTIONS}
    about = json.loads((tmp_path / "out.jsonl.about.json").read_text())
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(about["prompts"]))
    assert read_prompts(str(tmp_path / "again.yaml")) == read_prompts(str(tmp_path / "mine.yaml"))


def test_of_one_pool_the_mean_reward_does_not_fall_with_n_and_the_smaller_ones_cost_nothing(
    paid, tiny_model, tmp_path, capsys
):
    flags = served(paid, "--reward_model", tiny_model)
    assert baseline(tmp_path, "bon", *flags, "--n", 10, out="10.jsonl") == 0
    receipts = len(paid.receipts)
    for n in (5, 1):
        assert baseline(tmp_path, "bon", *flags, "--n", n, rows=tmp_path / "10.jsonl", out=f"{n}.jsonl") == 0
    assert receipts == len(paid.receipts) == 10 * len(QUESTIONS), "candidates that are there are not drawn again"
    rows = {n: lines(tmp_path / f"{n}.jsonl") for n in (1, 5, 10)}
    means = [sum(row["reward"] for row in rows[n]) / len(QUESTIONS) for n in (1, 5, 10)]
    assert means[0] < means[2] and means == sorted(means)
    for few, many in zip(rows[5], rows[10], strict=True):
        assert few["candidates"] == many["candidates"][:5] and few["answer"] in [c["text"] for c in few["candidates"]]
        assert few["cost"][UPSTREAM]["calls"] == 5, "it costs what its five cost"
    assert baseline(tmp_path, "bon", *served(paid, "--reward", "reward", "--reward_model", tiny_model), "--n", 5,
                    rows=tmp_path / "10.jsonl") == 2  # fmt: skip
    assert "candidates rewarded by another model" in capsys.readouterr().err


def test_a_judge_of_pairs_rewards_what_beats_the_first_answer_in_both_orders(paid, tmp_path):
    """The judge likes the answer that was drawn with 44, wherever it stands."""

    def rule(path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        prompt = body["messages"][-1]["content"]
        if "[Response A]" not in prompt:
            return charged(paid, body)
        first = "drawn with 44" in prompt.partition("[Response B]")[0]
        verdict = "[[A]]" if first else "[[B]]" if "drawn with 44" in prompt else "[[Equal]]"
        choice = {"index": 0, "message": {"role": "assistant", "content": verdict}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 50, "completion_tokens": 3}
        return 200, {}, json.dumps({**USUAL, "choices": [choice], "usage": usage}).encode()

    paid.rule = rule
    more = ("--reward", "served", "--judge_url", paid.url, "--reward_model", "judge", "--n", 4)
    assert baseline(tmp_path, "bon", *served(paid, *more)) == 0
    for row in lines(tmp_path / "out.jsonl"):
        assert "drawn with 44" in row["answer"] and row["reward"] == 1
        assert [each["reward"] for each in row["candidates"]] == [0, 0, 1, 0]
        assert (row["cost"]["reward"]["calls"], row["cost"]["reward"]["prompt_tokens"]) == (6, 300)


@pytest.mark.parametrize(("reward", "chosen"), [("reward", max), ("cost", min)])
def test_a_model_that_scores_chooses_the_highest_reward_or_the_lowest_cost(reward, chosen, paid, tiny_model, tmp_path):
    judge = classifier(tiny_model, tmp_path / "scores")
    assert baseline(tmp_path, "bon", *served(paid, "--reward", reward, "--reward_model", judge, "--n", 4)) == 0
    scores = ScoreJudge.load(judge, costs=False)
    for row in lines(tmp_path / "out.jsonl"):
        texts = [candidate["text"] for candidate in row["candidates"]]
        assert row["answer"] == chosen(texts, key=lambda text: scores.score_of(row["question"], text))
        tokens = sum(scores.tokens_of(row["question"], text) for text in texts)
        assert (row["cost"]["reward"]["prompt_tokens"], row["cost"]["reward"]["passes"]) == (tokens, 4)


def test_a_server_that_states_no_usage_is_named_and_nothing_is_made_up(paid, tmp_path, capsys):
    paid.says({"content": "Of no use at all."})
    assert baseline(tmp_path, "beam", "--width", 1, *served(paid)) == 0
    assert "(6 calls without a count: the server states no usage)" in capsys.readouterr().out
    assert {row["cost"][UPSTREAM]["unknown"] for row in lines(tmp_path / "out.jsonl")} == {1}


@pytest.mark.parametrize(("searched", "status"), [(3, 0), (1, 1)])
def test_a_server_is_asked_for_beams_in_its_own_way_and_one_that_searches_none_is_named(
    searched, status, paid, tmp_path, capsys
):
    choices = [{"index": n, "message": {"content": f"Beam {n}."}, "finish_reason": "stop"} for n in range(searched)]
    paid.replies({**USUAL, "choices": choices})
    assert baseline(tmp_path, "beam", "--width", 3, *served(paid, "--dialect", "vllm")) == status
    body = paid.asked[-1][1]
    assert (body["use_beam_search"], body["n"], body["temperature"]) == (True, 3, 0)
    answers = {row["answer"] for row in lines(tmp_path / "out.jsonl")}
    assert answers == ({None} if status else {"Beam 0."})
    assert ("searched 1 beams and not 3" in capsys.readouterr().err) == bool(status)


def greedy(local: LocalModel, prompt: list[int], most: int) -> list[int]:
    """Token by token, without a cache."""
    tokens: list[int] = []
    while len(tokens) < most and not (tokens and tokens[-1] in local.ends):
        with torch.inference_mode():
            tokens.append(int(local.model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    return tokens


def test_beam_search_of_width_1_is_greedy_and_of_width_4_is_likelier(tiny_model):
    local = LocalModel.load(str(tiny_model))
    prompts = local.ids(QUESTIONS)
    written = [greedy(local, prompt, 12) for prompt in prompts]
    replies = dict(LocalUpstream(local, 12, 4).stream([ChatRequest(question, beams=1) for question in QUESTIONS]))
    decoder = local.encoder.tokenizer
    assert [replies[n].text for n in range(6)] == [decoder.decode(ids, skip_special_tokens=True) for ids in written]
    assert [replies[n].usage.completion_tokens for n in range(6)] == [len(ids) for ids in written]
    beams = beam_search(local.model, prompts, local.ends, 12, 4)
    likelihoods = [
        sum(log_likelihood(local.model, prompt, ids) / len(ids) for prompt, ids in zip(prompts, some, strict=True))
        for some in (written, [ids for ids, _ in beams])
    ]
    assert likelihoods[1] > likelihoods[0]
    searched = dict(LocalUpstream(local, 12, 8).stream([ChatRequest(question, beams=4) for question in QUESTIONS]))
    assert [searched[n].text for n in range(6)] == [decoder.decode(ids, skip_special_tokens=True) for ids, _ in beams]
    assert searched[0].usage.completion_tokens == 4 * 12 and searched[0].usage.passes == 12, "all beams are paid for"


def test_an_aligner_behind_any_method_corrects_its_answer_and_its_cost_is_its_own(paid, bpe_folder, tmp_path):
    aligner = writing_model(bpe_folder, tmp_path / "aligner", TEXT)
    more = ("--aligner", aligner, "--prompt_template", "correction", "--max_new_tokens", 40)
    assert baseline(tmp_path, "critique", *served(paid, *more)) == 0
    for row in lines(tmp_path / "out.jsonl"):
        assert row["answer"].startswith("an answer with") and row["corrected"] == TEXT
        cost = row["cost"]["aligner"]
        assert cost["calls"] == 1 and 0 < cost["passes"] <= cost["completion_tokens"] < cost["prompt_tokens"]
        assert row["cost"][UPSTREAM]["calls"] == 2


def test_a_correction_that_does_not_end_is_counted_and_the_answer_stays(paid, bpe_folder, tmp_path, capsys):
    aligner = writing_model(bpe_folder, tmp_path / "aligner", TEXT, ends=False)
    more = ("--aligner", aligner, "--prompt_template", "correction", "--max_new_tokens", 40)
    assert baseline(tmp_path, "critique", *served(paid, *more)) == 0
    rows = lines(tmp_path / "out.jsonl")
    assert all(row["corrected"] == row["answer"] and not row["correction_finished"] for row in rows)
    assert "6 corrections of the Aligner did not end: the answer was kept" in capsys.readouterr().out
    assert all(row["cost"]["aligner"]["completion_tokens"] == 80 for row in rows), "it is paid for all the same"


def test_the_answers_are_what_evaluate_reads(paid, tmp_path, capsys):
    assert baseline(tmp_path, "beam", "--width", 1, *served(paid), out="upstream.jsonl") == 0
    assert baseline(tmp_path, "refine", *served(paid), rows=tmp_path / "upstream.jsonl", out="refined.jsonl") == 0
    first, second = (lines(tmp_path / f"{name}.jsonl") for name in ("upstream", "refined"))
    for before, after in zip(first, second, strict=True):
        assert after["draft"] == before["answer"] and after["cost"][UPSTREAM]["calls"] == 3, "its draft is part of it"
    systems = [parse_system(f"{name}={tmp_path / f'{name}.jsonl'}") for name in ("upstream", "refined")]
    for pairs, faults in (match_pairs(systems), read_pairs(systems[1].file, systems[0].file)):
        assert not faults and [(pair.before, pair.after) for pair in pairs] == [
            (before["answer"], after["answer"]) for before, after in zip(first, second, strict=True)
        ]


def test_a_question_that_the_server_refuses_is_named_and_the_others_go_on(paid, tmp_path, capsys):
    def rule(path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if "number 3" in body["messages"][-1]["content"]:
            return 400, {}, b'{"error": {"message": "not that"}}'
        return charged(paid, body)

    paid.rule = rule
    assert baseline(tmp_path, "refine", *served(paid)) == 1
    printed = capsys.readouterr()
    assert "in.jsonl row 4" in printed.err and "5 of 6 questions answered by refine" in printed.out
    row = lines(tmp_path / "out.jsonl")[3]
    assert row["answer"] is None and "not that" in row["error"]


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("bon", "--upstream_url http://h/v1 --upstream_model m", "a served upstream gives no likelihoods here"),
        ("bon", "--model MODEL --reward served --reward_model j", "--reward served and --judge_url belong together"),
        ("bon", "--model MODEL --temperature 0", "--temperature is 0: best-of-N draws"),
        ("beam", "--upstream_url http://h/v1 --upstream_model m", "OpenAI's protocol has no beam search: --dialect"),
        ("beam", "--model MODEL --n 5", "--n is for 'bon', and the method is 'beam': leave it out"),
        ("refine", "", "the upstream is --model DIR, or --upstream_url URL"),
        ("refine", "--model MODEL --rounds 0", "must be at least 1"),
        ("refine", "--model MODEL --prompts PROMPTS", "'refin' is no prompt. Did you mean 'refine'?"),
        ("critique", "--model none/at/all", "there is no such folder"),
        ("revise", "--model MODEL --aligner MODEL", "has no aligner.json"),
    ],
)
def test_an_error_is_one_line(method, flags, message, tiny_model, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("refin: x\n")
    words = flags.replace("MODEL", str(tiny_model)).replace("PROMPTS", str(tmp_path / "mine.yaml")).split()
    assert baseline(tmp_path, method, *words) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1 and not (tmp_path / "out.jsonl").exists()


def test_the_help_names_every_method_and_its_examples_are_commands():
    with pytest.raises(SystemExit):
        command_parser().parse_args(["baseline", "bonn", "--input", "a", "--output", "b"])
    parser = command_parser()._subparsers._group_actions[0].choices["baseline"]  # type: ignore[union-attr]
    epilog = parser.epilog or ""
    assert all(re.search(rf"^  {method} +\w", epilog, re.MULTILINE) for method in METHODS)
    commands = [line.strip() for line in epilog.replace("\\\n", " ").splitlines() if line.startswith("  aligner ")]
    assert len(commands) >= 5
    for line in commands:
        assert command_parser().parse_args(line.partition("#")[0].split()[1:])
