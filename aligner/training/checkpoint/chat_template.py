"""A chat template that renders the Aligner's own prompt, so that programs which know nothing of it correct with the folder.

[user: question, assistant: answer] gives the prompt's ids; of a longer dialogue the question is what stands before the answer,
turn by turn, as `aligner serve` renders it.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from aligner.encoder import Encoder
from aligner.known_prompts import QUESTION
from aligner.prompts import PromptTemplate

log = logging.getLogger("aligner")
PROBES = (("Is it so?", "It is."), ('"Why?"\n\n  two {spaces}', "Because 1 + 1 = 2.\n- é 你好\n"))

TURNS = """\
{%- set answered = SHOWS_ANSWER and messages and messages[-1]['role'] == 'assistant' -%}
{%- set said = (messages[:-1] if answered else messages) | selectattr('role', 'in', ['user', 'assistant']) | list -%}
{%- if SHOWS_ANSWER and not answered -%}
{{- raise_exception('an Aligner corrects an answer: give the messages user: question, assistant: answer') -}}
{%- endif -%}
{%- set text = namespace(question='') -%}
{%- for turn in said -%}
{%- set speaker = '' if said | length == 1 else ('Human: ' if turn['role'] == 'user' else 'Assistant: ') -%}
{%- set text.question = text.question ~ ('' if loop.first else '\\n\\n') ~ speaker ~ turn['content'] -%}
{%- endfor -%}
"""
VALUES = {"question": "text.question", "answer": "messages[-1]['content']", "feedback": "''", "prefix": "''"}


def chat_template(prompt: PromptTemplate, start: str) -> str:
    """The Jinja text; `start`: the tokenizer's own start tokens as text."""
    pieces = [json.dumps(start, ensure_ascii=False)] if start else []
    pieces += [VALUES[part] if is_slot else json.dumps(part, ensure_ascii=False) for is_slot, part in prompt.parts()]
    turns = TURNS.replace("SHOWS_ANSWER", "true" if "answer" in prompt.slots else "false")
    return f"{turns}{{{{- {' ~ '.join(pieces)} -}}}}"


def set_chat_template(tokenizer: PreTrainedTokenizerBase, prompt: PromptTemplate) -> None:
    """Put the prompt in place of the base's chat template; none, with a warning, where it would not give the prompt's ids.

    A question in the base's own template leaves that as it is: an upstream speaks in chats of several turns as before."""
    if prompt.name == QUESTION and tokenizer.chat_template:
        return
    encoder = Encoder(tokenizer)
    start = "" if encoder.is_complete(prompt) else str(tokenizer.decode(encoder.start))
    tokenizer.chat_template = chat_template(prompt, start)
    for question, answer in PROBES:
        messages = [{"role": "user", "content": question}]
        messages += [{"role": "assistant", "content": answer}] if "answer" in prompt.slots else []
        encoded: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
        if [encoded["input_ids"]] != encoder.prompts([encoder.render(prompt, question, answer)]):
            tokenizer.chat_template = None
            log.warning("this tokenizer's ids of a chat are not the prompt's: the folder gets no chat template")
            return
