"""Several Aligners: rules on the question, a classifier over its embedding, and who corrected in every row and answer."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_correct_file import QUIET, Rewriter, lines, work

from aligner.cli import main
from aligner.inference.correct_file import correct_file
from aligner.models import load_model, load_tokenizer
from aligner.records import UserError
from aligner.routing.classifier import best_temperature, figures, fit, read_classifier
from aligner.routing.config import NONE, Rule, read_routes
from aligner.routing.router import Choice, Router, features_from, open_router
from aligner.routing.rules import fits
from aligner.routing.train import read_questions, train

TWO = "aligners:\n  plants: {model: a, rows: plants.jsonl}\n  stars: {model: b, rows: stars.jsonl}\n"


def read(tmp_path, text):
    (tmp_path / "routes.yaml").write_text(text)
    return read_routes(str(tmp_path / "routes.yaml"))


def by_length(texts):
    """Features of a text: whether it speaks of stars, and its length."""
    return torch.tensor([[float("star" in text), len(text) / 100] for text in texts])


def choose(router, *questions):
    """The choices for questions with answers that say nothing."""
    return router.choose(questions, [""] * len(questions))


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Routes with questions about plants and about stars, of which one is asked of both; the features are `by_length`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aligner.routing.train.fingerprint", lambda *_: "f")
    monkeypatch.setattr("aligner.routing.classifier.fingerprint", lambda *_: "f")
    for name in ("plants", "stars"):
        rows = [{"question": f"Where are the {name} of {n}?"} for n in range(60)] + [{"question": "Where are they?"}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read(tmp_path, TWO)


@pytest.mark.parametrize(
    ("rule", "question", "true"),
    [
        (Rule("a", matches=r"^\d+$"), "123", True),
        (Rule("a", matches=r"(?i)python"), "In PYTHON, please", True),
        (Rule("a", words=("car", "ice cream")), "Is ICE CREAM good?", True),
        (Rule("a", words=("car",)), "Is carbon a metal?", False),
        (Rule("a", at_least=3), "two words", False),
        (Rule("a", at_most=2), "two words", True),
        (Rule("a", words=("car",), at_least=3), "a car", False),
    ],
)
def test_a_rule_fits_where_all_that_it_says_holds(rule, question, true):
    assert fits(rule, question) is true


def test_a_pattern_that_takes_for_ever_is_given_up(monkeypatch):
    monkeypatch.setattr("aligner.routing.rules.SECONDS", 0.05)
    began = time.monotonic()
    assert not fits(Rule("a", matches=r"(?:(a|aa|a?)+)+\d$"), "a" * 200)
    assert time.monotonic() - began < 3


def test_the_first_rule_that_fits_comes_before_the_classifier(two, tmp_path):
    train(two, features=by_length)
    rules = "rules:\n- {words: [moon], to: none}\n- {matches: 'Where', to: plants}\n"
    router = open_router(read(tmp_path, TWO + rules), features=by_length)
    chosen = choose(router, "Where is the moon?", "Where are the stars?", "What are stars?")
    assert [(each.aligner, each.by) for each in chosen] == [
        (NONE, "rule 1"),
        ("plants", "rule 2"),
        ("stars", "classifier"),
    ]


def test_where_the_classifier_is_not_sure_the_choice_is_otherwise(two, tmp_path):
    train(two, features=by_length)
    router = open_router(read(tmp_path, TWO + "otherwise: none\nsure: 0.9\n"), features=by_length)
    doubtful = Router(router.routes, router.classifier, lambda texts: router.classifier.mean_H.repeat(len(texts), 1))
    assert [each.aligner for each in choose(router, "What are stars?")] == ["stars"]
    [choice] = choose(doubtful, "What is it?")
    assert (choice.aligner, choice.by) == (NONE, "otherwise") and choice.probability < 0.9


def test_the_trained_classifier_is_right_on_questions_it_never_saw_and_says_so(two):
    card = train(two, features=by_length)
    assert card["questions"] == {"plants": 60, "stars": 60} and card["shared"] == 1, "one question is of both"
    assert card["tested"] == 24 and card["after_temperature"]["accuracy"] == 1.0
    assert sum(map(sum, card["confusion"])) == card["tested"]
    assert read_classifier(two).temperature == card["temperature"]


def test_no_question_is_in_two_parts_and_each_is_taken_once(two):
    texts = read_questions(two).texts
    every = [text for part in texts.values() for text in part]
    assert len(every) == len(set(every)) == 120
    assert [sum("plants" in text for text in part) for part in texts.values()] == [36, 12, 12]


def test_a_classifier_may_read_the_answer_too(tmp_path, two):
    for name in ("plants", "stars"):
        rows = [{"question": f"{name[0]}: what is number {n}?", "answer": f"One of the {name}."} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    routes = read(tmp_path, TWO + "with_answer: true\n")
    assert train(routes, features=by_length)["after_temperature"]["accuracy"] == 1.0
    router = open_router(routes, features=by_length)
    assert [
        each.aligner
        for each in router.choose(["s: what is number 5?"] * 2, ["One of the stars.", "One of the plants."])
    ] == [
        "stars",
        "plants",
    ]
    with pytest.raises(UserError, match="was trained with another 'with_answer'"):
        read_classifier(read(tmp_path, TWO))


def test_the_temperature_makes_confident_mistakes_less_probable():
    """Three of four right, at 99.99 %: the probability that fits is three quarters."""
    logits_NC, labels_N = torch.tensor([[9.0, 0.0]] * 40), torch.tensor([0, 0, 0, 1] * 10)
    before = figures(torch.softmax(logits_NC, 1), labels_N)
    after_NC = torch.softmax(logits_NC / best_temperature(logits_NC, labels_N), 1)
    assert after_NC[0, 0] == pytest.approx(0.75, abs=0.02)
    assert before["calibration_error"] > 0.2 and figures(after_NC, labels_N)["calibration_error"] < 0.02


def test_a_few_rows_that_are_all_right_do_not_prove_certainty():
    logits_NC = torch.tensor([[9.0, 0.0]] * 8)
    sure = torch.softmax(logits_NC / best_temperature(logits_NC, torch.zeros(8, dtype=torch.long)), 1)[0, 0]
    assert sure == pytest.approx(0.9, abs=0.02)


def test_a_larger_penalty_makes_smaller_weights():
    features_NH, labels_N = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    sizes = [float(fit(("a", "b"), features_NH, labels_N, penalty).weight_CH.norm()) for penalty in (0.001, 0.1, 10)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_classifier_of_other_choices_or_another_model_is_refused(two, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"is not there, or not whole\. Run 'aligner route"):
        read_classifier(two)
    train(two, features=by_length)
    with pytest.raises(UserError, match="knows the choices plants, stars, which are others"):
        read_classifier(read(tmp_path, TWO + "none: {rows: plants.jsonl}\n"))
    monkeypatch.setattr("aligner.routing.classifier.fingerprint", lambda *_: "g")
    with pytest.raises(UserError, match="read another model than a"):
        read_classifier(two)


def test_a_classifier_of_the_last_states_is_refused(two):
    """As those of earlier versions, which say nothing of their states."""
    train(two, features=by_length)
    card = Path(two.classifier) / "card.json"
    card.write_text(json.dumps({k: v for k, v in json.loads(card.read_text()).items() if k != "states"}))
    with pytest.raises(UserError, match=r"was trained on other hidden states of that model\. Run 'aligner route"):
        read_classifier(two)


def test_a_text_is_the_mean_of_its_states_behind_the_middle_layer(tiny_model):
    model, tokenizer = load_model(str(tiny_model), torch.float32).eval(), load_tokenizer(str(tiny_model))
    texts = ["What is the moon?", "Why?"]
    features_NH = features_from(model, tokenizer)(texts)
    for text, features_H in zip(texts, features_NH, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True).hidden_states
        middle = len(states) // 2  # states[0] is what the first layer reads
        torch.testing.assert_close(features_H, states[middle][0].mean(0))


def test_another_thread_decodes_with_the_same_model_and_neither_disturbs_the_other(tiny_model):
    model, tokenizer = load_model(str(tiny_model), torch.float32).eval(), load_tokenizer(str(tiny_model))
    features, texts = features_from(model, tokenizer), ["What is the moon?"] * 40
    alone_NH, enough = features(texts), threading.Event()

    @torch.inference_mode()
    def decode():
        passes = 0
        while not enough.is_set():
            model(torch.tensor([[5, 6, 7]]))
            passes += 1
        return passes

    with ThreadPoolExecutor(1) as pool:
        decoding = pool.submit(decode)
        try:
            torch.testing.assert_close(torch.cat([features(texts) for _ in range(20)]), alone_NH.repeat(20, 1))
        finally:
            enough.set()
        assert decoding.result() > 0


def test_a_folder_of_something_else_is_not_replaced(two, tmp_path):
    (tmp_path / "routes-classifier").mkdir()
    (tmp_path / "routes-classifier" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no classifier"):
        train(two, features=by_length)
    (tmp_path / "routes-classifier" / "thesis.txt").rename(tmp_path / "routes-classifier" / ".what-made-it")
    assert train(two, features=by_length)["tested"] == 24, "an empty folder is nobody's"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: []", "needs 'aligners'"),
        ("aligners: {a: {}}", "aligners: a: needs a model"),
        ("aligners: {none: x}", "no Aligner can be called 'none'"),
        ("aligners: {a: x}", "'otherwise' is missing: the choice where no rule fits"),
        ("aligners: {a: x}\notherwise: b", "otherwise: there is no 'b'. There are a, none"),
        ("aligners: {a: {model: x, rows: r}}", "only 'a' has rows"),
        (TWO + "sure: 0.5", "'otherwise' is missing: the choice where the classifier is not sure"),
        (TWO + "sure: 1.5", "sure is 1.5"),
        (TWO + "rules: [{to: stars}]", "rule 1: needs 'to', and one of"),
        (TWO + "rules: [{to: stars, match: x}]", "rule 1: 'match' is not known. Did you mean 'matches'?"),
        (TWO + "rules: [{to: stars, matches: '('}]", "rule 1: matches is no regular expression"),
        (TWO + "rules: [{to: stars, at_least: many}]", "at_least is 'many'"),
        (TWO + "otherwize: stars", "'otherwize' is not known. Did you mean 'otherwise'?"),
        ("aligners: {a: {model: x, aligner_model: y}}", "aligner_model needs aligner_url"),
        (TWO + "none: {files: x}", "none: needs rows"),
    ],
)
def test_what_is_wrong_with_the_file_is_one_line(text, said, tmp_path):
    with pytest.raises(UserError, match=r"routes\.yaml") as error:
        read(tmp_path, text)
    assert said in str(error.value) and "\n" not in str(error.value)


def by_first_letter(questions, answers):
    """The Aligner with the number behind Q, and none for the others."""
    return [Choice(f"aligner-{int(q[1:]) % 3}" if int(q[1:]) % 3 < 2 else NONE, "rule 1", 0.5) for q in questions]


def test_each_row_is_corrected_by_the_aligner_of_its_route_and_says_so(tmp_path):
    rows = [{"question": f"Q{n}", "answer": f"a{n}"} for n in range(6)]
    first, second = Rewriter(str.upper), Rewriter(lambda text: text + "!")
    summary = correct_file(work(tmp_path, rows, first, second, route=by_first_letter), QUIET)
    written = lines(tmp_path / "out.jsonl")
    assert [row["corrected"] for row in written] == ["A0", "a1!", "a2", "A3", "a4!", "a5"]
    assert [row["route"]["aligner"] for row in written] == ["aligner-0", "aligner-1", NONE] * 2
    assert written[2]["guard_reason"] == "the route is to no Aligner" and written[2]["finished"]
    assert (len(first.asked), len(second.asked), summary.left_alone) == (2, 2, 2)


def test_what_was_routed_before_a_kill_is_not_chosen_again(tmp_path):
    rows = [{"question": f"Q{n}", "answer": f"a{n}"} for n in range(6)]
    with pytest.raises(KeyboardInterrupt):
        correct_file(
            work(tmp_path, rows, Rewriter(str.upper), Rewriter(str.upper, fail_after=1), route=by_first_letter), QUIET
        )
    again = Rewriter(str.upper)

    def refuse(questions, answers):
        raise AssertionError("asked again")

    correct_file(work(tmp_path, rows, Rewriter(str.upper), again, route=refuse), QUIET)
    assert len(again.asked) == 1
    assert [row["corrected"] for row in lines(tmp_path / "out.jsonl")] == ["A0", "A1", "a2", "A3", "A4", "a5"]


def test_a_later_pass_of_a_row_is_its_own_aligners(tmp_path):
    rows = [{"question": f"Q{n}", "answer": f"a{n}"} for n in range(3)]
    first, second = Rewriter(lambda text: text + "?"), Rewriter(lambda text: text + "!")
    summary = correct_file(work(tmp_path, rows, first, second, route=by_first_letter, passes=2), QUIET)
    assert [row["passes"] for row in lines(tmp_path / "out.jsonl")] == [["a0?", "a0??"], ["a1!", "a1!!"], ["a2", "a2"]]
    assert [each.name for each in summary.drift] == ["pass 1, routed", "pass 2, routed"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steer", "d", "--alpha", "1"], "--steer is for one Aligner that runs here: leave out --route"),
        (["--aligner_url", "http://x/v1"], "--aligner_url serves one Aligner: write it into routes.yaml"),
        (["--nats_ahead", "0"], "routes.yaml has 'b' served"),
    ],
)
def test_flags_that_belong_to_one_aligner_are_refused_beside_a_route(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    read(tmp_path, "aligners: {a: embeddable, b: {model: c, aligner_url: http://x/v1}}\notherwise: a")
    assert main(["correct", "--route", "routes.yaml", "--input", "in", "--output", "out", *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mode", "gate", "--threshold", "-1"], "a threshold is of one Aligner"),
        (["--aligner_url", "http://x/v1"], "write it into routes.yaml"),
        (["--steer", "d", "--alpha", "1"], "leave out --route"),
    ],
)
def test_what_is_of_one_aligner_is_refused_by_serve_too(flags, said, capsys):
    assert main(["serve", "--route", "routes.yaml", "--upstream_url", "http://x/v1", *flags]) == 2
    assert said in capsys.readouterr().err
