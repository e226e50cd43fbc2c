"""Corrections on request: objectives by name or in words, in rows, flags, requests and published prompts; rated answers."""

from __future__ import annotations

import json
import subprocess
import sys

import openai
import pytest
import requests
import yaml
from conftest import ROOT
from layered import ask, client, exchange, serving
from scripted import TEXT, scripted_upstream, writing_model
from test_correct_file import lines, write
from test_standing import card, flags

from aligner.cli import main
from aligner.inference.corrector import Corrector, Settings
from aligner.inference.guard import Guard
from aligner.known_prompts import FEEDBACK, KNOWN, METAALIGNER_HH_RLHF, OBJECTIVES
from aligner.objectives import PUBLISHED, read_objectives, sentences, split_objectives
from aligner.prompts import PromptTemplate
from aligner.records import Correction, DataError, Skipped, UserError
from aligner.training.datasets.mixture import mix
from aligner.training.datasets.options import Options
from aligner.training.datasets.rated import length_ratios
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import parse_spec

SENTENCES = read_objectives()
QAC = {"question": "Q", "answer": "A", "correction": "C"}


@pytest.mark.parametrize(
    ("value", "objectives"),
    [
        ("harmless,concise", ("harmless", "concise")),
        (" harmless , concise ", ("harmless", "concise")),
        ("Be brief, and kind", ("Be brief, and kind",)),
        (["concise", "Be kind, please"], ("concise", "Be kind, please")),
        ("no-repetition", ("no-repetition",)),
        ("", ()),
        (None, ()),
    ],
)
def test_names_have_commas_between_them_and_a_sentence_is_one_objective(value, objectives):
    assert split_objectives(value) == objectives


def test_a_name_is_its_sentence_any_text_itself_and_a_misspelt_name_an_error_with_the_nearest():
    assert sentences(["concise", "in rhymes, please"], SENTENCES) == f"{SENTENCES['concise']}; in rhymes, please"
    with pytest.raises(UserError, match=r"no objective 'harmles' here. Did you mean harmless"):
        sentences(["harmles"], SENTENCES)


@pytest.mark.parametrize("content", ["- concise", "concise: 3", "'two words': Be brief", "concise: ''", "3"])
def test_a_file_of_objectives_holds_names_and_sentences_alone(content, tmp_path):
    (tmp_path / "o.yaml").write_text(content)
    with pytest.raises(UserError, match="write one line an objective, NAME: SENTENCE"):
        read_objectives(str(tmp_path / "o.yaml"))


def test_feedback_and_objectives_are_one_slot_with_two_names():
    assert OBJECTIVES.takes_feedback and OBJECTIVES.slots == FEEDBACK.slots
    assert OBJECTIVES.render("Q", "A", "be brief").endswith("##Objectives: be brief\n##Correction:  ASSISTANT:")
    with pytest.raises(UserError, match=r"more than one \{feedback\}"):
        PromptTemplate("both", "{question} {answer} {feedback} {objectives}")
    with pytest.raises(UserError, match=r"\{objectivs\}. Did you mean \{objectives\}"):
        PromptTemplate("typing error", "{question} {answer} {objectivs}")


ASKED = [{**QAC, "question": f"Q{n}", "objectives": ["concise", "harmless", "polite", "in verse"]} for n in range(6)]


def test_rows_learn_their_objectives_sentences_in_an_order_that_seed_and_row_decide(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(ASKED))
    texts = [record.feedback for record in mix([str(file)], 1, prompt="objectives", objectives=SENTENCES).records]
    whole = {SENTENCES["concise"], SENTENCES["harmless"], SENTENCES["polite"], "in verse"}
    assert all(set(text.split("; ")) == whole for text in texts) and len(set(texts)) > 1
    code = (
        "import json,sys; from aligner.training.datasets.mixture import mix; from aligner.objectives import read_objectives;"
        "print(json.dumps([r.feedback for r in mix([sys.argv[1]], 1, prompt='objectives', objectives=read_objectives()).records]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(other.stdout) == texts, "another process"
    assert [
        record.feedback for record in mix([str(file)], 2, prompt="objectives", objectives=SENTENCES).records
    ] != texts, "another seed"


def test_a_name_that_no_file_knows_is_a_fault_of_its_row(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([QAC, {**QAC, "objectives": "concis"}]))
    with pytest.raises(DataError, match=r"row 2: there is no objective 'concis' here. Did you mean concise"):
        mix([str(file)], 1, prompt="objectives", objectives=SENTENCES)


def test_where_no_prompt_asks_for_objectives_a_field_of_that_name_is_no_fault_and_names_are_counted_as_not_read(
    tmp_path,
):
    file, known = tmp_path / "rows.json", {**SENTENCES}
    file.write_text(
        json.dumps([{**QAC, "objectives": {"of": "another kind"}}, {**QAC, "objectives": "nobody-knows-it"}])
    )
    first, second = mix([str(file)], 1, objectives=known).records
    assert (first.objectives, first.feedback) == ((), "") and second.feedback == "nobody-knows-it", (
        "for the tally of what is unread"
    )
    with pytest.raises(DataError, match=r"row 1: correction-json: 'objectives' is neither text nor a list of texts"):
        mix([str(file)], 1, prompt="objectives", objectives=known)


def test_the_card_keeps_the_sentences_of_the_runs_file(tiny_model, tmp_path):
    rows, file = tmp_path / "rows.json", tmp_path / "mine.yaml"
    rows.write_text(json.dumps([{**QAC, "objectives": "kind"}, {**QAC, "question": "Q2"}]))
    file.write_text("kind: Be kind\n")
    run = ["--train_datasets", str(rows), "--prompt_template", "objectives", "--objectives_file", str(file)]
    made, _, _ = card([*flags(tiny_model, tmp_path / "out"), *run])
    assert made.objectives == {"kind": "Be kind"}
    plain, _, _ = card(flags(tiny_model, tmp_path / "out"))
    assert plain.objectives == {} and "objectives" not in plain.data["deciding"], "runs without any are what they were"


@pytest.fixture(scope="module")
def aligner_on_request(bpe_folder, tmp_path_factory):
    """A model that writes one text, and whose card knows the objective 'kind' alone."""
    folder = writing_model(bpe_folder, tmp_path_factory.mktemp("asked"), TEXT)
    deciding = {"objectives": {"kind": "Be kind", "short": "Be short"}}
    about = {"prompt": {"name": "objectives", "text": OBJECTIVES.text}, "data": {"deciding": deciding}, "settings": {}}
    rest = {"stage": "correction", "base_model": "b", "base_model_sha256": "", "max_length": 9, "records_per_update": 1}
    (folder / "aligner.json").write_text(json.dumps({**about, **rest}))
    return str(folder)


@pytest.fixture
def prompts_read(monkeypatch):
    """The prompts that models have read since, as text."""
    texts, row = list[str](), Corrector.row

    def reading(corrector, ids, answer, index):
        texts.append(corrector.encoder.tokenizer.decode(ids))
        return row(corrector, ids, answer, index)

    monkeypatch.setattr(Corrector, "row", reading)
    return texts


def test_a_file_is_corrected_with_the_objectives_of_its_rows_or_else_of_the_command(
    aligner_on_request, prompts_read, tmp_path, capsys
):
    rows = [{"question": "Q", "answer": "A"}, {"question": "Q", "answer": "A", "objectives": ["short", "in verse"]},
            {"question": "Q", "answer": "A", "objectives": "shrt"}]  # fmt: skip
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = [
        "correct",
        "--model",
        aligner_on_request,
        "--input",
        source,
        "--output",
        str(out),
        "--max_new_tokens",
        "30",
    ]
    assert main([*command, "--objectives", "kind"]) == 1
    assert sorted(text.partition("##Objectives: ")[2].partition("\n")[0] for text in prompts_read) == [
        "Be kind",
        "Be short; in verse",
    ]
    assert "no objective 'shrt' here. Did you mean short" in lines(out)[2]["error"]
    capsys.readouterr()
    assert main([*command[:-2], "--objectives", "harmless"]) == 2
    assert "there is no objective 'harmless' here. Did you mean kind, short?" in capsys.readouterr().err


def test_rows_objectives_that_no_prompt_takes_are_counted_and_those_of_another_kind_are_not(
    tiny_model, tmp_path, capsys
):
    rows = [{"question": "Q", "answer": "A", "objectives": each} for each in ("concise", {"of": "another kind"}, 5)]
    source, out = write(tmp_path / "in.jsonl", rows), str(tmp_path / "out.jsonl")
    command = [
        "correct",
        "--model",
        str(tiny_model),
        "--prompt_template",
        "correction",
        "--input",
        source,
        "--output",
        out,
    ]
    assert main([*command, "--max_new_tokens", "4"]) == 0
    assert "1 rows have feedback, which the Aligner's prompt has no slot for" in capsys.readouterr().out


def test_a_prompt_without_the_slot_refuses_objectives(tiny_model, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"question": "Q", "answer": "A"}])
    command = ["correct", "--model", str(tiny_model), "--prompt_template", "correction", "--input", source]
    assert main([*command, "--output", str(tmp_path / "out"), "--objectives", "concise"]) == 2
    assert "--objectives: the prompt 'correction' has no slot for it" in capsys.readouterr().err


def test_a_request_asks_by_the_models_name_or_by_a_header(aligner_on_request, prompts_read):
    corrector = Corrector.load(aligner_on_request, settings=Settings(4, 30))
    with scripted_upstream() as upstream, serving(exchange(corrector, upstream.url, guard=Guard())) as address:
        upstream.rule = lambda path, body: (
            200,
            {},
            json.dumps(
                {"object": "list", "data": [{"id": "llama:7b"}]}
                if path.endswith("/models")
                else {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "A"}}]}
            ).encode(),
        )
        listed = [model.id for model in client(address).models.list().data]
        assert listed == ["llama:7b", "aligner:kind", "aligner:short"]
        for model, header, sent, objectives in (
            ("llama:7b", None, "llama:7b", ""),
            ("aligner", None, "aligner", ""),
            ("aligner:kind+short", None, "llama:7b", "Be kind; Be short"),
            ("mine:short", None, "mine", "Be short"),
            ("mine", "kind", "mine", "Be kind"),
            ("mine", "in verse", "mine", "in verse"),
        ):
            headers = {"x-aligner-objectives": header} if header else {}
            messages = [{"role": "user", "content": "Q"}]
            reply = client(address).chat.completions.create(model=model, messages=messages, extra_headers=headers)
            assert reply.choices[0].message.content == TEXT
            assert upstream.asked[-1][1]["model"] == sent and "x-aligner-objectives" not in upstream.headers[-1]
            assert f"##Objectives: {objectives}\n" in prompts_read[-1]
        with pytest.raises(openai.BadRequestError, match=r"no objective 'kin' here\. Did you mean kind"):
            client(address).chat.completions.create(model="aligner:kin", messages=messages)


def test_an_aligner_without_the_slot_lists_nothing_and_refuses_a_request_for_objectives(bpe_folder, tmp_path):
    corrector = Corrector.load(str(writing_model(bpe_folder, tmp_path, TEXT)), "correction", Settings(4, 30))
    with scripted_upstream() as upstream, serving(exchange(corrector, upstream.url, guard=Guard())) as address:
        upstream.replies({"object": "list", "data": [{"id": "m"}]})
        assert requests.get(f"{address}/v1/models").json() == {"object": "list", "data": [{"id": "m"}]}
        upstream.says({"content": "A"})
        messages = [{"role": "user", "content": "Q"}]
        client(address).chat.completions.create(model="aligner:latest", messages=messages)
        assert upstream.asked[-1][1]["model"] == "aligner:latest", "a name that an upstream may have"
        assert ask(address).choices[0].message.content == TEXT
        with pytest.raises(openai.BadRequestError, match="no slot for them"):
            ask(address, extra_headers={"x-aligner-objectives": "kind"})


def test_a_dialogue_of_five_turns_reads_as_the_published_models_were_trained():
    """MetaAligner's data builder joins HH-RLHF's own text: '\\n\\nAssistant:'.join(...) + ' ' + '\\n\\nAssistant:'."""
    turns = ["Human: Q1", "Assistant: A1", "Human: Q2", "Assistant: A2", "Human: Q3"]
    chosen = "".join(f"\n\n{turn}" for turn in turns) + "\n\nAssistant: good"
    parts = chosen.split("\n\nAssistant:")
    context = "\n\nAssistant:".join(parts[:-1]) + " " + "\n\nAssistant:"
    aspects = "; ".join(
        [
            "Harmlessness: The response should avoid content that is offensive, discriminatory, or harmful",
            "Helpfulness: The response should provide useful resources and suggestions to the user",
        ]
    )
    theirs = (
        "You are an assistant to human. You will be provided with a context and an answer. "
        "Consider the context, then edit the answer to improve it considering these aspects: {aspects} | "
        "Context: {question} | Answer: {answer} | Edit: "
    ).format(aspects=aspects, question=context, answer="bad")
    ours = sentences(["harmless", "helpful"], read_objectives(PUBLISHED["metaaligner-hh-rlhf"]))
    assert METAALIGNER_HH_RLHF.render("\n\n".join(turns), "bad", ours) == theirs
    one = METAALIGNER_HH_RLHF.render("Q1", "bad", ours)
    assert "Context: \n\nHuman: Q1 \n\nAssistant: | Answer: bad | Edit: " in one


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_prompts_bring_their_own_sentences(name, tiny_model, tmp_path, prompts_read):
    first = next(iter(yaml.safe_load((ROOT / PUBLISHED[name]).read_text()).items()))
    corrector = Corrector.load(str(tiny_model), name, Settings(1, 4))
    corrector.correct([("Q", "A")], objectives=[first[0]])
    assert f"{first[1]}" in prompts_read[0] and prompts_read[0].endswith("Answer: A | Edit: ")
    assert KNOWN[name].takes_feedback


def rated(name, rows, tmp_path, **options):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = list(records_of(parse_spec(f"{name}::{file}"), Options(**options)))
    return [(r.answer, r.correction, set(r.objectives)) if isinstance(r, Correction) else r.reason for r in read]


def answers(*ratings):
    return {"question": "Q", "answers": [{"text": f"a{n}", "ratings": each} for n, each in enumerate(ratings)]}


BETTER = answers({"helpful": 5, "concise": 1, "honest": 3}, {"helpful": 4, "concise": 4, "honest": 3})


def test_the_answer_that_is_better_in_some_objectives_is_the_target_and_they_stand_in_the_prompt(tmp_path):
    both = [("a1", "a0", {"helpful"}), ("a0", "a1", {"concise"})]
    assert rated("rated-json", [BETTER], tmp_path) == both
    assert rated("rated-json", [BETTER], tmp_path, margin=2.0) == both[1:], "a difference of 1 is none"
    assert rated("rated-json", [BETTER], tmp_path, pairs="majority") == [
        "each of two answers is better in as many objectives"
    ]
    three = answers({"helpful": 5, "honest": 5, "concise": 1}, {"helpful": 4, "honest": 4, "concise": 4})
    assert rated("rated-json", [three], tmp_path, pairs="majority") == [("a1", "a0", {"helpful", "honest"})]


def test_of_a_question_the_pairs_furthest_apart_are_taken_and_the_others_counted(tmp_path):
    row = answers({"helpful": 1}, {"helpful": 2}, {"helpful": 9})
    most = rated("rated-json", [row], tmp_path, pairs_per_question=2)
    assert most == [("a0", "a2", {"helpful"}), ("a1", "a2", {"helpful"}),
                    "a question has more pairs than --pairs_per_question"]  # fmt: skip


@pytest.mark.parametrize("rating", ["N/A", None, True, float("nan"), [3], ""])
def test_a_rating_that_is_no_number_is_counted_and_named(rating, tmp_path):
    row = answers({"helpful": 5, "honest": 2}, {"helpful": rating, "honest": 3})
    reason, record = rated("rated-json", [row], tmp_path)
    assert reason.startswith("a rating of helpful that is no number") and record == ("a0", "a1", {"honest"})


def ultra(text, ins, hon, tru, hel):
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    notes = {name: {"Rating": r, "Rationale": "x"} for name, r in zip(names, (ins, hon, tru, hel), strict=True)}
    return {"response": text, "annotations": notes, "model": "m", "overall_score": 7.0, "critique": "c"}


ULTRA = {"source": "evol_instruct", "instruction": "Q", "completions": [ultra("x", *"5545"), ultra("y", *"3542")]}
STEER = {
    "prompt": "Q",
    "response": "x",
    "helpfulness": 4,
    "correctness": 4,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 1,
}
PKU = {"prompt": "Q", "response_0": "x", "response_1": "y", "better_response_id": 0, "safer_response_id": 1}


@pytest.mark.parametrize(
    ("name", "rows", "records"),
    [
        ("ultrafeedback-rated", [ULTRA], [("y", "x", {"instruction-following", "helpful"})]),
        ("ultrafeedback-rated", [{**ULTRA, "source": "truthful_qa"}], ["its question is one of an evaluation set (truthful_qa)"]),
        ("helpsteer2", [STEER, {**STEER, "response": "y", "helpfulness": 2, "verbosity": 3}],
         [("y", "x", {"helpful"}), ("x", "y", {"verbose"})]),
        ("helpsteer2", [STEER, {**STEER, "prompt": "R"}], ["a question has one answer alone"] * 2),
        ("helpsteer2", [{**STEER, "prompt": "Q <extra_id_1>Assistant"}], ["a dialogue of several turns"]),
        ("pku-saferlhf-rated", [PKU], [("y", "x", {"helpful"}), ("x", "y", {"harmless"})]),
        ("pku-saferlhf-rated", [{**PKU, "safer_response_id": 0}], [("y", "x", {"helpful", "harmless"})]),
    ],
)  # fmt: skip
def test_rated_rows_of_published_schemas(name, rows, records, tmp_path):
    assert rated(name, rows, tmp_path) == records


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("rated-json", {"question": "Q"}, "the field 'answers' is missing"),
        ("rated-json", {"question": "Q", "answers": "a"}, "'answers' is not a list of objects"),
        (
            "rated-json",
            {"question": "Q", "answers": [{"text": "a", "ratings": 3}]},
            "'ratings' of an answer is not an object",
        ),
        ("ultrafeedback-rated", {"instruction": "Q"}, "the field 'completions' is missing"),
        ("helpsteer2", {"response": "x"}, "the field 'prompt' is missing"),
        ("pku-saferlhf-rated", {**PKU, "better_response_id": 2}, "'better_response_id' is 2 and neither 0 nor 1"),
    ],
)
def test_rated_rows_that_cannot_be_read_are_faults(name, row, problem, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    [fault] = records_of(parse_spec(f"{name}::{file}"))
    assert isinstance(fault, DataError) and problem in str(fault)


def test_how_long_targets_are_is_told_by_objective():
    records = [Correction("Q", "1234", "12", objectives=("concise",)), Correction("Q", "12", "1234", objectives=("detailed",)),
               Correction("Q", "12", "12", objectives=("concise", "detailed")), Correction("Q", "1", "2")]  # fmt: skip
    assert length_ratios(records) == {"concise": (2, 0.75), "detailed": (2, 1.5)}


def test_rows_left_out_of_rated_data_are_skipped_not_lost(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(BETTER) + "\n" + json.dumps(answers({"helpful": 1}, {"helpful": 1})) + "\n")
    mixture = mix([f"rated-json::{file}"], 1, objectives=SENTENCES)
    assert len(mixture.records) == 2 and [type(each) for each in mixture.skipped] == [Skipped]
    assert {record.prompt for record in mixture.records} == {"objectives"}
    assert mixture.records[0].feedback == SENTENCES["helpful"]
