"""Programs that know chats alone correct with an Aligner's folder: its chat template renders the Aligner's own prompt."""

from __future__ import annotations

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from aligner.chat_api.dialogue import candidate_questions
from aligner.encoder import Encoder
from aligner.inference.corrector import Corrector, Settings
from aligner.known_prompts import KNOWN
from aligner.prompts import CORRECTION, PromptTemplate
from aligner.training.checkpoint.chat_template import set_chat_template

PLAIN = PromptTemplate("plain", "USER: {question} ASSISTANT:")


def chat(question: str, answer: str | None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def ids_of(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]


@pytest.mark.parametrize("prompt", [*KNOWN.values(), PLAIN], ids=lambda prompt: prompt.name)
def test_a_chat_has_the_ids_of_the_prompt(prompt, bpe_folder, real_rows):
    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    set_chat_template(tokenizer, prompt)
    encoder = Encoder(tokenizer)
    for row in real_rows[::10]:
        messages = chat(row["question"], row["answer"] if "answer" in prompt.slots else None)
        assert [ids_of(tokenizer, messages)] == encoder.prompts([prompt.render(row["question"], row["answer"])])


def test_of_a_dialogue_the_question_is_what_stands_before_the_answer(bpe_folder):
    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    set_chat_template(tokenizer, CORRECTION)
    turns = [{"role": "system", "content": "Be brief."}, *chat("Who?", "Ada."), *chat("When?", "1843.")]
    question = candidate_questions(turns[:-1])[0]
    assert question == "Human: Who?\n\nAssistant: Ada.\n\nHuman: When?"
    assert [ids_of(tokenizer, turns)] == Encoder(tokenizer).prompts([CORRECTION.render(question, "1843.")])


def test_without_an_answer_the_program_is_told(bpe_folder):
    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    set_chat_template(tokenizer, CORRECTION)
    with pytest.raises(TemplateError, match="give the messages user: question, assistant: answer"):
        ids_of(tokenizer, chat("Who?", None))


def test_a_pipeline_corrects_as_aligner_correct_does(tiny_model):
    tokenizer, model = (kind.from_pretrained(tiny_model) for kind in (AutoTokenizer, AutoModelForCausalLM))
    set_chat_template(tokenizer, CORRECTION)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    said = generate(chat("Is it so?", "It is."), max_new_tokens=8, do_sample=False, continue_final_message=False)
    [corrected] = Corrector.load(str(tiny_model), "correction", Settings(1, 8)).correct([("Is it so?", "It is.")])
    assert said[0]["generated_text"][-1]["content"] == corrected.text
