"""`--prompt_template chat`: the prompt as one user turn of the base's own chat template, for bases that were tuned to chat."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from aligner.known_prompts import CHAT, USER_TURN
from aligner.prompts import PromptTemplate
from aligner.records import UserError

REMEDY = f"Leave --prompt_template {CHAT} out, or give a YAML file with the whole prompt."


def chat_prompt(tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The template's text with the slots in its user turn, up to where the assistant speaks; a thought that it opens is closed.

    UserError where the tokenizer has no chat template, or one that does not show the user's text once and as it is.
    """
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise UserError(f"--prompt_template {CHAT}: the tokenizer of {name} has no chat template. {REMEDY}")
    turn = [{"role": "user", "content": USER_TURN.text}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    except Exception as error:  # a template's own refusal: that of an Aligner wants an answer beside the question
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--prompt_template {CHAT}: the chat template of {name} refuses one user turn ({reason}). {REMEDY}"
        ) from error
    if any(str(text).count(f"{{{slot}}}") != 1 for slot in USER_TURN.slots):
        raise UserError(f"--prompt_template {CHAT}: the chat template of {name} changes the user's text. {REMEDY}")
    return PromptTemplate(CHAT, str(text))
