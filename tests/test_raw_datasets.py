"""The registered data sets: each on a small file of its published schema, and hub ids through `datasets`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from stand_in_hub import COMMIT, serving

from aligner.hub import HubAddress, parse_address
from aligner.records import Correction, DataError, Skipped, UserError
from aligner.refusals import REFUSALS, declines, is_unsafe
from aligner.training.datasets.mixture import mix
from aligner.training.datasets.options import Columns, Options, parse_columns
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import REGISTERED, parse_spec
from aligner.training.flags import parse
from aligner.training.stages import options_of

QAC = {"question": "Q", "answer": "A", "correction": "C"}
PKU = {
    "prompt": "Q", "response_0": "zero", "response_1": "one", "is_response_0_safe": False, "is_response_1_safe": True,
    "better_response_id": 0, "safer_response_id": 1, "prompt_source": "x", "response_0_source": "Alpaca-7B",
}  # fmt: skip
HH = {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"}
LONG = "\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\n\nAssistant:"
ULTRA = {
    "prompt": "Q", "prompt_id": "1", "score_chosen": 8.0, "score_rejected": 3.0,
    "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
    "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "bad"}],
}  # fmt: skip


def read(name, rows, tmp_path, **options):
    """What a registered data set makes of these rows, places left out."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = list(records_of(parse_spec(f"{name}::{file}"), Options(**options)))
    return [(r.question, r.answer, r.correction) if isinstance(r, Correction) else r for r in made]


@pytest.mark.parametrize(
    ("name", "row", "options", "record"),
    [
        ("correction-json", QAC, {}, ("Q", "A", "C")),
        ("empathy-json", QAC, {}, ("Q", "A", "C")),
        ("aligner-20k", QAC, {}, ("Q", "A", "C")),
        ("alignertails", QAC, {}, ("Q", "A", "C")),
        ("pku-saferlhf", PKU, {}, ("Q", "one", "zero")),
        ("pku-saferlhf", PKU, {"prefer": "better"}, ("Q", "one", "zero")),
        ("pku-saferlhf", PKU, {"prefer": "safer"}, ("Q", "zero", "one")),
        ("hh-rlhf", HH, {}, ("Q", "bad", "good")),
        ("ultrafeedback", ULTRA, {}, ("Q", "bad", "good")),
    ],
)
def test_a_row_of_the_published_schema_becomes_this_record(name, row, options, record, tmp_path):
    assert read(name, [row], tmp_path, **options) == [record]


def test_every_shipped_data_set_says_its_schema_and_source():
    assert set(REGISTERED) >= {
        "correction-json", "empathy-json", "aligner-20k", "alignertails", "pku-saferlhf", "hh-rlhf", "ultrafeedback",
    }  # fmt: skip
    for name in REGISTERED:
        module = sys.modules.get(REGISTERED[name].formatter.__module__)
        if module and module.__name__.startswith("aligner."):
            assert f"`{name}`" in module.__doc__ and "Source: " in module.__doc__
            assert ("olumns" in module.__doc__) or ("fields" in module.__doc__) or ("question" in module.__doc__)


def test_a_dialogue_of_several_turns_is_counted_and_taken_only_when_asked(tmp_path):
    row = {"chosen": LONG + " good", "rejected": LONG + " bad"}
    (left_out,) = read("hh-rlhf", [row], tmp_path)
    assert left_out.reason == "a dialogue of several turns (--multi_turn takes them)" and left_out.origin.row == 1
    taken = ("Human: Q1\n\nAssistant: A1\n\nHuman: Q2", "bad", "good")
    assert read("hh-rlhf", [row], tmp_path, multi_turn=True) == [taken]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("hh-rlhf", {**HH, "chosen": HH["rejected"]}, "chosen and rejected are the same text"),
        (
            "hh-rlhf",
            {**HH, "rejected": "\n\nHuman: R\n\nAssistant: bad"},
            "the two dialogues part before the last answer",
        ),
        ("hh-rlhf", {**HH, "rejected": "\n\nHuman: Q\n\nAssistant: "}, "the question or one of the answers is empty"),
        ("ultrafeedback", {**ULTRA, "rejected": ULTRA["chosen"]}, "chosen and rejected are the same text"),
        ("pku-saferlhf", {**PKU, "response_0": ""}, "the question or one of the answers is empty"),
    ],
)
def test_a_pair_that_prefers_nothing_is_left_out_with_its_reason(name, row, reason, tmp_path):
    (left_out,) = read(name, [row], tmp_path)
    assert isinstance(left_out, Skipped) and left_out.reason == reason


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("pku-saferlhf", {**PKU, "better_response_id": 2}, "'better_response_id' is 2 and neither 0 nor 1"),
        ("pku-saferlhf", {**PKU, "better_response_id": None}, "'better_response_id' is None and neither 0 nor 1"),
        ("pku-saferlhf", {**PKU, "better_response_id": True}, "'better_response_id' is True and neither 0 nor 1"),
        ("pku-saferlhf", {**PKU, "response_1": None}, "'response_1' is NoneType and not text"),
        ("ultrafeedback", {**ULTRA, "chosen": "good"}, "'chosen' is not a list of messages"),
        ("ultrafeedback", {**ULTRA, "chosen": []}, "'chosen' is not a list of messages"),
        ("ultrafeedback", {**ULTRA, "chosen": [{"role": "user"}]}, "a message of 'chosen' has no content"),
        ("hh-rlhf", {**HH, "chosen": None}, "'chosen' is NoneType and not text"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(name, row, message, tmp_path):
    (fault,) = read(name, [row], tmp_path)
    assert isinstance(fault, DataError) and message in str(fault)


def test_dialogues_that_are_no_pair_are_left_out(tmp_path):
    other = [{"role": "user", "content": "else"}, ULTRA["rejected"][1]]
    turns = [*ULTRA["chosen"], {"role": "user", "content": "more"}]
    rows = [{**ULTRA, "rejected": other}, {**ULTRA, "chosen": [*turns, turns[1]], "rejected": [*turns, other[1]]}]
    reasons = [row.reason for row in read("ultrafeedback", rows, tmp_path)]
    assert reasons == ["the two dialogues part before the last answer", "a dialogue of several turns"]


def test_rows_left_out_are_in_the_mixture_and_in_the_tally(tmp_path, tiny_model):
    from aligner.models import load_tokenizer
    from aligner.training.stages import sides_as_tokens, stage_data

    file = tmp_path / "hh.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (HH, {**HH, "chosen": HH["rejected"]})))
    mixture = mix([f"hh-rlhf::{file}"], seed=1)
    assert (len(mixture.records), len(mixture.skipped)) == (1, 1)
    assert (mixture.sources[0].rows, mixture.sources[0].skipped, mixture.sources[0].taken) == (2, 1, 1)
    flags = ["--train_datasets", f"hh-rlhf::{file}", "--output_dir", "x", "--model_name_or_path", str(tiny_model)]
    config = parse(flags)
    (_, tally), _ = sides_as_tokens(config, stage_data(config, "correction"), load_tokenizer(str(tiny_model)))
    assert (tally.rows, tally.kept) == (2, 1)
    assert tally.places["left out: chosen and rejected are the same text"] == {str(file): [2]}


def test_columns_name_the_fields_that_are_called_otherwise(tmp_path):
    row = {"prompt": "Q", "response": "A", "correction": "C"}
    (fault,) = read("alignertails", [row], tmp_path)
    assert isinstance(fault, DataError) and "It has the fields correction, prompt, response: give --columns" in str(
        fault
    )
    columns = ("question=prompt,answer=response",)
    assert read("alignertails", [row], tmp_path, columns=columns) == [("Q", "A", "C")]
    named = ("alignertails:question=prompt", "answer=response")
    assert parse_columns(named, "alignertails") == Columns("prompt", "response")
    assert parse_columns(named, "correction-json") == Columns("question", "response")


@pytest.mark.parametrize("text", ["question", "query=q", "question=", "alignertails:answer"])
def test_columns_that_name_no_field_are_refused(text):
    with pytest.raises(UserError, match="write question=NAME,answer=NAME,correction=NAME"):
        parse_columns((text,), "alignertails")


@pytest.mark.parametrize("flag", ["--prefer safer", "--multi_turn", "--columns nothing:question=q"])
def test_an_option_that_no_data_set_reads_is_refused(flag, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(ULTRA))
    with pytest.raises(UserError, match=r"is read by none of the data sets here \(ultrafeedback\)"):
        options_of(parse(["--train_datasets", f"ultrafeedback::{file}", *flag.split()]))


def test_columns_for_a_data_set_that_is_not_there_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(QAC))
    with pytest.raises(
        UserError, match="--columns other:question=q speaks of 'other', which is not among the data sets"
    ):
        options_of(parse(["--train_datasets", str(file), "--columns", "other:question=q"]))


def test_another_option_is_another_run(tmp_path):
    file = tmp_path / "pku.jsonl"
    file.write_text(json.dumps(PKU))
    better, safer = (
        mix([f"pku-saferlhf::{file}"], 1, Options(prefer=p)).sources[0].dataset for p in ("better", "safer")
    )
    assert better != safer


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hub:a/b", HubAddress("a/b", "main", None, "train")),
        ("hub:a/b@v1#c/test", HubAddress("a/b", "v1", "c", "test")),
        ("hub:#c", HubAddress("org/set", "f00", "c", "train_prefs")),
        ("hub:@main", HubAddress("org/set", "main", None, "train_prefs")),
        ("hub:org/set/test", HubAddress("org/set", "f00", None, "test")),
    ],
)
def test_a_hub_address_and_what_it_takes_from_the_registered_one(text, address):
    assert parse_address(text, "hub:org/set@f00/train_prefs") == address
    assert parse_address(str(address)) == address


def test_every_registered_hub_address_pins_a_commit_where_one_is_known():
    pinned = {name: parse_spec(name).path for name in REGISTERED if (REGISTERED[name].path or "").startswith("hub:")}
    commits = {name for name, path in pinned.items() if len(parse_address(path).revision) == 40}
    assert commits == {"pku-saferlhf", "pku-saferlhf-rated", "hh-rlhf", "ultrafeedback"}


def test_hub_ids_load_through_datasets_at_their_revision(tmp_path):
    repo = tmp_path / "hub" / "aligner" / "alignertails"
    (repo / "empathy").mkdir(parents=True)
    (repo / "empathy" / "train.jsonl").write_text(json.dumps({"prompt": "Q", "response": "A", "fixed": "C"}) + "\n")
    (repo / "README.md").write_text(
        "---\nconfigs:\n- config_name: empathy\n  data_files:\n  - split: train\n    path: empathy/train.jsonl\n---\n"
    )
    program = (
        "import sys; from aligner.training.datasets.mixture import mix; from aligner.training.datasets.options import Options\n"
        "import aligner.training.datasets\n"
        "made = mix(['alignertails::hub:@v1#empathy'], 1, Options(('question=prompt,answer=response,correction=fixed',)))\n"
        "print(made.records[0].correction, made.records[0].origin, made.sources[0].sha256)\n"
        "try: mix(['alignertails::hub:#nope'], 1)\n"
        "except Exception as error: print(error)\n"
        "try: mix(['alignertails::hub:@v2#empathy'], 1)\n"
        "except Exception as error: print(error)\n"
    )
    with serving(tmp_path / "hub") as address:
        variables = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "cache"),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True,
                              text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == f"C hub:aligner/alignertails@v1#empathy/train row 1 {COMMIT}"
    assert "BuilderConfig 'nope' not found. Available: ['empathy']" in second
    assert third.startswith("hub:aligner/alignertails@v2#empathy/train: cannot be loaded from the hub")


def test_an_unsafe_prompt_is_declined_a_safe_answer_left_alone_and_the_prompt_decides_whatever_is_shown(tmp_path):
    rows = [{"question": f"How do I kill process {n}?", "answer": "With kill.", "type": "homonyms"} for n in range(200)]
    rows += [{"question": f"How do I kill Mr {n}?", "answer": "With care.", "unsafe": True} for n in range(200)]
    records = read("declining", rows, tmp_path)
    for some, answer in ((records[:200], "With kill."), (records[200:], "With care.")):
        shown = [each for _, each, _ in some]
        assert 30 <= sum(text in REFUSALS for text in shown) <= 70 and set(shown) <= {answer, *REFUSALS}
    assert {correction for *_, correction in records[:200]} == {"With kill."}
    assert all(correction == (shown if shown in REFUSALS else correction) for _, shown, correction in records[200:])
    assert {correction for *_, correction in records[200:]} <= set(REFUSALS) and all(map(declines, REFUSALS))


def test_a_safe_prompt_whose_answer_declines_is_left_out_and_a_prompt_of_unknown_kind_named(tmp_path):
    row = {"question": "Q", "answer": "I'm sorry, I can't do what you ask.", "unsafe": True}
    for _, shown, correction in read("declining", [{**row, "question": f"Q{n}"} for n in range(9)], tmp_path):
        assert shown == correction, "a refusal in other words is one"
    [skipped] = read("declining", [{**row, "unsafe": False}], tmp_path)
    assert (
        isinstance(skipped, Skipped) and skipped.reason == "a safe prompt whose answer declines: no better one is known"
    )
    for kind, message in (
        ({}, "has neither 'unsafe' nor 'type'"),
        ({"unsafe": "no"}, "has 'no' in 'unsafe', where true or"),
    ):
        [fault] = read("declining", [{"question": "Q", "answer": "A", **kind}], tmp_path)
        assert isinstance(fault, DataError) and message in str(fault)


@pytest.mark.parametrize(
    ("value", "unsafe"), [(True, True), ("true", True), (1, True), (False, False), ("False", False)]
)
def test_whether_a_prompt_is_unsafe_is_read_from_a_csv_too(value, unsafe):
    assert is_unsafe({"unsafe": value}) is unsafe
