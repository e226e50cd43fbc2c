"""A mixture of three data sets with three prompts: what is learned, what the Aligner corrects with, and what is written of it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, replace

import pytest
from conftest import ROOT
from transformers import AutoTokenizer

from aligner.demo import embedded_model
from aligner.known_prompts import EMPATHY
from aligner.launch.report import examples, next_command, show_examples
from aligner.prompts import CORRECTION, PromptTemplate
from aligner.training.checkpoint.model_card import model_card
from aligner.training.datasets.registry import REGISTERED
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.flags import parse
from aligner.training.stages import make_card, sides_as_tokens, stage_data, stages

PAGE = (ROOT / "aligner/training/datasets/README.md").read_text(encoding="utf-8")
TICKET = "Ticket: {question}\nDraft: {answer}\nSent:"
ROWS = {
    "facts.json": [
        {"question": "Who wrote Dune?", "answer": "Asimov.", "correction": "Frank Herbert."},
        {"question": "Is glass a liquid?", "answer": "Yes.", "correction": "No, a solid without crystals."},
    ],
    "letters.json": [{"question": "My cat died.", "answer": "Get another.", "correction": "I am so sorry. Tell me of her."}],
    "tickets.json": [{"question": "Where is my parcel?", "answer": "No idea.", "correction": "It left us on Monday."}],
}  # fmt: skip
REGISTER = """from aligner.training.datasets import Correction, register


@register("support-tickets", template="ticket.yaml")
def support_tickets(row):
    return Correction(row["question"], row["answer"], row["correction"])
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The run of the page's command, in a folder with its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(REGISTERED, "support-tickets", raising=False)  # another test's, which comes back
    for name, rows in ROWS.items():
        (tmp_path / name).write_text(json.dumps(rows))
    (tmp_path / "ticket.yaml").write_text(json.dumps({"template": TICKET}))
    (tmp_path / "my_datasets.py").write_text(REGISTER)
    [command] = re.findall(
        r"sft-correction\.sh (--register my_datasets\.py --train_datasets facts.*?) --dry_run", PAGE, re.S
    )
    yield parse(command.replace("\\\n", " ").split())
    REGISTERED.pop("support-tickets")


def test_each_data_sets_rows_are_learned_behind_its_own_prompt_as_the_page_shows(run, capsys):
    data, tokenizer = stage_data(run, "correction"), AutoTokenizer.from_pretrained(embedded_model())
    (tokens, tally), _ = sides_as_tokens(run, data, tokenizer)
    assert tally.rows == len(tokens) == 4
    print(f"prompt: {data.prompts.line()}")
    show_examples(examples(tokens, data.train_sources), tokenizer)
    shown = capsys.readouterr().out
    assert f"```text\n{shown}```" in PAGE
    for prompt, name in ((CORRECTION.text, "facts"), (EMPATHY.text, "letters"), (TICKET, "tickets")):
        row = ROWS[f"{name}.json"][0]
        filled = prompt.format(question=row["question"], answer=row["answer"])
        assert f"{filled}[[{row['correction']}<|im_end|>]]" in shown


def test_the_cards_name_every_prompt_and_the_one_that_corrects(run):
    data = stage_data(run, "correction")
    card = make_card(run, stages(run)[0], data, 32, {})
    assert card.prompt == CORRECTION
    assert card.data["deciding"]["other prompts"] == {"empathy": EMPATHY.text, "ticket": TICKET}
    published = model_card(card, "ada/aligner")
    corrects, _, others = published.partition("Some of the records were learned behind other prompts")
    assert json.dumps(CORRECTION.text) in corrects
    assert json.dumps(EMPATHY.text) in others and json.dumps(TICKET) in others
    assert "| support-tickets: tickets.json | 1 | 1 |" in published
    assert json.loads(json.dumps(asdict(card))) == asdict(card)


def test_what_is_next_is_to_correct_or_to_ask_a_model_that_saw_no_answers(run, tmp_path):
    data = stage_data(run, "correction")
    assert f"correct --model {tmp_path} --input " in shlex.join(next_command(tmp_path, data))
    plain = replace(data, prompts=RunPrompts(PromptTemplate("plain", "USER: {question} ASSISTANT:")))
    assert next_command(tmp_path, plain) == ["transformers", "serve", str(tmp_path)]
