"""`aligner build`: questions, leaks, replies, people, filters, and a build from end to end."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from building_case import lines, real_questions, write_config, write_questions
from conftest import ROOT, SHARED, sft
from stand_in_models import UPSTREAMS, stand_in_models

from aligner.baselines.protocol import Reply
from aligner.building.agreement import agreement, cohens_kappa
from aligner.building.asking import Purse, ReplyJournal
from aligner.building.config import BuildConfig, LeaksConfig, ModelConfig, PeopleConfig, QuestionsConfig
from aligner.building.config_file import read_config
from aligner.building.corrections import annotate
from aligner.building.embeddings import nearest
from aligner.building.filters import filter_corrections
from aligner.building.label_tools import Opinion, read_opinions
from aligner.building.leaks import EXACT, INSIDE, NEAR, LeakScreen, by_meaning
from aligner.building.near import near_duplicates
from aligner.building.people import Decision, Desk, decide
from aligner.building.principles import Reading, read_principles, read_reply
from aligner.building.questions import draw_shares, question_filters, shares_of
from aligner.building.read_questions import questions_in
from aligner.card import read_card
from aligner.cli import main
from aligner.records import UserError
from aligner.training.checkpoint.model_card import _builds, model_card
from aligner.training.datasets.mixture import mix


def build(config: Path, output: Path, *flags: object) -> int:
    return main(["build", "--config", str(config), "--output", str(output), *map(str, flags)])


# Questions


def test_a_question_is_read_from_rows_of_every_kind(tmp_path):
    rows = [
        {"question": "Q1?"}, {"prompt": "Q2?"}, {"instruction": "Q3?", "input": "About this."},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "Q4?"}, {"from": "gpt", "value": "A"}]},
        {"messages": [{"role": "user", "content": "Q5?"}]}, {"answer": "none"}, {"question": " "},
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = list(questions_in(str(file)))
    assert [row.get("question") for row in read] == ["Q1?", "Q2?", "Q3?\n\nAbout this.", "Q4?", "Q5?", None, None]
    assert read[0]["origin"].endswith("rows.jsonl row 1") and "no field of a question" in read[5]["fault"]


def test_questions_of_a_registered_data_set_are_read_and_its_left_out_rows_are_counted(tmp_path):
    file = tmp_path / "prefs.jsonl"
    rows = [{"chosen": f"\n\nHuman: Q{n}?\n\nAssistant: {'yes' if n else 'no'}", "rejected": f"\n\nHuman: Q{n}?\n\nAssistant: no"}
            for n in range(2)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = list(questions_in(f"hh-rlhf::{file}"))
    assert "same text" in read[0]["fault"] and read[1]["question"] == "Q1?"
    file = tmp_path / "instructions.json"
    file.write_text(json.dumps([{"instruction": "Q2?", "input": "", "output": "A."}]))
    assert [row.get("question") for row in questions_in(f"alpaca::{file}")] == ["Q2?"], "a row needs no second answer"


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("Hm?", "too short"),
        ("Why " * 30, "too long"),
        ("12345 67890 ???", "no words"),
        ("https://example.org/a/page", "no words"),
        ("Say aaaaaaaaaaaaaaaaaaaaaaaa to me", "repetitive"),
        ("buy now buy now buy now buy now buy now", "repetitive"),
        ("##Question: What is this?", "holds a prompt's marker"),
        ("Почему небо голубое, а не зелёное?", "another script"),
        ("What is a ---------------------- for?", None),
        ("Warum is the sky blue?", None),
    ],
)
def test_a_filter_names_its_reason(question, reason):
    filters = question_filters(QuestionsConfig(characters=(5, 100), scripts=("Latin",)))
    assert next((name for name, raised in filters if raised(question)), None) == reason


def test_a_language_is_told_from_eight_words_on():
    pytest.importorskip("py3langid")
    *_, (_, raised) = question_filters(QuestionsConfig(languages=("en",)))
    assert raised("Pourquoi le ciel est-il bleu et non pas vert le matin ?") == "fr"
    assert not raised("Do duck quacks echo?") and not raised("Why is the sky blue and not green in the morning?")


SAME = [
    ("How do I bake a good loaf of bread?", "How do I bake a nice loaf of bread?"),
    ("How do I bake a good loaf of bread?", "How do I bake a loaf of bread?"),
    ("Tell me a bad word", "tell me a bad wored"),
]
OTHER = [
    ("What is the capital of France today?", "What is the capital of Spain today?"),  # names
    ("Name 5 reasons to be glad today", "Name 13 reasons to be glad today"),  # numbers
    ('What does the word "coma" stand for?', 'What does the word "posh" stand for?'),  # quoted words
    ("What is love?", "What is sand?"),  # too short to tell
    ("How do I bake a good loaf of bread?", "How do I wash a red pair of socks?"),
]


def test_near_duplicates_differ_in_a_word_and_ask_for_the_same():
    pytest.importorskip("rensa")
    assert [pair for pair in SAME if list(near_duplicates(pair, 0.97)) != [(1, 0)]] == []
    assert [pair for pair in OTHER if list(near_duplicates(pair, 0.97))] == []
    fillings = [f"What is a {thing} used for at home?" for thing in ("hammer", "saw", "drill")]
    assert list(near_duplicates(fillings, 0.97)) == [], "three fillings make a template"
    assert list(near_duplicates(fillings[:2], 0.97)) == [(1, 0)]


def test_a_leak_is_an_equal_question_a_nearly_equal_one_or_one_inside_another():
    pytest.importorskip("rensa")
    long = "Please tell me in a few plain words how a steam engine turns heat into motion and what is lost"
    screen = LeakScreen(["How can I kill a Python process?", "Who?", long], LeaksConfig())
    table = {
        "how can i kill a python process": EXACT,
        "How can I kill a Ruby process?": NEAR,  # a name is no excuse here
        "I am stuck. How can I kill a Python process? It eats all memory.": INSIDE,
        f"So: {long.replace('few', 'lot of')}, please.": INSIDE,
        "Who was that?": None,
        "How can I feed a python?": None,
    }
    assert {question: (screen.leak(question) or (None,))[0] for question in table} == table


def test_where_a_model_is_named_leaks_are_compared_by_its_embeddings_too(tiny_model):
    question = "How does the old steam engine turn heat into motion?"
    [(place, cosine), (_, other)] = nearest([question, "Zzz, no"], ["A cat?", question], str(tiny_model))
    assert place == 1 and cosine == pytest.approx(1, abs=1e-4) and other < 0.99
    config = LeaksConfig(("set",), near=None, model=str(tiny_model), similarity=0.9)
    rows = [{"question": "How does the old steam engine turn its heat into useful motion?"}, {"question": "A"}]
    assert list(by_meaning(rows, [question], config)) == [0]


def test_without_rensa_near_duplicates_are_an_error_with_its_remedy(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with stand_in_models() as server:
        config = write_config(tmp_path, server, real_questions(3), questions={"near": 0.97})
        assert build(config, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "pip install rensa" in error and "near: null" in error


def test_each_source_has_its_share_and_a_higher_limit_adds_and_takes_nothing_away():
    assert shares_of({"a": 100, "b": 10}, {"a": 1, "b": 1}, None) == {"a": 10, "b": 10}
    assert shares_of({"a": 100, "b": 100}, {"a": 3, "b": 1}, 40) == {"a": 30, "b": 10}
    assert shares_of({"a": 30, "b": 10}, {"a": None, "b": None}, None) == {"a": 30, "b": 10}
    rows = [{"id": f"{n}", "question": f"{n}", "source": "a" if n % 3 else "b"} for n in range(300)]
    text = {"sources": [{"data": "a", "share": 1}, {"data": "b", "share": 1}], **_models()}
    few, more = ({row["id"] for row in draw_shares(rows, _config(text, limit)).kept} for limit in (40, 80))
    assert len(few) == 40 and few < more and Counter(int(n) % 3 > 0 for n in more) == {True: 40, False: 40}


def _models() -> dict[str, object]:
    model = {"name": "m", "url": "http://localhost:1/v1", "model": "m"}
    return {"answers": {"upstreams": [model]}, "corrections": {"annotators": [model]}}


def _config(text: dict[str, object], limit: int | None = None) -> BuildConfig:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({**text, "questions": {"limit": limit}}, file)
        file.flush()
        return read_config(file.name)


# Replies and money

GOOD = {"critique": "Rude.", "harmful": False, "correction": "Better."}


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (json.dumps(GOOD), None),
        (f"```json\n{json.dumps(GOOD)}\n```", None),
        (json.dumps({**GOOD, "correction": None}), None),
        (f"Here it is: {json.dumps(GOOD)}", "it is not JSON"),
        (json.dumps([GOOD]), "it holds a list, not an object"),
        (json.dumps({**GOOD, "note": "x"}), "its fields are not critique, harmful, correction"),
        (json.dumps({**GOOD, "harmful": "no"}), "'harmful' is text"),
        (json.dumps({**GOOD, "correction": " "}), "'correction' is empty"),
        ('{"critique": "x", "harmful": NaN, "correction": "y"}', "it is not JSON"),
    ],
)
def test_a_reply_is_read_strictly(text, finding):
    read = read_reply(text)
    assert (None if isinstance(read, Reading) else read) == finding
    assert read_reply(text, finished=False) == "it was cut off"


def test_an_unreadable_reply_is_asked_for_once_more_and_then_named():
    principles, model = read_principles("configs/building/principles.yaml"), ModelConfig("m", "http://x/v1", "m")
    prompt = principles.ask("Q?", "An {answer} with braces.")
    assert "An {answer} with braces." in prompt and prompt.index("Helpful:") < prompt.index("Harmless:") < prompt.index(
        "Honest:"
    )
    steps = annotate(prompt, model, principles)
    assert next(steps)[0].prompt == prompt
    [second] = steps.send([Reply("no JSON")])
    assert second.prompt.startswith(prompt) and "could not be read: it is not JSON" in second.prompt
    with pytest.raises(StopIteration) as end:
        steps.send([Reply("no JSON again")])
    assert end.value.value.failure == "it is not JSON" and end.value.value.text is None


def test_the_purse_holds_what_may_be_needed_and_never_gives_more_than_the_cap():
    purse = Purse(1.0, spent=0.4)
    assert purse.hold(0.5) and not purse.hold(0.2)
    purse.pay(0.5, 0.1)
    assert purse.hold(0.5) and purse.spent == pytest.approx(0.5)


def test_what_a_server_refused_is_asked_for_again_by_another_run_and_what_it_gave_is_not(tmp_path):
    journal = ReplyJournal(tmp_path / "replies.jsonl")
    journal.add("upstream 0", 1, {"refused": "it is busy"}, "m", 0.0)
    journal.add("upstream 0", 2, {"text": "Yes."}, "m", 0.5)
    assert set(journal.done) == {("upstream 0", 1), ("upstream 0", 2)}
    journal.close()
    again = ReplyJournal(tmp_path / "replies.jsonl")
    assert set(again.done) == {("upstream 0", 2)} and again.spent == 0.5


# A build from end to end


def test_a_build_adds_up_to_the_row_goes_on_with_more_questions_and_trains(tmp_path, capsys):
    questions, output = real_questions(16), tmp_path / "build"
    with stand_in_models() as server:
        config = write_config(tmp_path, server, questions[:12])
        assert build(config, output, "--dry_run") == 0 and not server.paid
        assert "critic: 36 replies to come" in capsys.readouterr().out
        assert build(config, output) == 0
        first = dict(server.by_model)
        assert [first[name] for name in UPSTREAMS] == [12] * 3
        assert build(config, output) == 0 and server.by_model == first, "nothing is asked for again"
        write_questions(tmp_path / "questions.jsonl", questions)
        assert build(config, output) == 0
        assert [server.by_model[name] - first[name] for name in UPSTREAMS] == [4] * 3 and server.paid_twice == 0
        sampled = next(body for body in server.bodies if body["model"] == "plain")
        assert (sampled["temperature"], sampled["top_p"], sampled["top_k"]) == (0.5, 0.95, 10)
    counts = [json.loads(file.read_text()) for file in sorted(output.glob("stages/*/counts.json"))]
    assert [each["stage"] for each in counts] == [
        "questions",
        "leaks",
        "shares",
        "answers",
        "corrections",
        "people",
        "filter",
        "check",
    ]
    for each in counts:
        assert each["into"] == each["kept"] + sum(each["dropped"].values())
    rows = lines(output / "train.jsonl")
    assert len(rows) == counts[-1]["kept"] and counts[3]["into"] == 48
    dropped = sum(len(lines(file)) for file in sorted(output.glob("stages/*/dropped.jsonl"))[3:])
    assert f"48 pairs = {len(rows)} kept + {dropped} dropped" in (output / "kept.md").read_text()
    assert set(rows[0]) >= {"question", "answer", "correction", "upstream", "annotator", "source", "origin"}
    assert (output / "kept.png").stat().st_size > 10_000
    assert main(["push", str(output), "me/data", "--dry_run"]) == 0
    uploaded = capsys.readouterr().out
    assert "train.jsonl" in uploaded and "building.yaml" not in uploaded
    published = "".join((output / name).read_text() for name in ("train.jsonl", "README.md", "kept.md"))
    assert str(tmp_path) not in published and server.url not in published
    [source] = mix([str(output)], 0).sources
    assert source.rows == len(rows) and source.build["name"] == "stand-ins"
    card = (output / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["configs"][0]["data_files"][0]["path"] == "train.jsonl"
    assert all(
        word in card
        for word in ("| asked | questions.jsonl | mit |", "  harmless:", "You improve an answer", "No person")
    )


def test_a_model_trained_on_a_build_names_it_in_its_card():
    from types import SimpleNamespace

    build = {
        "name": "support",
        "digest": "abc",
        "sources": {"tickets": "", "hh": "mit"},
        "upstreams": {"a": "m"},
        "annotators": {"b": "n"},
    }
    [line, _] = _builds(SimpleNamespace(data={"train": [{"build": build}, {"build": None}]}))
    assert (
        "`support` (abc)" in line
        and "tickets (licence not said), hh (mit)" in line
        and "answers by a; corrections by b" in line
    )


def test_a_model_here_answers_beside_served_ones(tiny_model, tmp_path):
    with stand_in_models() as server:
        config = write_config(tmp_path, server, real_questions(6))
        settings = yaml.safe_load(config.read_text())
        local = {
            "name": "here",
            "folder": str(tiny_model),
            "max_tokens": 4,
            "temperature": 0.5,
            "top_k": 10,
            "batch_size": 6,
        }
        settings["answers"] = {"upstreams": [local, settings["answers"]["upstreams"][1]], "keep_unfinished": True}
        config.write_text(yaml.safe_dump(settings))
        assert build(config, tmp_path / "build") == 0 and server.by_model["polite"] == 6
    counts = json.loads((tmp_path / "build/stages/4-answers/counts.json").read_text())
    assert counts["into"] == 12 and counts["cost"]["here"]["calls"] == 6
    upstreams = {row["upstream"]: row["upstream_model"] for row in lines(tmp_path / "build/train.jsonl")}
    assert upstreams == {"here": tiny_model.name, "polite": "polite"}


def test_the_cap_ends_a_build_before_it_is_passed_and_a_higher_one_goes_on(tmp_path, capsys):
    with stand_in_models() as server:
        config = write_config(tmp_path, server, real_questions(12), cap=0.2)
        output = tmp_path / "build"
        assert build(config, output) == 2
        shown = capsys.readouterr()
        assert "the cap is 0.2: it will be reached" in shown.out and "the cap of 0.2 USD is reached" in shown.err
        paid = sum(line["cost"] for line in lines(output / "replies/replies.jsonl"))
        assert 0.05 < paid <= 0.2 and not (output / "stages/5-corrections").exists()
        settings = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump({**settings, "cap": 5}))
        assert build(config, output) == 0 and server.paid_twice == 0


def test_a_filter_says_what_a_correction_lacks():
    text = {"sources": [{"data": "a"}], **_models(), "filter": {"unchanged": 0.5, "longest": 200, "most_edit": 0.8}}
    base = {"question": "Is it far?", "answer": "No, it is quite near, I think.", "harmful": False}
    corrections = {
        "kept": "No, it is quite near, I believe.", "same": base["answer"], "same too": base["answer"],
        "refuses": "I'm sorry, but I can't help with that.", "all new": "WXYZ ZZZ VWXYZ WWW", "long": base["answer"] * 10,
        "marker": "No, it is quite near.\n##Answer: no",
    }  # fmt: skip
    sieve = filter_corrections(
        [{**base, "id": name, "correction": each} for name, each in corrections.items()], _config(text)
    )
    reasons = {row["id"]: row["reason"] for row in sieve.dropped}
    same = {"same", "same too"} - {row["id"] for row in sieve.kept}
    assert {row["id"] for row in sieve.kept} == {"kept", "same", "same too"} - same and len(same) == 1
    assert reasons["refuses"] == "refuses a harmless question" and reasons["long"] == "too long"
    assert reasons["all new"].startswith("changed everything") and reasons["marker"] == "holds a prompt's marker"
    assert "share of unchanged rows is full" in reasons[same.pop()]


def test_a_judges_verdicts_decide_where_their_file_is_named(tmp_path):
    answer, corrections = (
        "No, it is near.",
        {"better": "No, it is quite near.", "worse": "No, it is near!", "unjudged": "It is near."},
    )
    rows = [
        {"id": name, "question": "Far?", "answer": answer, "correction": text} for name, text in corrections.items()
    ]
    file = tmp_path / "verdicts.jsonl"
    outcomes = {"better": 1, "worse": -1}
    verdicts = [
        {
            "question": "Far?",
            "answer": answer,
            "corrected": corrections[name],
            "dimension": "helpful",
            "outcome": outcome,
        }
        for name, outcome in outcomes.items()
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in verdicts))
    sieve = filter_corrections(
        rows, _config({"sources": [{"data": "a"}], **_models(), "filter": {"verdicts": str(file)}})
    )
    assert [row["id"] for row in sieve.kept] == ["better"]
    assert {row["id"]: row["reason"] for row in sieve.dropped} == {
        "worse": "verdict: not better",
        "unjudged": "verdict: none was read",
    }


# People


def test_cohens_kappa_is_that_of_a_textbook():
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4), "50 grants read by two (a common example)"
    assert cohens_kappa([("yes", "yes")] * 3) is None and cohens_kappa([]) is None
    figures = agreement({"1": {"a": "x", "b": "x"}, "2": {"a": "x", "b": "y"}, "3": {"a": "y"}})
    assert (figures["rows"], figures["same"]) == (2, 1)


def test_what_two_readers_say_alike_holds_and_else_what_the_second_reader_says():
    edited = [
        Opinion("r", 1, "a", "edited", "This is much better now."),
        Opinion("r", 1, "b", "edited", "This is much better, now."),
    ]
    assert decide(edited, 2) == Decision("edited", "This is much better now.")
    differing = [Opinion("r", 1, "a", "draft"), Opinion("r", 1, "b", "answer")]
    assert decide(differing, 2) is None and decide(differing[:1], 2) is None
    assert decide([*differing, Opinion("r", 2, "c", "neither")], 2) == Decision("neither", "")


def said_in_label_studio(tasks: list[dict], reader: int, verdict_of) -> list[dict]:
    """Tasks as Label Studio exports them once a reader has done them."""
    for task in tasks:
        verdict, text = verdict_of(task["data"])
        result = [{"from_name": "verdict", "to_name": "answer", "type": "choices", "value": {"choices": [verdict]}}]
        result += (
            [{"from_name": "correction", "to_name": "answer", "type": "textarea", "value": {"text": [text]}}]
            if text
            else []
        )
        task.setdefault("annotations", []).append({"completed_by": reader, "was_cancelled": False, "result": result})
    return tasks


def test_people_read_in_both_tools_a_second_reader_decides_and_agreement_is_counted(tmp_path, capsys):
    with stand_in_models() as server:
        config = write_config(tmp_path, server, real_questions(12), people={"review": 0.5, "readers": 2})
        output = tmp_path / "build"
        assert build(config, output) == 1
        assert "rows wait for people" in capsys.readouterr().out and not (output / "train.jsonl").exists()
        tasks = json.loads((output / "people/readers.label-studio.json").read_text())
        ids = [task["data"]["row"] for task in tasks]
        odd = set(ids[::4])
        said_in_label_studio(
            tasks, 1, lambda data: ("edited", "My own words.") if data["row"] in ids[1::4] else ("draft", "")
        )
        export = tmp_path / "label-studio-export.json"
        export.write_text(json.dumps(tasks))
        records = json.loads((output / "people/readers.argilla.json").read_text())
        for record in records:
            row = record["metadata"]["row"]
            verdict = "answer" if row in odd else "edited" if row in ids[1::4] else "draft"
            record["responses"] = {"verdict": [{"value": verdict, "user_id": "ann", "status": "submitted"}]}
            if verdict == "edited":
                record["responses"]["correction"] = [{"value": "My own words!", "user_id": "ann"}]
        (tmp_path / "argilla-export.json").write_text(json.dumps(records))
        assert build(config, output, "--annotations", export) == 1, "one reader is not enough"
        assert build(config, output, "--annotations", tmp_path / "argilla-export.json") == 1
        seconds = json.loads((output / "people/second-reader.label-studio.json").read_text())
        assert {task["data"]["row"] for task in seconds} == odd and "Reader 2: the answer is good" in seconds[0][
            "data"
        ]["remarks"]
        assert not (output / "people/readers.label-studio.json").exists()
        export.write_text(json.dumps(said_in_label_studio(seconds, 3, lambda data: ("neither", ""))))
        assert build(config, output, "--annotations", export) == 0 and server.paid_twice == 0
    counts = json.loads((output / "stages/6-people/counts.json").read_text())
    assert counts["agreement"]["rows"] == len(ids) and counts["agreement"]["same"] == len(ids) - len(odd)
    assert counts["second reader"] == len(odd) == sum(counts["dropped"].values())
    read = {row["id"]: row for row in lines(output / "stages/6-people/rows.jsonl")}
    assert {read[row]["correction"] for row in ids[1::4]} == {"My own words."}
    assert "Cohen's kappa" in (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ({"question": "x"}, "no row of Label Studio's or Argilla's JSON"),
        ({"data": {"row": "r"}, "annotations": [{"result": [], "completed_by": 1}]}, "reader 1 says nothing"),
        ({"data": {"row": "r"}, "annotations": ["yes"]}, "an annotation of another form"),
        (
            {"metadata": {"row": "r"}, "responses": {"verdict": [{"value": "edited", "user_id": "u"}]}},
            "says 'edited' and wrote nothing",
        ),
    ],
)
def test_an_export_that_says_nothing_usable_is_named(row, finding, tmp_path):
    (tmp_path / "export.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=finding):
        list(read_opinions(str(tmp_path / "export.json")))


def test_rows_without_a_draft_go_to_people_and_their_own_words_are_the_correction(tmp_path):
    rows = [{"id": "r", "question": "Q?", "answer": "A.", "correction": None}]
    desk = Desk(tmp_path, PeopleConfig(readers=1))
    waiting, files = desk.lay_out(rows)
    assert waiting == 1 and json.loads(files[0].read_text())[0]["data"]["draft"] == ""


# Settings


def test_the_ready_configurations_and_their_principles_are_read():
    files = sorted(file for file in (ROOT / "configs/building").glob("*.yaml") if "principles" not in file.name)
    assert [file.stem for file in files] == ["empathy", "paper", "support"]
    for file in files:
        config = read_config(str(file))
        assert read_principles(config.corrections.principles).principles
    paper = read_config(str(ROOT / "configs/building/paper.yaml"))
    assert len(paper.answers.upstreams) == 8 and {each.top_k for each in paper.answers.upstreams} == {10}
    assert sum(each.share for each in paper.answers.upstreams) == pytest.approx(97.12)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"sorces": []}, "'sorces' is not known. Did you mean 'sources'?"),
        ({"sources": []}, "sources: none is named"),
        ({"sources": [{"data": "a", "share": 1}, {"data": "b"}]}, "some have a share and some have none"),
        ({"cap": "ten"}, "cap: holds text, not a number"),
        ({"answers": {"upstreams": [{"name": "m"}]}}, "'m' needs either url and model, or folder"),
        ({"answers": {"upstreams": [{"name": "people"}]}}, "'people' only correct"),
        ({"filter": {"unchanged": 2}}, "filter.unchanged: it is a share"),
        ({"leaks": {"sets": "xstest"}}, "leaks.sets: holds text, not a list"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named_before_anything_is_read(change, finding, tmp_path):
    file = tmp_path / "building.yaml"
    file.write_text(yaml.safe_dump({"sources": [{"data": "a"}], **_models(), **change}))
    with pytest.raises(UserError) as error:
        read_config(str(file))
    assert finding in str(error.value) and str(file) in str(error.value)


def test_principles_that_lack_a_slot_are_named(tmp_path):
    text = yaml.safe_load((ROOT / "configs/building/principles.yaml").read_text())
    file = tmp_path / "principles.yaml"
    file.write_text(yaml.safe_dump({**text, "prompt": text["prompt"].replace("{answer}", "")}))
    with pytest.raises(UserError, match=r"'prompt' needs .*answer"):
        read_principles(str(file))


@pytest.mark.slow
@pytest.mark.parametrize("seed", (42, 1, 2))
def test_planted_duplicates_and_leaks_are_found_and_hardly_a_true_question_is_lost(seed, tmp_path):
    """Of 300 and of 60, among 2,576 real questions."""
    from tests.benchmarks.building import measure

    pytest.importorskip("rensa")
    pytest.importorskip("py3langid")
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data")
    figures = measure(seed, SHARED, tmp_path)
    print(figures)
    assert figures["near duplicate"] >= 0.95 * 300 and figures["leaks"] >= 58
    assert figures["lost"] <= 0.01 * figures["true"]


@pytest.mark.slow
def test_a_model_trains_on_a_build_and_its_card_names_it(tiny_model, tmp_path):
    with stand_in_models() as server:
        config = write_config(tmp_path, server, real_questions(12), check={"model_name_or_path": str(tiny_model)})
        assert build(config, tmp_path / "build") == 0
    rows, out = len(lines(tmp_path / "build/train.jsonl")), tmp_path / "sft"
    flags = [
        "--train_datasets",
        tmp_path / "build",
        "--model_name_or_path",
        tiny_model,
        "--output_dir",
        out,
        "--gpus",
        1,
    ]
    done = sft(*flags, "--epochs", 1, "--records_per_update", (rows + 1) // 2, "--identity_proportion", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    log = lines(out / "train_log.jsonl")
    print(rows, log)
    assert [line["update"] for line in log if "loss" in line] == [1, 2]
    card = read_card(out)
    assert card and card.data["train"][0]["rows"] == rows
    assert "as `stand-ins`" in model_card(card, "me/aligner") and "asked (mit)" in model_card(card, "me/aligner")
