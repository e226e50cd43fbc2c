"""A model's own chat template around one user turn, as a server of that model applies it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from aligner.prompts import PromptTemplate
from aligner.records import UserError


def user_turn(tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The prompt with the slot {question} in its user turn; without a chat template the text alone.

    UserError where the template does not show the user's text once and as it is.
    """
    if not tokenizer.chat_template:
        return PromptTemplate("plain", "{question}")
    turn = [{"role": "user", "content": "{question}"}]
    name = tokenizer.name_or_path
    try:
        text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template's own refusal: that of an Aligner wants an answer beside the question
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the chat template of {name} refuses one user turn ({reason}). Give an upstream.") from error
    if text.count("{question}") != 1:
        raise UserError(
            f"the chat template of {name} changes the user's text. Serve the model, and give --upstream_url."
        )
    return PromptTemplate("chat", text)
