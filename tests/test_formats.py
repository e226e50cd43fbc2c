"""Rows of other tools, in each tool's own published schema: what is read, and what is refused.

`python tests/test_formats.py` prints the table that stands in the page of the data sets.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT

from aligner.chat_api.dialogue import candidate_questions
from aligner.inference.corrector import Corrector, Settings
from aligner.inference.items import read_items
from aligner.records import Correction, DataError, Skipped, UserError
from aligner.serving.corrections import AnswerRequest, Failed
from aligner.serving.worker import Worker
from aligner.training.config import DataConfig
from aligner.training.datasets.formats import FORMATS, format_of_row
from aligner.training.datasets.options import Options
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import REGISTERED, parse_spec
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.supervised import tokenise

DIALOGUES = Options(multi_turn=True)
PLAIN = "plain.yaml"  # a prompt without {answer}


def said(*texts):
    """A chat of the user and the assistant in turn."""
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, texts, strict=False)]


def spoken(*texts):
    """The same as ShareGPT writes it."""
    return [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 3, texts, strict=False)]


DIALOGUE = "Human: Q1\n\nAssistant: A1\n\nHuman: Q"
PAIR = ("Q", "worse", "better")
LONG_PAIR = (DIALOGUE, "worse", "better")
# format, row, the record of a prompt with {answer}; None where there is no answer to correct
READ = {
    "TRL, standard": ("trl", {"prompt": "Q", "chosen": "better", "rejected": "worse"}, PAIR),
    "TRL, standard, the prompt in both": ("trl", {"chosen": "The sky is blue.", "rejected": "The sky is green."},
                                          ("The sky is", "green.", "blue.")),
    "TRL, conversational": ("trl", {"prompt": said("Q"), "chosen": [{"role": "assistant", "content": "better"}],
                                    "rejected": [{"role": "assistant", "content": "worse"}]}, PAIR),
    "TRL, conversational, the prompt in both": ("trl", {"chosen": said("Q", "better"), "rejected": said("Q", "worse")}, PAIR),
    "UltraFeedback's copy for TRL": ("trl", {"prompt": "Q", "chosen": said("Q", "better"), "rejected": said("Q", "worse"),
                                             "score_chosen": 8.0}, PAIR),
    "TRL, several turns": ("trl", {"prompt": said("Q1", "A1", "Q"), "chosen": [{"role": "assistant", "content": "better"}],
                                   "rejected": [{"role": "assistant", "content": "worse"}]}, LONG_PAIR),
    "TRL, prompt and completion": ("trl", {"prompt": "Q", "completion": " better"}, None),
    "TRL, prompt and completion as messages": (
        "trl", {"prompt": said("Q"), "completion": [{"role": "assistant", "content": "better"}]}, None),
    "ShareGPT": ("sharegpt", {"conversations": spoken("Q", "better"), "system": "S", "tools": "[]"}, None),
    "LLaMA-Factory, ShareGPT preference": (
        "sharegpt", {"conversations": spoken("Q"), "chosen": {"from": "gpt", "value": "better"},
                     "rejected": {"from": "gpt", "value": "worse"}}, PAIR),
    "LLaMA-Factory, several turns": (
        "sharegpt", {"conversations": spoken("Q1", "A1", "Q"), "chosen": {"from": "gpt", "value": "better"},
                     "rejected": {"from": "gpt", "value": "worse"}}, LONG_PAIR),
    "Alpaca": ("alpaca", {"instruction": "Q", "input": "", "output": "better"}, None),
    "LLaMA-Factory, Alpaca preference": (
        "alpaca", {"instruction": "Q", "input": "more", "chosen": "better", "rejected": "worse"}, ("Q\n\nmore", *PAIR[1:])),
    "LLaMA-Factory, Alpaca with history": (
        "alpaca", {"instruction": "Q", "history": [["Q1", "A1"]], "chosen": "better", "rejected": "worse"}, LONG_PAIR),
    "OpenAI, messages": ("messages", {"messages": [{"role": "system", "content": "S"}, *said("Q", "better")]}, None),
    "OpenAI, preference": (
        "messages", {"input": {"messages": said("Q"), "tools": [], "parallel_tool_calls": True},
                     "preferred_output": [{"role": "assistant", "content": "better"}],
                     "non_preferred_output": [{"role": "assistant", "content": "worse"}]}, PAIR),
    "OpenAI, content parts": ("messages", {"input": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]},
                                           "preferred_output": [{"role": "assistant", "content": "better"}],
                                           "non_preferred_output": [{"role": "assistant", "content": "worse"}]}, PAIR),
}  # fmt: skip
REFUSED = {
    "TRL, unpaired": ({"prompt": "Q", "completion": "A", "label": True}, "a verdict on one answer"),
    "TRL, nothing in common": ({"chosen": "a", "rejected": "b"}, "the two dialogues part"),
    "TRL, dialogues that part": ({"chosen": said("Q", "b"), "rejected": said("P", "w")}, "the two dialogues part"),
    "TRL, the same twice": ({"prompt": "Q", "chosen": "b", "rejected": "b"}, "the same text"),
    "TRL, a number": ({"prompt": "Q", "chosen": 1, "rejected": 2}, "'chosen' is neither text nor a list of messages"),
    "TRL, ends with the user": ({"chosen": said("Q", "b", "P"), "rejected": said("Q", "w")}, "is not the assistant's"),
    "ShareGPT, tools": ({"conversations": [*spoken("Q"), {"from": "function_call", "value": "{}"},
                                           {"from": "observation", "value": "1"}]}, "it calls tools"),
    "ShareGPT, KTO": ({"conversations": spoken("Q", "b"), "kto_tag": False}, "a verdict on one answer"),
    "ShareGPT, OpenAI's keys": ({"conversations": said("Q", "b")}, "a message has no 'from' and 'value'"),
    "ShareGPT, nobody asks": ({"conversations": [{"from": "gpt", "value": "b"}]}, "no message of the user's"),
    "ShareGPT, text": ({"conversations": "Q"}, "'conversations' is not a list of messages"),
    "Alpaca, no output": ({"instruction": "Q", "input": ""}, "the field 'output' is missing"),
    "Alpaca, history of texts": ({"instruction": "Q", "history": ["Q1"], "output": "b"}, "'history' is not a list of pairs"),
    "OpenAI, tools": ({"messages": [*said("Q"), {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "it calls tools"),
    "OpenAI, ends with the user": ({"messages": said("Q")}, "its last message is not the assistant's"),
    "OpenAI, text": ({"messages": "Q"}, "no list of messages"),
    "OpenAI, several turns": ({"messages": said("Q", "A", "P", "b")}, "a dialogue of several turns (--multi_turn takes them)"),
}  # fmt: skip


README = ROOT / "aligner" / "training" / "datasets" / "README.md"


def read(tmp_path, *rows, options=DIALOGUES, prompt=None):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(records_of(parse_spec(str(file), options), options, prompt))


def plain_prompt(folder):
    """A prompt that shows no answer."""
    (folder / PLAIN).write_text('template: "USER: {question} ASSISTANT:"\n')
    return str(folder / PLAIN)


@pytest.fixture
def plain(tmp_path):
    return plain_prompt(tmp_path)


def table(folder: Path) -> str:
    """Rows x what was read x what was refused, as the page of the data sets has it."""
    lines = ["| rows of | fields | read as | refused or left out as |", "|---|---|---|---|"]
    prompt = plain_prompt(folder)
    for name, (_, row, _) in READ.items():
        [record] = read(folder, row)
        [alone] = read(folder, row, prompt=prompt)
        assert isinstance(alone, Correction), alone
        kind = "a pair" if isinstance(record, Correction) else "one answer"
        turns = ", of a dialogue" if alone.question == DIALOGUE else ""
        lines.append(f"| {name} | {fields(row)} | {kind}{turns} | |")
    for name, (row, _) in REFUSED.items():
        [outcome] = read(folder, row, options=Options(), prompt=prompt)
        reason = outcome.reason if isinstance(outcome, Skipped) else outcome.problem
        lines.append(f"| {name} | {fields(row)} | | {reason} |")
    return "\n".join(lines)


def fields(row: dict) -> str:
    return " ".join(f"`{name}`" for name in row)


def test_the_table_of_formats_is_what_the_data_sets_make_of_the_rows(tmp_path):
    assert table(tmp_path) in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", READ)
def test_a_row_of_another_tool_is_read_by_its_fields(name, tmp_path, plain):
    format, row, expected = READ[name]
    assert format_of_row(row) == format
    [record] = read(tmp_path, row)
    if expected:
        assert (record.question, record.answer, record.correction) == expected
    else:
        assert isinstance(record, DataError) and record.problem == "it has one answer and no better one beside it"
    [record] = read(tmp_path, row, prompt=plain)
    assert isinstance(record, Correction)
    assert (record.question, record.correction) == ((expected[0], expected[2]) if expected else ("Q", "better"))


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_does_not_fit_is_named_with_the_reason(name, tmp_path, plain):
    row, reason = REFUSED[name]
    [outcome] = read(tmp_path, row, options=Options(), prompt=plain)
    assert reason in (outcome.reason if isinstance(outcome, Skipped) else str(outcome))
    assert outcome.origin.row == 1 if isinstance(outcome, Skipped) else outcome.row == 1


def test_the_first_row_decides_and_a_row_of_another_form_is_named(tmp_path):
    pair = {"prompt": "Q", "chosen": "better", "rejected": "worse"}
    first, second = read(tmp_path, pair, {"conversations": spoken("Q", "A")})
    assert isinstance(first, Correction)
    assert isinstance(second, DataError) and second.row == 2 and "'chosen' is missing" in second.problem


def test_columns_and_format_go_before_what_the_rows_look_like(tmp_path):
    row = {"prompt": "Q", "chosen": "better", "rejected": "worse", "instruction": "I", "output": "O"}
    columns = Options(columns=("question=prompt,answer=rejected,correction=chosen",))
    assert [r.question for r in read(tmp_path, row, options=columns)] == ["Q"]
    assert [r.correction for r in read(tmp_path, row, options=Options(format="trl"))] == ["better"]
    assert tuple(DataConfig.__dataclass_fields__["format"].metadata["choices"]) == FORMATS


def test_a_dialogue_has_the_same_ids_in_training_correct_and_serve(tmp_path, tiny_model, monkeypatch):
    chat = said("Q1", "A1", "Q", "worse")
    [record] = read(tmp_path, {"chosen": [*chat[:-1], {"role": "assistant", "content": "better"}], "rejected": chat})
    assert (record.question, record.answer) == (DIALOGUE, "worse")
    corrector = Corrector.load(str(tiny_model), "correction", Settings(max_new_tokens=4))
    [tokens], _ = tokenise([record], RunPrompts(corrector.template), corrector.encoder, 512)

    prompts, row = [], Corrector.row
    monkeypatch.setattr(
        Corrector, "row", lambda self, prompt, *rest: prompts.append(prompt) or row(self, prompt, *rest)
    )
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    [item] = read_items(str(tmp_path / "chat.jsonl"), may_ask=False)
    corrector.correct([(item.text("question"), item.text("answer"))])
    worker = Worker(corrector)
    worker.start()

    async def served():
        with suppress(Failed):
            await worker.submit(AnswerRequest(candidate_questions(chat[:-1]), "worse")).done()

    asyncio.run(served())
    worker.close()
    assert prompts == [tokens.ids[: tokens.prompt_length].tolist()] * 2


# Every NAME and ALIAS of raw/ at the commit that original_names.py cites.
ORIGINAL = [
    "alpaca", "stanford-alpaca", "alpaca-json", "firefly", "hh-rlhf-dialogue", "hh-dialogue",
    "hh-rlhf-harmless-dialogue", "hh-rlhf-dialogue/harmless-base", "hh-harmless-dialogue",
    "hh-dialogue/harmless-base", "hh-rlhf-helpful-dialogue", "hh-rlhf-dialogue/helpful-base", "hh-helpful-dialogue",
    "hh-dialogue/helpful-base", "hh-rlhf-preference", "hh-preference", "hh-rlhf-harmless-preference/train",
    "hh-rlhf-preference/harmless-base/train", "hh-harmless-preference/train", "hh-preference/harmless-base/train",
    "hh-rlhf-harmless-preference/test", "hh-rlhf-preference/harmless-base/test", "hh-harmless-preference/test",
    "hh-preference/harmless-base/test", "hh-rlhf-helpful-preference/train", "hh-rlhf-preference/helpful-base/train",
    "hh-helpful-preference/train", "hh-preference/helpful-base/train", "hh-rlhf-helpful-preference/test",
    "hh-rlhf-preference/helpful-base/test", "hh-helpful-preference/test", "hh-preference/helpful-base/test",
    "moss-002-sft", "moss-003-sft", "TreeRLHFFULL/train", "PKU-Alignment/TreeRLHFFULL/train", "TreeRLHFALL/train",
    "PKU-Alignment/TreeRLHFALL/train", "TreeRLHF/test", "PKU-Alignment/TreeRLHFPPO/test", "PKU-SafeRLHF/train",
    "PKU-Alignment/PKU-SafeRLHF/train", "PKU-SafeRLHF/test", "PKU-Alignment/PKU-SafeRLHF/test",
    "PKU-SafeRLHF-30K/train", "PKU-Alignment/PKU-SafeRLHF-30K/train", "PKU-SafeRLHF-30K/test",
    "PKU-Alignment/PKU-SafeRLHF-30K/test", "PKU-SafeRLHF-10K/train", "PKU-Alignment/PKU-SafeRLHF-10K/train",
    "Baichuan3RM/train", "Baichuan3RM/test", "correction-json", "beavertails-json/train", "beavertails-json/test",
    "empathy-json",
]  # fmt: skip


@pytest.mark.parametrize("name", ORIGINAL)
def test_a_name_of_the_originals_registry_is_read_or_says_what_stands_for_it(name):
    if name in REGISTERED:
        return
    with pytest.raises(UserError, match="is a name of the original's; ") as error:
        parse_spec(name)
    remedy = str(error.value).split("; ", 1)[1]
    if remedy.startswith("write "):
        parse_spec(remedy.removeprefix("write ").split(" (")[0].replace("PATH", "rows.json"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        print(table(Path(scratch)))
