"""`--prompt_template chat`: the prompt as one user turn of the base's own chat template."""

from __future__ import annotations

import json

import pytest
from test_chat_template import chat, ids_of
from transformers import AutoTokenizer

from aligner.card import prompt_of
from aligner.chat_prompt import chat_prompt
from aligner.demo import embedded_model, locate
from aligner.encoder import Encoder
from aligner.known_prompts import USER_TURN
from aligner.records import UserError
from aligner.training.checkpoint.chat_template import set_chat_template
from aligner.training.datasets.supervised import tokenise
from aligner.training.flags import parse
from aligner.training.stages import stage_data


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_model())


def test_the_ids_are_those_of_the_bases_own_template(tokenizer, real_rows):
    prompt, encoder = chat_prompt(tokenizer), Encoder(tokenizer)
    for row in real_rows[::25]:
        turn = [{"role": "user", "content": USER_TURN.render(row["question"], row["answer"])}]
        own = tokenizer.apply_chat_template(turn, tokenize=True, return_dict=True, add_generation_prompt=True)[
            "input_ids"
        ]
        assert encoder.prompts([encoder.render(prompt, row["question"], row["answer"])]) == [own]


def test_a_run_learns_the_correction_as_the_assistants_turn(tokenizer, tmp_path):
    rows = [{"question": "Who?", "answer": "<|im_end|>", "correction": "Ada."}] * 4
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = parse(["--train_datasets", str(tmp_path / "rows.json"), "--model_name_or_path", "embedded", "--output_dir",
                    str(tmp_path / "out"), "--prompt_template", "chat"])  # fmt: skip
    data, encoder = stage_data(config, "correction"), Encoder(tokenizer)
    kept, _ = tokenise(data.train, data.prompts, encoder, 512)
    text = tokenizer.decode(kept[0].ids.tolist())
    assert text.endswith("##Answer: <|im_end|>\n##Correction: <|im_end|>\n<|im_start|>assistant\nAda.<|im_end|>")
    special = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert kept[0].ids.tolist().count(special) == 3, "the system's turn, the user's, and the end: the answer's is text"


def test_an_upstream_learns_the_correction_as_its_own_answer_to_the_question(tokenizer, bpe_folder, tmp_path):
    (tmp_path / "supervised.jsonl").write_text(json.dumps({"question": "Who?", "correction": "Ada."}) + "\n")
    for base, expected in (
        ("embedded", tokenizer.apply_chat_template(
            [{"role": "user", "content": "Who?"}], tokenize=False, add_generation_prompt=True) + "Ada.<|im_end|>"),
        (str(bpe_folder), "Who?Ada.<|end|>"),
    ):  # fmt: skip
        config = parse(["--train_datasets", str(tmp_path / "supervised.jsonl"), "--model_name_or_path", base,
                        "--output_dir", str(tmp_path / "out"), "--prompt_template", "question"])  # fmt: skip
        data, own = stage_data(config, "correction"), AutoTokenizer.from_pretrained(locate(base))
        (row,), _ = tokenise(data.train, data.prompts, Encoder(own), 512)
        assert own.decode(row.ids.tolist()) == expected
        assert own.decode(row.ids[row.prompt_length :].tolist()) == expected[expected.rindex("Ada.") :]


def test_the_finished_folder_renders_the_same_in_programs_that_know_chats_alone(tokenizer):
    prompt, encoder = chat_prompt(tokenizer), Encoder(tokenizer)
    expected = encoder.prompts([encoder.render(prompt, "Who?", "You.")])
    set_chat_template(tokenizer, prompt)
    assert [ids_of(tokenizer, chat("Who?", "You."))] == expected


def test_what_cannot_be_one_user_turn_is_refused(tokenizer, bpe_folder):
    with pytest.raises(UserError, match="has no chat template"):
        chat_prompt(AutoTokenizer.from_pretrained(bpe_folder))
    set_chat_template(tokenizer, USER_TURN)
    with pytest.raises(UserError, match="refuses one user turn"):
        chat_prompt(tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(UserError, match="changes the user's text"):
        chat_prompt(tokenizer)
    with pytest.raises(UserError, match="is for training"):
        prompt_of("anything", "chat")
