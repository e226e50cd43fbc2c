"""A text as one user turn of a base's own chat template: `--prompt_template chat` and `question`, and how a model here is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from aligner.known_prompts import ALONE, CHAT, QUESTION, USER_TURN
from aligner.prompts import PromptTemplate
from aligner.records import UserError

REMEDY = f"Leave --prompt_template {CHAT} out, or give a YAML file with the whole prompt."


def chat_prompt(tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The correction's prompt in a user turn, up to where the assistant speaks; a thought that it opens is closed.

    UserError where the tokenizer has no chat template, or one that does not show the user's text once and as it is.
    """
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path
        raise UserError(f"--prompt_template {CHAT}: the tokenizer of {name} has no chat template. {REMEDY}")
    try:
        return in_user_turn(tokenizer, USER_TURN, enable_thinking=False)
    except UserError as error:
        raise UserError(f"--prompt_template {CHAT}: {error} {REMEDY}") from error


def question_prompt(tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The question in a user turn, or by itself where there is no chat template: what an upstream sees."""
    return replace(in_user_turn(tokenizer, ALONE), name=QUESTION)


def prompt_of_base(name: str, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """`--prompt_template chat` or `question` for the base with this tokenizer."""
    return chat_prompt(tokenizer) if name == CHAT else question_prompt(tokenizer)


def in_user_turn(tokenizer: PreTrainedTokenizerBase, prompt: PromptTemplate, **options: Any) -> PromptTemplate:
    """A prompt in the user turn of the tokenizer's chat template, with its slots; the prompt itself where there is none.

    options: variables of the template. UserError where that does not show the user's text once and as it is.
    """
    if not tokenizer.chat_template:
        return prompt
    turn, name = [{"role": "user", "content": prompt.text}], tokenizer.name_or_path
    try:
        text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **options))
    except Exception as error:  # a template's own refusal: that of an Aligner wants an answer beside the question
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the chat template of {name} refuses one user turn ({reason}).") from error
    if any(text.count(f"{{{slot}}}") != 1 for slot in prompt.slots):
        raise UserError(f"the chat template of {name} changes the user's text.")
    return PromptTemplate(CHAT, text)
